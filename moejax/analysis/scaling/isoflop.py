"""Chinchilla's approach 2: a parabola of the loss over ln N at each budget, a line through minima.

Biased: the loss at one budget is no parabola in ln N unless alpha = beta and sizes lie evenly
around the optimum. `bias` measures it on noise-free losses of a fitted law at the same points.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from moejax.analysis.intervals import t_quantile
from moejax.analysis.scaling.descent import Floats
from moejax.analysis.scaling.fitting import Estimate, distinct
from moejax.analysis.scaling.points import Points

SAME_BUDGET = 0.05
"""Runs whose C differ by less than this from their neighbours have one budget."""


@dataclasses.dataclass(frozen=True, eq=False)
class Valley:
    """One budget: its points' rows, the parabola loss = p0 + p1 x + p2 x^2 of x = ln N, its bottom.

    `n`, `d` and `loss` are NaN with a reason in `why_not` where there is no minimum inside.
    """

    budget: float
    rows: tuple[int, ...]
    parabola: tuple[float, float, float]
    n: float
    d: float
    loss: float
    why_not: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class IsoFlop:
    """Exponents of C in N* and D* over the valleys; 95 % t intervals of the line through minima."""

    valleys: tuple[Valley, ...]
    n_exponent: Estimate
    d_exponent: Estimate
    n_level: float
    d_level: float
    why_not: str = ""


def isoflop(points: Points) -> IsoFlop:
    """Approach 2 on final losses; needs `n`, `d` and `c`."""
    valleys = tuple(_valley(points, rows) for rows in budgets(points.c_I))
    usable = [valley for valley in valleys if not valley.why_not]
    nothing = Estimate(math.nan)
    if len(usable) < 2:
        why_not = f"{len(usable)} of {len(valleys)} budgets have a minimum inside; it takes 2"
        if valleys and all(len(v.rows) < 3 for v in valleys):
            why_not = "no budget with runs of 3 sizes or more"
        return IsoFlop(valleys, nothing, nothing, math.nan, math.nan, why_not)
    c = np.log([valley.budget for valley in usable])
    n_exponent, n_level = line(c, np.log([valley.n for valley in usable]))
    d_exponent, d_level = line(c, np.log([valley.d for valley in usable]))
    return IsoFlop(valleys, n_exponent, d_exponent, n_level, d_level)


def budgets(c_I: Floats) -> list[Floats]:
    """Rows of equal budget: neighbours in C closer than `SAME_BUDGET`, least C first."""
    order = np.argsort(c_I, kind="stable")
    gaps = np.flatnonzero(np.diff(np.log(c_I[order])) > math.log1p(SAME_BUDGET)) + 1
    return [np.asarray(rows) for rows in np.split(order, gaps)] if order.size else []


def _valley(points: Points, rows: Floats) -> Valley:
    own = points.take(rows)
    budget = float(np.exp(np.log(own.c_I).mean()))
    names, nan = tuple(int(r) for r in rows), math.nan
    sizes = distinct(own.n_I)
    if sizes < 3:
        why_not = f"{sizes} sizes: a parabola takes 3"
        return Valley(budget, names, (nan, nan, nan), nan, nan, nan, why_not)
    x_I = np.log(own.n_I)
    middle = x_I.mean()
    p2, p1, p0 = np.polyfit(x_I - middle, own.loss_I, 2)
    parabola = (p0 - p1 * middle + p2 * middle**2, p1 - 2 * p2 * middle, p2)
    shape = float(parabola[0]), float(parabola[1]), float(parabola[2])
    if p2 <= 0:
        return Valley(budget, names, shape, nan, nan, nan, "the loss has no minimum over N")
    x = middle - p1 / (2 * p2)
    if not x_I.min() <= x <= x_I.max():
        return Valley(budget, names, shape, nan, nan, nan, "the minimum lies outside of the sizes")
    # D at the minimum from the FLOPs per token of the sizes around it.
    order = np.argsort(x_I, kind="stable")
    per_token = np.interp(x, x_I[order], np.log(own.c_I / own.d_I)[order])
    d = budget / math.exp(per_token)
    return Valley(budget, names, shape, math.exp(x), d, float(p0 - p1**2 / (4 * p2)))


def line(x: Floats, y: Floats) -> tuple[Estimate, float]:
    """Slope of a least-squares line with its 95 % t interval, and the value at x = 0."""
    centred = x - x.mean()
    square = float(centred @ centred)
    slope = float(centred @ y) / square
    level = float(y.mean() - slope * x.mean())
    if len(x) < 3:
        return Estimate(slope), level
    left = y - level - slope * x
    half = t_quantile(len(x) - 2) * math.sqrt(float(left @ left) / (len(x) - 2) / square)
    return Estimate(slope, slope - half, slope + half), level


def bias(points: Points, predicted_I: Floats, exact: float) -> float:
    """What approach 2 errs by in the exponent of N* on noise-free losses at these points.

    Args:
      points: where runs were made.
      predicted_I: losses of a law there.
      exact: the law's own exponent of C in N*.

    Returns:
      approach 2's exponent minus `exact`; NaN where approach 2 cannot be done.
    """
    return isoflop(dataclasses.replace(points, loss_I=predicted_I)).n_exponent.value - exact
