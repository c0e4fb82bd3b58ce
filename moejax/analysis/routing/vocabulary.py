"""Vocabulary specialisation: how far a token id fixes the expert."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from moejax.analysis.metrics import divide
from moejax.analysis.routing.information import PERMUTATIONS, shuffled
from moejax.analysis.routing.tables import (
    Bools,
    Floats,
    Ints,
    Rows,
    above_chance,
    check_choices,
    per_token,
    tables,
)

FLOOR = 10


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Favourite expert of each frequent token id (`V` of them), and its mean share, by layer.

    Attributes:
      id_V, count_V: ids with at least `floor` tokens, ascending, and their tokens.
      favourite_LV: the expert that the id uses most (lowest number at a tie); -1 without one.
      share_LV: its share of the id's assignments; NaN without one.
      observed: mean of share over ids, `[L]`.
      chance: the same with ids dealt to tokens at random (mean over shuffles), `[L]`. The share of
        a favourite is a maximum: 10 tokens over 64 even experts give about 0.16, not 1/64.
    """

    id_V: Ints
    count_V: Ints
    favourite_LV: Ints
    share_LV: Floats
    observed: Floats
    chance: Floats

    @property
    def above_chance(self) -> Floats:
        """(observed - chance) / (1 - chance), `[L]`: 0 chance; 1 each id has one expert (only where
        tokens have one: of first choices)."""
        return above_chance(self.observed, self.chance)


def vocabulary_specialisation(
    expert_LTK: NDArray,
    mask_LE: Bools,
    id_T: NDArray,
    *,
    floor: int = FLOOR,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Vocabulary:
    """Mean over token ids x of max_e N_xe / N_x, N_xe the assignments of x to e, N_x their sum.

    No unit, 1/E..1 (at most 1/k where tokens have k experts). Chance by shuffling ids over tokens,
    see `Vocabulary`; subtract it before comparing runs that differ in E, in text or in its length.
    Bad: `share` near 1 in deep layers (routing by token id alone), or at chance in all.

    `id_T` are input ids, target ids or predicted ids: input is high in early layers, predicted in
    late ones. Source: OLMoE (2409.02060) eq. 8 with all slots; its published script is this with
    first choices, `expert_LTK[:, :, :1]`, and floor 10.

    Args:
      floor: ids with fewer tokens (of any layer) are left out; negative ids always are.
    """
    expert, mask = check_choices(expert_LTK, mask_LE)
    label = per_token(id_T, expert.shape[1], "id_T").astype(np.int64)
    value, place, count = np.unique(label, return_inverse=True, return_counts=True)
    frequent = (value >= 0) & (count >= floor)
    label = np.where(frequent[place], label, -1)
    rows = Rows.of(label)
    shuffles = [Rows.of(dealt) for dealt in shuffled(label, None, permutations, seed)]
    favourite = np.full((len(mask), len(rows)), -1, np.int64)
    share = np.full((len(mask), len(rows)), np.nan)
    chance = np.full(len(mask), np.nan)
    for layer, mask_E in enumerate(mask):
        favourite[layer], share[layer] = _favourites(expert[layer], mask_E, rows)
        dealt = [_mean(_favourites(expert[layer], mask_E, r)[1]) for r in shuffles]
        chance[layer] = np.mean(dealt or [np.nan])
    observed = np.asarray([_mean(of_layer) for of_layer in share], np.float64)
    return Vocabulary(rows.value_R, rows.size_R, favourite, share, observed, chance)


def _favourites(expert_TK: NDArray, mask_E: Bools, rows: Rows) -> tuple[Ints, Floats]:
    favourite = np.full(len(rows), -1, np.int64)
    share = np.full(len(rows), np.nan)
    for block, part in tables(expert_TK, mask_E, rows):
        total = part.sum(1)
        if part.shape[1]:
            best = part.argmax(1)
            favourite[block] = np.where(total > 0, best, -1)
            share[block] = divide(part[np.arange(len(part)), best], total)
    return favourite, share


def _mean(share_V: Floats) -> float:
    known = share_V[~np.isnan(share_V)]
    return float(known.mean()) if known.size else float("nan")
