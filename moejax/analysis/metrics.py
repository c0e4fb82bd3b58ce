"""Losses in other units, bins and curves: pure functions of arrays.

The metrics of routing are in `moejax.analysis.routing`. What is undefined (no tokens, one token's
interval) is NaN, never an exception and never a silent 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def divide(a: ArrayLike, b: ArrayLike) -> Floats:
    """a / b with NaN where b is 0 or either is NaN."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(b == 0, np.nan, a / b)


def perplexity(loss: float) -> float:
    """exp(loss), loss in nats per token: the tokens a model hesitates between. 1..V; low: good."""
    with np.errstate(over="ignore"):
        return float(np.exp(np.float64(loss)))


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """loss / (ln 2 * bytes per token), bits per byte: comparable between tokenizers. 0..8."""
    return float(divide(np.float64(loss), np.log(2.0) * np.float64(bytes_per_token)))


def reduction(value: float, reference: float) -> float:
    """How far `value` lies below `reference`: 1 - value / reference. No unit; negative is above."""
    return float(1.0 - divide(np.float64(value), np.float64(reference)))


def rank_edges(highest_rank: int) -> Ints:
    """Log-spaced edges of frequency-rank bins: [edges[i], edges[i+1]) of rank counted from 1.

    Powers of 2 for small vocabularies (bytes), of 4 above 512: at most about 10 bins.
    """
    top = max(int(highest_rank), 0) + 1
    base = 2 if top <= 512 else 4
    edges = [1]
    while edges[-1] <= top:
        edges.append(edges[-1] * base)
    return np.asarray(edges, np.int64)


def rank_bin(frequency_rank_T: NDArray, edges: Ints) -> Ints:
    """Bin of each token; rank 0 is the most frequent. Ranks beyond the last edge give len - 1."""
    return (np.searchsorted(edges, np.asarray(frequency_rank_T, np.int64) + 1, "right") - 1).astype(
        np.int64
    )


def bin_curve(x: NDArray, y: NDArray, bins: int, log: bool = False) -> tuple[Floats, Floats]:
    """Mean x and mean y in at most `bins` equal (or log-equal) intervals of x: a smoothed curve.

    Points that are not finite, or not positive on a log axis, are left out.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    good = np.isfinite(x) & np.isfinite(y) & ((x > 0) | (not log))
    x, y = x[good], y[good]
    if x.size <= bins:
        order = np.argsort(x, kind="stable")
        return x[order], y[order]
    place = np.log(x) if log else x
    edges = np.linspace(place.min(), place.max(), bins + 1)
    which = np.clip(np.searchsorted(edges, place, "right") - 1, 0, bins - 1)
    count = np.bincount(which, minlength=bins)
    full = count > 0
    mean_x = np.bincount(which, x, minlength=bins)[full] / count[full]
    mean_y = np.bincount(which, y, minlength=bins)[full] / count[full]
    return mean_x, mean_y


def value_at(x: NDArray, y: NDArray, at: float) -> float:
    """y at `at` by linear interpolation between finite points; NaN outside of their range."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    good = np.isfinite(x) & np.isfinite(y)
    x, y = x[good], y[good]
    if x.size == 0 or not x.min() <= at <= x.max():
        return float("nan")
    order = np.argsort(x, kind="stable")
    return float(np.interp(at, x[order], y[order]))
