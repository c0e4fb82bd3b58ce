"""Means over seeds with their uncertainty: Student's t, exact for any number of seeds."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

from scipy import special

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


def t_quantile(degrees: int, confidence: float = CONFIDENCE) -> float:
    """The t for which a variable of so many degrees of freedom is within ±t with `confidence`."""
    return float(special.stdtrit(degrees, (1 + confidence) / 2))
