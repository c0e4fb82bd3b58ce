"""Co-activation: which experts serve the same token.

Two definitions are in use, and they differ. `co_activation` counts every pair of a token's experts,
as OLMoE's text defines it and FLAME-MoE's code counts; `co_activation_adjacent_ranks` counts only
neighbours in the order of scores, as OLMoE's published script does (7 of the 28 pairs of a top-8).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moejax.analysis.metrics import divide
from moejax.analysis.routing.pairs import by_product, pair_counts
from moejax.analysis.routing.tables import (
    BLOCK_CELLS,
    Bools,
    Floats,
    Ints,
    check_choices,
    slots,
    token_blocks,
)


def co_activation(expert_LTK: NDArray, mask_LE: Bools) -> Floats:
    """Share of expert i's tokens that use expert j too, N_ij / N_i, `[L, E, E]`, all pairs.

    No unit, 0..1; a row sums to k - 1 for top-k; not symmetric; the diagonal is 0. Chance for even
    loads (k-1)/(E-1) (`chance_co_activation`), for given loads about n_j / T. Bad: pairs near 1 in
    both directions (two experts that are one), or a layer in which all rows are alike. NaN in the
    rows of experts without a token, and in rows and columns that do not exist.

    Source: OLMoE (2409.02060) eq. 6.
    """
    return _shares(expert_LTK, mask_LE, adjacent=False)


def co_activation_adjacent_ranks(expert_LTK: NDArray, mask_LE: Bools) -> Floats:
    """As `co_activation`, but N_ij counts only tokens in which i and j are in neighbouring slots,
    both filled; N_i are all tokens of i. `[L, E, E]`, 0..1; a row sums to less than 2.

    To compare with heat maps made by OLMoE's script (`more_itertools.pairwise`), and for nothing
    else: it depends on the order of scores and misses most pairs.
    """
    return _shares(expert_LTK, mask_LE, adjacent=True)


def chance_co_activation(active_LT: NDArray, experts_L: ArrayLike) -> Floats:
    """Co-activation of any two experts if tokens draw theirs at random and evenly, `[L]`:
    mean k(k-1) / (mean k * (E-1)), which is (k-1)/(E-1) for fixed k. Exact. No unit, 0..1; NaN for
    E < 2.

    Args:
      active_LT: k of each token, `compute.active_experts`.
    """
    active = np.asarray(active_LT, np.float64)
    others = np.asarray(experts_L, np.float64) - 1.0
    return divide((active * (active - 1)).sum(-1), active.sum(-1) * others)


def chance_co_activation_adjacent_ranks(active_LT: NDArray, experts_L: ArrayLike) -> Floats:
    """The same for neighbouring ranks, `[L]`: mean 2(k-1) / (mean k * (E-1)). No unit, 0..1.

    Exact for tokens whose slots are filled from the first on: an empty one in between hides a pair.
    """
    active = np.asarray(active_LT, np.float64)
    others = np.asarray(experts_L, np.float64) - 1.0
    return divide(2 * np.maximum(active - 1, 0).sum(-1), active.sum(-1) * others)


def lift(co_activation_LEE: NDArray, count_LE: NDArray, tokens: int) -> Floats:
    """Co-activation over what independent experts of these loads would have, P(j|i) / (n_j / T),
    `[L, E, E]`. No unit, 0 and up; 1 is independence. Symmetric.

    Random top-k is a little below 1, at E(k-1) / (k(E-1)), because a token's experts exclude each
    other. Use it where loads are uneven: a busy expert is everybody's partner. Bad: above about
    E / (2k) in both directions (always together). NaN where j has no token.
    """
    return divide(co_activation_LEE, np.asarray(count_LE)[:, None, :] / tokens)


def _both(expert_TK: NDArray, mask_E: Bools, *, adjacent: bool) -> Ints:
    """N_ij of one layer, int64 `[E, E]`, symmetric with a zero diagonal."""
    experts, slot_count = len(mask_E), expert_TK.shape[1]
    pairs = [(i, j) for i in range(slot_count) for j in range(i + 1, slot_count)]
    if adjacent:
        pairs = [(i, j) for i, j in pairs if j == i + 1]
    if not adjacent and by_product(len(pairs), experts, experts):
        table = pair_counts(expert_TK, mask_E, expert_TK, mask_E)
    else:
        table = _of_slots(expert_TK, mask_E, np.asarray(pairs, np.int64).reshape(-1, 2))
        table = table + table.T
    np.fill_diagonal(table, 0)
    return table


def _of_slots(expert_TK: NDArray, mask_E: Bools, pair_P2: Ints) -> Ints:
    """Tokens by the experts in a pair of slots, summed over the pairs: half of what `pair_counts`
    would count."""
    width = len(mask_E) + 1
    both = np.zeros(width * width, np.int64)
    for block in token_blocks(len(expert_TK)):
        ids = np.ascontiguousarray(slots(expert_TK[block], mask_E).T)
        step = max(1, BLOCK_CELLS // ids.shape[1])
        for start in range(0, len(pair_P2), step):
            first, second = pair_P2[start : start + step].T
            both += np.bincount((ids[first] * width + ids[second]).ravel(), minlength=len(both))
    return both.reshape(width, width)[:-1, :-1]


def _shares(expert_LTK: NDArray, mask_LE: Bools, *, adjacent: bool) -> Floats:
    expert, mask = check_choices(expert_LTK, mask_LE)
    share = np.full((*mask.shape, mask.shape[1]), np.nan)
    for layer, mask_E in enumerate(mask):
        count_E = np.zeros(len(mask_E) + 1)
        for block in token_blocks(expert.shape[1]):
            ids = slots(expert[layer, block], mask_E).ravel()
            count_E += np.bincount(ids, minlength=len(count_E))
        both = _both(expert[layer], mask_E, adjacent=adjacent)
        share[layer] = np.where(mask_E, divide(both, count_E[:-1, None]), np.nan)
    return share
