"""Matching: which expert of one run is which of another, when only the seed differs.

Experts have no names: number 3 of one seed has nothing to do with number 3 of another. Both tables
are of the same tokens in the same order.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from moejax.analysis.routing.pairs import pair_counts
from moejax.analysis.routing.tables import Bools, Floats, Ints, above_chance, check_choices, slots


@dataclasses.dataclass(frozen=True)
class Matching:
    """The best one-to-one matching of experts, by layer.

    Attributes:
      partner_LE: int64 `[L, E]`, for each expert of the first run its partner in the second; -1
        without one (it does not exist, or the second run has fewer).
      overlap: `[L]`, sum over matched pairs of the tokens that use both, over the larger number of
        assignments of the two runs. 0..1; 1: the runs route alike up to names.
      chance: the same, matched anew, with the second run's tokens shuffled (mean over shuffles):
        what the loads, and the freedom to choose the best matching, give by themselves.
    """

    partner_LE: Ints
    overlap: Floats
    chance: Floats

    @property
    def above_chance(self) -> Floats:
        """(overlap - chance) / (1 - chance), `[L]`: 0 chance, 1 alike up to names."""
        return above_chance(self.overlap, self.chance)


def match_experts(
    first_LTK: NDArray,
    first_mask_LE: Bools,
    second_LTK: NDArray,
    second_mask_LE: Bools,
    *,
    permutations: int = 2,
    seed: int = 0,
) -> Matching:
    """Matches experts of two runs by co-usage: the assignment pi that maximises sum_i C_{i,pi(i)},
    C_ij the tokens that use expert i of the first run and j of the second (Hungarian method).

    `overlap` is the sum over max(assignments). No unit, 0..1; chance by shuffling, see `Matching`,
    roughly k/E and more. Bad: at chance, if a claim about "the" experts was made: it holds for one
    seed.

    Source: Kuhn 1955; the use for experts follows neuron matching of networks (Li et al. 2015).

    Raises:
      ValueError: the tables are not of the same layers and tokens.
    """
    first, first_mask = check_choices(first_LTK, first_mask_LE)
    second, second_mask = check_choices(second_LTK, second_mask_LE)
    if first.shape[:2] != second.shape[:2]:
        raise ValueError(
            f"runs of {first.shape[0]} and {second.shape[0]} layers, "
            f"{first.shape[1]} and {second.shape[1]} tokens"
        )
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(first.shape[1]) for _ in range(permutations)]
    partner = np.full(first_mask.shape, -1, np.int64)
    overlap, chance = (np.full(len(first), np.nan) for _ in range(2))
    for layer, (mask_a, mask_b) in enumerate(zip(first_mask, second_mask, strict=True)):
        tables = (first[layer], mask_a, second[layer], mask_b)
        most = max(_assignments(*tables[:2]), _assignments(*tables[2:]))
        if not most:
            continue
        both = pair_counts(*tables)
        ours, theirs = np.flatnonzero(mask_a), np.flatnonzero(mask_b)
        row, column = optimize.linear_sum_assignment(both[np.ix_(ours, theirs)], maximize=True)
        partner[layer, ours[row]] = theirs[column]
        overlap[layer] = both[ours[row], theirs[column]].sum() / most
        dealt = [
            _best(pair_counts(first[layer], mask_a, second[layer][order], mask_b))
            for order in orders
        ]
        chance[layer] = sum(dealt) / len(dealt) / most if dealt else np.nan
    return Matching(partner, overlap, chance)


def relabel(expert_LTK: NDArray, mask_LE: Bools, partner_LE: NDArray, experts: int) -> Ints:
    """The first run's table in the second run's names, int64 `[L, T, K]`; `experts` (an empty slot)
    where an expert has no partner. With it `stability.saturation` compares runs of two seeds.
    """
    expert, mask = check_choices(expert_LTK, mask_LE)
    renamed = np.empty(expert.shape, np.int64)
    for layer, mask_E in enumerate(mask):
        name = np.append(np.where(partner_LE[layer] >= 0, partner_LE[layer], experts), experts)
        renamed[layer] = name[slots(expert[layer], mask_E)]
    return renamed


def _best(both: Ints) -> int:
    row, column = optimize.linear_sum_assignment(both, maximize=True)
    return int(both[row, column].sum())


def _assignments(expert_TK: NDArray, mask_E: Bools) -> int:
    return int((slots(expert_TK, mask_E) < len(mask_E)).sum())
