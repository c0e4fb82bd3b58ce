"""Chinchilla's approach 1: which run is best at each number of FLOPs, over whole training curves.

Points in the middle of a run count as if the run had been planned to end there. With a learning
rate that decays to the end of each run they lie too high, and the envelope favours runs that are
nearly over: give it runs of one size with several ends, or a constant learning rate. Runs that all
end at the same tokens per parameter do not cross where they would, and are refused.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from moejax.analysis.scaling.descent import Floats
from moejax.analysis.scaling.fitting import Estimate
from moejax.analysis.scaling.points import Curve
from moejax.analysis.scaling.resampling import interval

GRID = 1500
"""Numbers of FLOPs at which runs are compared, as published."""

INNER = 3
"""Sizes on the envelope, besides its two ends, that make a line."""


@dataclasses.dataclass(frozen=True, eq=False)
class Envelope:
    """N* ~ C^n_exponent, D* ~ C^d_exponent, and the envelope itself `[G]`.

    Only where the next smaller and the next larger size were evaluated too: elsewhere the best size
    is whatever was the smallest or largest there. And only from the first change of the best size
    to the last, so that every size counts with its whole stretch.
    """

    c_G: Floats
    n_G: Floats
    d_G: Floats
    loss_G: Floats
    sizes: int
    n_exponent: Estimate
    d_exponent: Estimate
    why_not: str = ""


def envelope(curves: Sequence[Curve], replicates: int = 200, seed: int = 0) -> Envelope:
    """Approach 1. Intervals: 80 % of the cells drawn without replacement, as published.

    Such draws differ from the whole less than another sample would, by a factor that is undone (the
    delete-d jackknife of Shao and Wu 1989).
    The loss of a run between two evaluations is linear in ln C; runs are compared where they were
    evaluated, never beyond.
    """
    usable = [curve for curve in curves if len(curve.c_S) >= 2]
    empty = np.zeros(0)
    nothing = Estimate(math.nan)
    if len({curve.n for curve in usable}) < 3:
        sizes = len({curve.n for curve in usable})
        why_not = f"training curves of {sizes} sizes; it takes 3"
        return Envelope(empty, empty, empty, empty, sizes, nothing, nothing, why_not)
    low = min(float(curve.c_S[0]) for curve in usable)
    high = max(float(curve.c_S[-1]) for curve in usable)
    c_G = np.geomspace(low, high, GRID)
    loss_CG = np.stack([_at(curve, c_G, curve.loss_S) for curve in usable])
    d_CG = np.stack([np.exp(_at(curve, c_G, np.log(curve.d_S))) for curve in usable])
    n_C = np.array([curve.n for curve in usable])
    found = _fit(c_G, loss_CG, d_CG, n_C)
    if found is None:
        why_not = f"fewer than {INNER} sizes are best between the smallest and the largest"
        return Envelope(empty, empty, empty, empty, len(set(n_C)), nothing, nothing, why_not)
    n_slope, d_slope, keep_G, best_G = found
    cells = sorted({(curve.group, curve.cell) for curve in usable})
    of_C = np.array([cells.index((curve.group, curve.cell)) for curve in usable])
    rng = np.random.default_rng([seed, len(usable)])
    draws = []
    drawn_cells = -(-4 * len(cells) // 5)
    for _ in range(replicates if drawn_cells < len(cells) else 0):
        rows = np.isin(of_C, rng.choice(len(cells), drawn_cells, replace=False))
        drawn = _fit(c_G, loss_CG[rows], d_CG[rows], n_C[rows])
        if drawn is not None:
            draws.append(drawn[:2])
    # Draws without enough sizes say nothing; where they are many, neither do the others.
    draw_R2 = np.array(draws if len(draws) >= 0.9 * replicates else []).reshape(-1, 2)
    whole_2 = np.array([n_slope, d_slope])
    draw_R2 = whole_2 + (draw_R2 - whole_2) * math.sqrt(
        drawn_cells / (len(cells) - drawn_cells or 1)
    )
    column = np.flatnonzero(keep_G)
    return Envelope(
        c_G[keep_G],
        n_C[best_G[keep_G]],
        d_CG[best_G[keep_G], column],
        loss_CG[best_G[keep_G], column],
        len(set(n_C[best_G[keep_G]])),
        Estimate(n_slope, *interval(draw_R2[:, 0])),
        Estimate(d_slope, *interval(draw_R2[:, 1])),
    )


def _at(curve: Curve, c_G: Floats, value_S: Floats) -> Floats:
    """A quantity of a run at the grid, NaN where the run was not evaluated around."""
    return np.interp(np.log(c_G), np.log(curve.c_S), value_S, left=np.nan, right=np.nan)


def _fit(
    c_G: Floats, loss_CG: Floats, d_CG: Floats, n_C: Floats
) -> tuple[float, float, np.ndarray, np.ndarray] | None:
    """Slopes of ln N* and ln D* in ln C, the part of the grid in use, and the best run there."""
    filled_CG = np.where(np.isfinite(loss_CG), loss_CG, np.inf)
    best_G = filled_CG.argmin(0)
    known_G = np.isfinite(filled_CG.min(0))
    size_G = np.where(known_G, n_C[best_G], np.nan)
    keep_G = _between(known_G, size_G, np.isfinite(loss_CG), n_C)
    changes = np.flatnonzero(keep_G[1:] & keep_G[:-1] & (size_G[1:] != size_G[:-1]))
    if not changes.size:
        return None
    keep_G &= (np.arange(len(c_G)) > changes[0]) & (np.arange(len(c_G)) <= changes[-1])
    if len(set(size_G[keep_G])) < INNER:
        return None
    x = np.log(c_G[keep_G])
    n_slope = np.polyfit(x, np.log(size_G[keep_G]), 1)[0]
    d_slope = np.polyfit(x, np.log(d_CG[best_G[keep_G], np.flatnonzero(keep_G)]), 1)[0]
    return float(n_slope), float(d_slope), keep_G, best_G


def _between(
    known_G: np.ndarray, size_G: Floats, covered_CG: np.ndarray, n_C: Floats
) -> np.ndarray:
    """Where runs of the sizes on both sides of the best one were evaluated."""
    sizes = np.unique(n_C)
    covered_NG = np.stack([covered_CG[n_C == n].any(0) for n in sizes])
    rank_G = np.searchsorted(sizes, np.where(known_G, size_G, sizes[0]))
    inner_G = known_G & (rank_G > 0) & (rank_G < len(sizes) - 1)
    column = np.arange(len(size_G))
    below_G = covered_NG[np.maximum(rank_G - 1, 0), column]
    above_G = covered_NG[np.minimum(rank_G + 1, len(sizes) - 1), column]
    return inner_G & below_G & above_G
