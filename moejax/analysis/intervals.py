"""Means over seeds with their uncertainty: Student's t, exact for any number of seeds."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Sequence

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Mean:
    """Mean of `n` values; `half_width` of its 95 % t interval and `sd` are NaN below two."""

    n: int
    mean: float
    sd: float
    half_width: float


def mean_of(values: Sequence[float]) -> Mean:
    """The mean of values that are taken for independent draws of one normal distribution."""
    n = len(values)
    if n == 0:
        return Mean(0, math.nan, math.nan, math.nan)
    mean = math.fsum(values) / n
    if n == 1:
        return Mean(1, mean, math.nan, math.nan)
    sd = statistics.stdev(values)
    return Mean(n, mean, sd, t_quantile(n - 1) * sd / math.sqrt(n))


@functools.cache
def t_quantile(degrees: int, confidence: float = CONFIDENCE) -> float:
    """The t for which a variable of so many degrees of freedom is within ±t with `confidence`."""
    low, high = 0.0, 1.0
    while _within(high, degrees) < confidence:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < confidence else (low, middle)
    return high


def _within(t: float, degrees: int) -> float:
    """P(|T| <= t): the finite sums of Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle = math.atan2(t, math.sqrt(degrees))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    odd = degrees % 2
    term = total = 0.0
    if degrees > 1:
        term = total = math.cos(angle) if odd else 1.0
    for i in range(2 + odd, degrees - 1, 2):
        term *= square * (i - 1) / i
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
