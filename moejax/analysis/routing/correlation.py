"""Rank correlation of what tokens cost with what they are: frequency, loss, difficulty."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moejax.analysis.metrics import divide
from moejax.analysis.routing.tables import Floats, per_token


def spearman(x_LT: NDArray, y_T: NDArray) -> Floats:
    """Spearman's rho of each row of x with y, `[L]`: Pearson's correlation of the ranks, equal
    values sharing their mean rank. No unit, -1..1.

    Chance: mean 0, standard deviation 1/sqrt(n - 1) for independent tokens, more for tokens of
    sequences (compare seeds). NaN where either is constant (one width), or fewer than 2 tokens have
    both values finite. Source: Spearman 1904.
    """
    x = np.atleast_2d(np.asarray(x_LT))
    y = per_token(y_T, x.shape[1], "y_T").astype(np.float64)
    return np.asarray([_spearman(row.astype(np.float64), y) for row in x], np.float64)


def width_frequency_correlation(width_LT: NDArray, frequency_rank_T: NDArray) -> Floats:
    """Spearman's rho of active width and log token frequency, `[L]`. No unit, -1..1; chance 0.

    Negative: rare tokens get more hidden units, positive: frequent ones. Ranks do not change under
    the logarithm, so the order of frequencies, rank 0 the most frequent, is all that is needed;
    tokens with a negative rank are left out. NaN in a layer that gives every token the same width
    (top-k of equal experts), and for a single token.

    Bad: nothing by itself; near 0 in all layers with experts of several widths: sizes are not used
    for what HMoE (2408.10681) made them for.
    """
    rank = np.asarray(frequency_rank_T, np.float64)
    return spearman(width_LT, np.where(rank < 0, np.nan, -rank))


def _spearman(x: Floats, y: Floats) -> float:
    good = np.isfinite(x) & np.isfinite(y)
    x, y = (_ranks(value[good]) for value in (x, y))
    if x.size < 2:
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    return float(divide(x @ y, np.sqrt((x @ x) * (y @ y))))


def _ranks(value: Floats) -> Floats:
    """Ranks from 0; equal values share the mean of theirs."""
    _, place, count = np.unique(value, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count + 1) / 2)[place]
