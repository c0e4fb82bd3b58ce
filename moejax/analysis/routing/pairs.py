"""Pairs: in how many tokens an expert of one table meets one of another, for all pairs at once.

Of one layer: a table is `[T, K]`, as `tables.slots` reads it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moejax.analysis.routing.tables import (
    BLOCK_CELLS,
    Bools,
    Floats,
    Ints,
    members,
    slots,
    token_blocks,
)

# Counting one pair of slots costs as much as so many multiply-adds of a matrix product.
PAIR_COST = 80


def by_product(pairs: int, first_experts: int, second_experts: int) -> bool:
    """Whether a matrix product beats counting so many pairs of slots per token: it does where a
    token may use all experts (top-p), and slots are many."""
    return pairs * PAIR_COST > first_experts * second_experts


def pair_counts(first_TK: NDArray, mask_A: Bools, second_TK: NDArray, mask_B: Bools) -> Ints:
    """Tokens that use expert i of the first table and j of the second, int64 `[A, B]`."""
    a, b = len(mask_A), len(mask_B)
    if by_product(first_TK.shape[1] * second_TK.shape[1], a, b):
        total = np.zeros((a, b))
        for block in token_blocks(len(first_TK)):
            # Exact in float32: sums of at most 2^15 ones.
            member_a = members(first_TK[block], mask_A).astype(np.float32)
            member_b = members(second_TK[block], mask_B).astype(np.float32)
            total += member_a.T @ member_b
        return total.astype(np.int64)
    count = np.zeros((a + 1) * (b + 1), np.int64)
    for block in token_blocks(len(first_TK)):
        first, second = slots(first_TK[block], mask_A), slots(second_TK[block], mask_B)
        for part in _slot_blocks(first, second):
            cell = first[:, part, None] * (b + 1) + second[:, None]
            count += np.bincount(cell.ravel(), minlength=len(count))
    return count.reshape(a + 1, b + 1)[:-1, :-1]


def pair_shares(first_TK: NDArray, mask_A: Bools, second_TK: NDArray, mask_B: Bools) -> Floats:
    """Sum over tokens of [i in A] [j in B] / (|A| |B|), `[A, B]`: each token that has an expert in
    both tables adds 1 in all."""
    a, b = len(mask_A), len(mask_B)
    product = by_product(first_TK.shape[1] * second_TK.shape[1], a, b)
    total = np.zeros((a, b)) if product else np.zeros((a + 1) * (b + 1))
    for block in token_blocks(len(first_TK)):
        first, second = slots(first_TK[block], mask_A), slots(second_TK[block], mask_B)
        weight_a, weight_b = _even_weights(first, a), _even_weights(second, b)
        if product:
            member_a = members(first_TK[block], mask_A) * weight_a.max(1, initial=0)[:, None]
            member_b = members(second_TK[block], mask_B) * weight_b.max(1, initial=0)[:, None]
            total += member_a.T @ member_b
            continue
        for part in _slot_blocks(first, second):
            cell = first[:, part, None] * (b + 1) + second[:, None]
            weight = weight_a[:, part, None] * weight_b[:, None]
            total += np.bincount(cell.ravel(), weight.ravel(), len(total))
    return total if product else total.reshape(a + 1, b + 1)[:-1, :-1]


def _slot_blocks(first_TK: NDArray, second_TK: NDArray) -> list[slice]:
    """Slices of the first table's slots that make a bounded number of pairs with the second's."""
    step = max(1, BLOCK_CELLS // max(1, second_TK.size))
    return [slice(start, start + step) for start in range(0, first_TK.shape[1], step)]


def _even_weights(ids_TK: NDArray, experts: int) -> Floats:
    """1 / |A_t| in filled slots, 0 in empty ones."""
    filled = ids_TK < experts
    return filled / np.maximum(filled.sum(1, keepdims=True), 1)
