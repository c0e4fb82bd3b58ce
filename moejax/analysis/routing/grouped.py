"""Any per-token quantity by any label: means, 95 % intervals and quantiles.

The one reducer behind "experts per token by class", "loss by domain", "margin by position" and the
rest. A label is an integer per token; `rank_bin` of `moejax.analysis.metrics`, `bin_of` and
`quantile_edges` make one of frequency, position, loss or difficulty.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from moejax.analysis.metrics import divide
from moejax.analysis.routing.tables import Floats, Ints, per_token

QUANTILES = (0.5, 0.95)


@dataclasses.dataclass(frozen=True)
class Grouped:
    """A quantity reduced over the tokens of each group; arrays `[..., G]` in the leading axes of
    the quantity.

    Attributes:
      tokens: tokens with a finite value.
      sequences: sequences that have such a token: the independent observations.
      mean: mean over tokens, each token weighing the same; NaN in an empty group.
      half_width: half of the 95 % interval of the mean; NaN with fewer than 2 sequences.
      quantile: `[..., G, Q]`, over tokens, interpolated linearly.
      quantiles: the Q probabilities.
    """

    tokens: Ints
    sequences: Ints
    mean: Floats
    half_width: Floats
    quantile: Floats
    quantiles: tuple[float, ...]


def reduce_groups(
    value: NDArray,
    group_T: NDArray,
    groups: int,
    sequence_T: NDArray,
    quantiles: tuple[float, ...] = QUANTILES,
) -> Grouped:
    """Reduces `value` (`[T]`, `[L, T]`, ...) over the tokens of each group 0..groups-1.

    Mean m = sum_t y_t / n, the same weight for every token. Its interval takes the S sequences, not
    the tokens, for independent draws (the cluster-robust variance of a ratio, Cochran 1977 6.4;
    Liang & Zeger 1986): with r_s = sum over the group's tokens of sequence s of (y_t - m),

        half_width = t(0.975, S-1) * sqrt(S / (S-1) * sum_s r_s^2) / n

    It is wider than 1.96 s / sqrt(n) wherever neighbours are alike. With few sequences, or one that
    holds most of the tokens, it is still somewhat too narrow: look at `sequences`. Two groups of
    the same sequences are not independent of each other.

    Tokens whose value is not finite, or whose group is outside 0..groups-1, are left out of every
    number. Time and memory: one layer at a time, one sort of the values for the quantiles.

    Raises:
      ValueError: lengths differ, or a quantile is outside 0..1.
    """
    value = np.asarray(value)
    if not all(0 <= q <= 1 for q in quantiles):
        raise ValueError(f"quantiles {quantiles} are not within 0..1")
    tokens = value.shape[-1] if value.ndim else 0
    group = per_token(group_T, tokens, "group_T")
    sequence = per_token(sequence_T, tokens, "sequence_T")
    inside = np.flatnonzero((group >= 0) & (group < groups))
    group = group[inside].astype(np.int64)
    cell_N, group_C = _cells(group, sequence[inside])
    # In order of groups, so that the tokens of each are a slice.
    order = np.argsort(group, kind="stable")
    edges = np.searchsorted(group[order], np.arange(groups + 1))
    lead = value.shape[:-1]
    flat = value.reshape(math.prod(lead), tokens)
    count, sequences = (np.zeros((len(flat), groups), np.int64) for _ in range(2))
    mean, half = (np.full((len(flat), groups), np.nan) for _ in range(2))
    quantile = np.full((len(flat), groups, len(quantiles)), np.nan)
    for row, all_T in enumerate(flat):
        value_N = all_T[inside].astype(np.float64)
        count[row], sequences[row], mean[row], half[row] = _mean(value_N, cell_N, group_C, groups)
        value_N = value_N[order]
        for g in range(groups if quantiles else 0):
            quantile[row, g] = _quantiles(value_N[edges[g] : edges[g + 1]], quantiles)
    return Grouped(
        count.reshape(*lead, groups),
        sequences.reshape(*lead, groups),
        mean.reshape(*lead, groups),
        half.reshape(*lead, groups),
        quantile.reshape(*lead, groups, len(quantiles)),
        quantiles,
    )


def reduce_all(
    value: NDArray, sequence_T: NDArray, quantiles: tuple[float, ...] = QUANTILES
) -> Grouped:
    """`reduce_groups` with all tokens in one group: what a layer does on the whole text."""
    return reduce_groups(value, np.zeros(np.shape(sequence_T), np.int64), 1, sequence_T, quantiles)


def sequences_of(position_T: NDArray) -> Ints:
    """Sequence number of each token where a trace has none: a new one starts wherever the position
    does not go on by one. Neighbouring sequences that happen to continue each other become one.
    """
    position = np.asarray(position_T, np.int64)
    starts = np.ones(position.shape, bool)
    starts[1:] = position[1:] != position[:-1] + 1
    return np.cumsum(starts) - 1


def quantile_edges(value_T: NDArray, bins: int) -> Floats:
    """Edges of at most `bins` groups of about equally many tokens (fewer where values are equal),
    from the smallest to the largest finite value; empty without one. For loss or difficulty.
    """
    value = np.asarray(value_T, np.float64)
    value = value[np.isfinite(value)]
    if not value.size:
        return np.zeros(0)
    edges = np.unique(np.quantile(value, np.linspace(0, 1, bins + 1)))
    return np.repeat(edges, 2) if len(edges) == 1 else edges


def bin_of(value_T: ArrayLike, edges: NDArray) -> Ints:
    """Group of each token: i for edges[i] <= value < edges[i+1], the last edge included; -1 outside
    and for NaN."""
    value, last = np.asarray(value_T, np.float64), len(edges) - 1
    if last < 1:
        return np.full(value.shape, -1, np.int64)
    found = np.searchsorted(edges, value, "right") - 1
    found = np.where(value == edges[-1], last - 1, found)
    return np.where((found >= 0) & (found < last) & ~np.isnan(value), found, -1).astype(np.int64)


def distribution(value_LT: NDArray, edges: NDArray) -> Ints:
    """Tokens by value, int64 `[L, B]`: how many are in each bin of `bin_of` (tokens outside or NaN
    in none). Of active experts with edges 0, 1, 2, ...: how many tokens used so many experts.
    """
    bins = max(len(edges) - 1, 0)
    found = [np.bincount(bin_of(v, edges) + 1, minlength=bins + 1)[1:] for v in value_LT]
    return np.asarray(found, np.int64).reshape(len(value_LT), bins)


def _cells(group_N: Ints, sequence_N: NDArray) -> tuple[Ints, Ints]:
    """Numbers the pairs (group, sequence) that occur: pair of each token, group of each pair."""
    order = np.lexsort((sequence_N, group_N))
    new = np.ones(order.size, bool)
    new[1:] = (np.diff(group_N[order]) != 0) | (np.diff(sequence_N[order]) != 0)
    cell = np.empty(order.size, np.int64)
    cell[order] = np.cumsum(new) - 1
    return cell, group_N[order][new]


def _mean(
    value_N: Floats, cell_N: Ints, group_C: Ints, groups: int
) -> tuple[Ints, Ints, Floats, Floats]:
    good = np.isfinite(value_N)
    size_C = np.bincount(cell_N[good], minlength=len(group_C))
    total_C = np.bincount(cell_N[good], value_N[good], minlength=len(group_C))
    count = np.bincount(group_C, size_C, minlength=groups)
    mean = divide(np.bincount(group_C, total_C, minlength=groups), count)
    sequences = np.bincount(group_C[size_C > 0], minlength=groups)
    # Cells without a finite token stand in groups whose mean may be NaN.
    residual_C = np.where(size_C > 0, total_C - mean[group_C] * size_C, 0.0)
    squares = np.bincount(group_C, residual_C**2, minlength=groups)
    factor = divide(sequences, np.maximum(sequences - 1, 0))
    t = np.where(sequences > 1, special.stdtrit(np.maximum(sequences - 1, 1), 0.975), np.nan)
    half = t * divide(np.sqrt(factor * squares), count)
    return count.astype(np.int64), sequences, mean, half


def _quantiles(value_N: Floats, quantiles: tuple[float, ...]) -> Floats | float:
    value_N = value_N[np.isfinite(value_N)]
    return np.quantile(value_N, quantiles) if value_N.size else np.nan
