"""What all routing metrics read: slots, counts, and tables of rows (labels, units) by experts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moejax.analysis.metrics import divide

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

BLOCK_TOKENS = 1 << 15  # tokens handled at once: temporary arrays stay within a few MiB
BLOCK_CELLS = 1 << 20  # cells of a table handled at once


def exists(width_LE: NDArray) -> Bools:
    """`mask_LE` of a trace's `width_LE`: an expert of width -1 does not exist (one of 0 does)."""
    return np.asarray(width_LE) >= 0


def above_chance(observed: ArrayLike, chance: ArrayLike) -> Floats:
    """(observed - chance) / (1 - chance), for shares: 0 at chance, 1 at the most, negative below
    chance; NaN where chance is 1. Makes runs of different E and k comparable (as Cohen's kappa)."""
    chance = np.asarray(chance, np.float64)
    return divide(np.asarray(observed, np.float64) - chance, 1.0 - chance)


def check_routing(routing_LTX: NDArray, mask_LE: NDArray) -> tuple[NDArray, Bools]:
    """The arguments as arrays, if they are choices `[L, T, K]` or probabilities `[L, T, E]` of the
    layers and experts of `mask_LE`.

    Raises:
      ValueError: of another form.
    """
    routing, mask = np.asarray(routing_LTX), np.asarray(mask_LE, bool)
    if mask.ndim != 2 or routing.ndim != 3 or len(routing) != len(mask):
        raise ValueError(
            f"routing {routing.shape} is not [L, T, K] of the layers of mask_LE {mask.shape}"
        )
    if routing.dtype.kind == "f":
        if routing.shape[2] != mask.shape[1]:
            raise ValueError(
                f"probabilities of {routing.shape[2]} experts, mask_LE has {mask.shape[1]}"
            )
    elif routing.dtype.kind not in "iu":
        raise ValueError(f"routing of {routing.dtype}; expected integers (choices) or floats")
    return routing, mask


def check_choices(expert_LTK: NDArray, mask_LE: NDArray) -> tuple[NDArray, Bools]:
    """As `check_routing`, of choices only."""
    expert, mask = check_routing(expert_LTK, mask_LE)
    if expert.dtype.kind == "f":
        raise ValueError(f"expert ids of {expert.dtype}; expected integers")
    return expert, mask


def per_token(array_T: ArrayLike, tokens: int, name: str) -> NDArray[Any]:
    """The array, if it is `[T]`.

    Raises:
      ValueError: it is not.
    """
    array = np.asarray(array_T)
    if array.shape != (tokens,):
        raise ValueError(f"{name} {array.shape} is not of {tokens} tokens")
    return array


def slots(expert_TK: NDArray, mask_E: Bools) -> NDArray[np.intp]:
    """Expert of each slot, `E` where the slot is empty."""
    experts = len(mask_E)
    place = np.where(mask_E, np.arange(experts), experts)
    if expert_TK.dtype == np.uint16:  # what traces hold: one look-up
        every_id = np.full(1 << 16, experts, np.intp)
        every_id[:experts] = place[: 1 << 16]
        return every_id[expert_TK]
    # Wrapped around or not, what is no expert ends below 0 or at `experts` or above.
    ids = np.minimum(np.asarray(expert_TK).astype(np.intp), experts)
    return np.append(place, experts)[np.where(ids < 0, experts, ids)]


def members(expert_TK: NDArray, mask_E: Bools) -> Bools:
    """`[T, E]`: does the token use the expert?"""
    member = np.zeros((len(expert_TK), len(mask_E) + 1), bool)
    member[np.arange(len(expert_TK))[:, None], slots(expert_TK, mask_E)] = True
    return member[:, :-1]


def shared(first_TK: NDArray, second_TK: NDArray, experts: int) -> Ints:
    """Experts that two sets have in common, `[T]`. Both are tables of `slots`."""
    # Sorted together, a common expert stands beside itself; empty slots must not meet.
    both = np.concatenate([first_TK, second_TK], 1).astype(np.int32)
    both[:, first_TK.shape[1] :][second_TK == experts] = experts + 1
    both.sort(1)
    return ((both[:, 1:] == both[:, :-1]) & (both[:, 1:] < experts)).sum(1)


def token_blocks(tokens: int) -> Iterator[slice]:
    """Slices that cover `tokens`."""
    for start in range(0, tokens, BLOCK_TOKENS):
        yield slice(start, min(start + BLOCK_TOKENS, tokens))


