"""The metric dictionary: pure functions of arrays, each with formula, unit, range and what is bad.

Shapes use the axis letters of docs/architecture.md (`L` layers, `E` experts, `T` tokens).
`mask_LE` is True where the expert exists, because layers may differ in how many they have. What is
undefined (no tokens, no experts) is NaN, never an exception and never a silent 0.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


def _divide(a: ArrayLike, b: ArrayLike) -> Floats:
    """a / b with NaN where b is 0 or either is NaN."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(b == 0, np.nan, a / b)


def _every_expert(count_LE: NDArray, mask_LE: Bools | None) -> tuple[Floats, Bools]:
    mask = np.ones(np.shape(count_LE), bool) if mask_LE is None else np.asarray(mask_LE, bool)
    return np.where(mask, np.asarray(count_LE, np.float64), 0.0), mask


def load_fraction(count_LE: NDArray, mask_LE: Bools | None = None) -> Floats:
    """Share of a layer's assignments, f_i = n_i / sum_j n_j. No unit, 0..1, sums to 1 over experts.

    NaN where there is no expert and in a layer that saw no token. Bad: any f_i far from 1/E.
    """
    count, mask = _every_expert(count_LE, mask_LE)
    return np.where(mask, _divide(count, count.sum(-1, keepdims=True)), np.nan)


def utilisation(count_LE: NDArray, mask_LE: Bools | None = None) -> Floats:
    """Load relative to a balanced layer, u_i = f_i * E. No unit, 0..E; 1 balanced, 0 dead.

    E is the number of experts that exist in that layer. Bad: above about 2, below about 1/2.
    """
    _, mask = _every_expert(count_LE, mask_LE)
    return load_fraction(count_LE, mask_LE) * mask.sum(-1, keepdims=True)


def load_max_over_mean(count_LE: NDArray, mask_LE: Bools | None = None) -> Floats:
    """Busiest expert over the mean expert, max_i u_i, per layer. No unit, 1..E. Bad: above about 2.

    MaxVio of the aux-loss-free paper is this minus 1.
    """
    u = utilisation(count_LE, mask_LE)
    return np.where(
        np.isnan(u).all(-1), np.nan, np.nan_to_num(u, nan=-np.inf).max(-1, initial=-np.inf)
    )


def load_cv(count_LE: NDArray, mask_LE: Bools | None = None) -> Floats:
    """Coefficient of variation, std(n) / mean(n) (population), per layer. No unit, 0..sqrt(E-1).

    0 is balanced. Bad: above about 1, where one standard deviation is a whole balanced share.
    """
    u = utilisation(count_LE, mask_LE)
    count, mask = _every_expert(count_LE, mask_LE)
    # mean(u) = 1 by construction, so the standard deviation of u is already relative to the mean.
    variance = _divide(np.nansum((u - 1.0) ** 2, -1), mask.sum(-1))
    return np.where(count.sum(-1) > 0, np.sqrt(variance), np.nan)


def dead_experts(count_LE: NDArray, mask_LE: Bools | None = None) -> Ints:
    """Experts that no token chose, per layer: #{i : n_i = 0}. A count, 0..E. Bad: any.

    A layer that saw no token at all counts 0: nothing is known about its experts.
    """
    count, mask = _every_expert(count_LE, mask_LE)
    saw_tokens = count.sum(-1, keepdims=True) > 0
    return (mask & (count == 0) & saw_tokens).sum(-1).astype(np.int64)


def expert_diversity(count_LE: NDArray, mask_LE: Bools | None = None) -> Floats:
    """Effective number of experts over E, exp(H(f)) / E with H = -sum f ln f. No unit, 1/E..1.

    1 is balanced. Bad: below about 1/2 (half of the layer's parameters do nearly all the work).
    """
    f = load_fraction(count_LE, mask_LE)
    count, mask = _every_expert(count_LE, mask_LE)
    log_f = np.log(f, where=f > 0, out=np.zeros_like(f))
    effective = np.exp(-np.nansum(f * log_f, -1))
    return np.where(count.sum(-1) > 0, _divide(effective, mask.sum(-1)), np.nan)


def drop_fraction(requested: ArrayLike, kept: ArrayLike) -> Floats:
    """Assignments asked for and not computed, 1 - kept / requested. No unit, 0..1. Bad: above 0.01.

    Below 0 would mean that more was computed than asked for: a corrupt file.
    """
    return _divide(np.asarray(requested, np.float64) - np.asarray(kept, np.float64), requested)


def perplexity(loss: float) -> float:
    """exp(loss), loss in nats per token: the tokens a model hesitates between. 1..V; low: good."""
    with np.errstate(over="ignore"):
        return float(np.exp(np.float64(loss)))


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """loss / (ln 2 * bytes per token), bits per byte: comparable between tokenizers. 0..8."""
    return float(_divide(np.float64(loss), np.log(2.0) * np.float64(bytes_per_token)))


def reduction(value: float, reference: float) -> float:
    """How far `value` lies below `reference`: 1 - value / reference. No unit; negative is above."""
    return float(1.0 - _divide(np.float64(value), np.float64(reference)))


@dataclasses.dataclass(frozen=True)
class GroupMeans:
    """Mean per group with a normal 95 % interval, all `[G]`; NaN where tokens are too few."""

    count: Ints
    mean: Floats
    half_width: Floats


def group_means(value_T: NDArray, group_T: NDArray, groups: int) -> GroupMeans:
    """Mean of `value_T` in each group 0..groups-1, with half_width = 1.96 * s / sqrt(n) (s: n - 1).

    Tokens whose value is NaN or whose group is out of range are left out of the count too. The
    interval treats tokens as independent draws; neighbours in a text are not, so read it as a lower
    bound on the uncertainty. One token has a mean and no interval.
    """
    value = np.asarray(value_T, np.float64)
    group = np.asarray(group_T, np.int64)
    good = np.isfinite(value) & (group >= 0) & (group < groups)
    value, group = value[good], group[good]
    count = np.bincount(group, minlength=groups)
    mean = _divide(np.bincount(group, value, minlength=groups), count)
    squares = np.bincount(group, (value - mean[group]) ** 2, minlength=groups)
    variance = np.where(count > 1, _divide(squares, count - 1.0), np.nan)
    return GroupMeans(count, mean, Z95 * np.sqrt(_divide(variance, count)))


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
