"""Ratios over pairs of runs: geometric means, with an interval from their logarithms."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from moejax.analysis.intervals import mean_of


@dataclasses.dataclass(frozen=True)
class Ratio:
    """Geometric mean of `n` ratios and its 95 % t interval; NaN where not known.

    The interval is that of the mean logarithm, so that a ratio and its inverse say the same; it
    needs two ratios.
    """

    n: int
    mean: float
    low: float
    high: float


NO_RATIO = Ratio(0, math.nan, math.nan, math.nan)


def ratio_of(ratios: Sequence[float]) -> Ratio:
    """The mean of positive ratios. One that is not known makes the whole unknown.

    A mean over those pairs alone that reached the loss would be one of the lucky pairs.
    """
    if not ratios or not all(0 < r < math.inf for r in ratios):
        return dataclasses.replace(NO_RATIO, n=len(ratios))
    found = mean_of([math.log(r) for r in ratios])
    low, high = (_exp(found.mean + sign * found.half_width) for sign in (-1, 1))
    return Ratio(found.n, _exp(found.mean), low, high)


def _exp(value: float) -> float:
    """exp, infinite where it overflows: the interval of two very different ratios is that wide."""
    return math.inf if value > 700 else math.exp(value)