def counts(expert_LTK: NDArray, mask_LE: NDArray) -> Ints:
    """Assignments of each expert, int64 `[L, E]`: n_i = #{(t, k) : expert_tk = i}.

    Equals the number of tokens that use the expert, since a token names it at most once.
    """
    expert, mask = check_choices(expert_LTK, mask_LE)
    total = np.zeros(mask.shape, np.int64)
    for layer, mask_E in enumerate(mask):
        for block in token_blocks(expert.shape[1]):
            ids = slots(expert[layer, block], mask_E).ravel()
            total[layer] += np.bincount(ids, minlength=len(mask_E) + 1)[:-1]
    return total


@dataclasses.dataclass(frozen=True)
class Rows:
    """Tokens sorted by a label: row `r` holds `token_N[start_R1[r] : start_R1[r + 1]]`.

    Attributes:
      value_R: the labels that occur, ascending.
      token_N: tokens with a label, row after row, in order within a row.
      start_R1: int64 `[R + 1]`.
    """

    value_R: Ints
    token_N: Ints
    start_R1: Ints

    @classmethod
    def of(cls, label_T: NDArray) -> Rows:
        """Rows of the labels that are not negative; tokens of negative ones are left out."""
        label = np.asarray(label_T, np.int64)
        has = np.flatnonzero(label >= 0)
        label = label[has]
        # NumPy sorts 16-bit integers by radix, several times faster.
        key = label.astype(np.uint16) if label.max(initial=0) < 1 << 16 else label
        order = np.argsort(key, kind="stable")
        label = label[order]
        start = np.flatnonzero(np.append(True, np.diff(label) != 0)) if label.size else order
        return cls(label[start], has[order], np.append(start, label.size))

    @property
    def size_R(self) -> Ints:
        """Tokens of each row."""
        return np.diff(self.start_R1)

    def __len__(self) -> int:
        return len(self.value_R)

    def row_T(self, tokens: int) -> Ints:
        """Row of each of `tokens` tokens, -1 where it has none."""
        row = np.full(tokens, -1, np.int64)
        row[self.token_N] = np.repeat(np.arange(len(self)), self.size_R)
        return row


def tables(
    routing_TX: NDArray, mask_E: Bools, rows: Rows, together: int = 1
) -> Iterator[tuple[slice, NDArray]]:
    """Sums by row and expert of one layer, in blocks of rows: (rows of the block, table `[r, E]`).

    Of choices (integers) the table counts assignments; of probabilities (floats `[T, E]`) it adds
    them up, those of tokens with a NaN left out. A block holds a multiple of `together` rows.
    """
    experts = len(mask_E)
    step = max(1, BLOCK_CELLS // max(experts * together, 1)) * together
    for first in range(0, len(rows), step):
        last = min(first + step, len(rows))
        low, high = rows.start_R1[first], rows.start_R1[last]
        token_N = rows.token_N[low:high]
        row_N = np.repeat(np.arange(last - first), rows.size_R[first:last])
        add = _sums if routing_TX.dtype.kind == "f" else _counts
        yield slice(first, last), add(routing_TX, mask_E, token_N, row_N, last - first)


def table(routing_TX: NDArray, mask_E: Bools, rows: Rows) -> Floats:
    """All blocks of `tables` in one array `[R, E]`: for labels that are few."""
    whole = np.zeros((len(rows), len(mask_E)))
    for block, part in tables(routing_TX, mask_E, rows):
        whole[block] = part
    return whole


def _counts(
    expert_TK: NDArray, mask_E: Bools, token_N: Ints, row_N: Ints, rows: int
) -> NDArray[np.int64]:
    width = len(mask_E) + 1
    total = np.zeros(rows * width, np.int64)
    # A block with few rows may hold any number of tokens.
    for part in token_blocks(len(token_N)):
        cell = slots(expert_TK[token_N[part]], mask_E) + row_N[part, None] * width
        total += np.bincount(cell.ravel(), minlength=rows * width)
    return total.reshape(rows, width)[:, :-1]


def _sums(
    probs_TE: NDArray, mask_E: Bools, token_N: Ints, row_N: Ints, rows: int
) -> NDArray[np.float64]:
    total = np.zeros((rows, len(mask_E)))
    step = max(1, BLOCK_CELLS // max(len(mask_E), 1))
    for start in range(0, len(token_N), step):
        part = slice(start, start + step)
        values = np.where(mask_E, probs_TE[token_N[part]].astype(np.float64), 0.0)
        values[np.isnan(values).any(1)] = 0.0
        start_S = np.flatnonzero(np.append(True, np.diff(row_N[part]) != 0))
        total[row_N[part][start_S]] += np.add.reduceat(values, start_S, axis=0)
    return total
