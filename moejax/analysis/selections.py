"""Metrics of chosen expert sets: what `[T, K]` tables of two checkpoints, or of one, say.

Tables hold expert ids in descending order of score; ids outside `[0, E)` are empty slots.
Source: OLMoE (Muennighoff et al. 2024, 2409.02060) section 5; methods H.4.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def co_activation(expert_TK: NDArray, num_experts: int, *, adjacent: bool = False) -> Floats:
    """`[E, E]`: share of expert i's tokens that use expert j too, `N_ij / N_i` (eq. 6). 0..1.

    Not symmetric; the diagonal is 0. NaN in the rows of experts without a token.

    Args:
      adjacent: count neighbours in the order of scores only, which is what OLMoE's published
        script does (7 of the 28 pairs of a top-8). `N_i` are the expert's tokens either way.
    """
    slots = expert_TK.shape[1]
    pairs = [(i, j) for i in range(slots) for j in range(slots) if i != j]
    if adjacent:
        pairs = [(i, j) for i, j in pairs if abs(i - j) == 1]
    filled_TK = (expert_TK >= 0) & (expert_TK < num_experts)
    both_EE = np.zeros((num_experts, num_experts))
    for i, j in pairs:
        live_T = filled_TK[:, i] & filled_TK[:, j]
        np.add.at(both_EE, (expert_TK[live_T, i], expert_TK[live_T, j]), 1)
    count_E = np.bincount(expert_TK[filled_TK], minlength=num_experts)[:, None]
    with np.errstate(invalid="ignore"):
        return np.where(count_E > 0, both_EE / np.maximum(count_E, 1), np.nan)


def saturation(expert_TK: NDArray, final_TK: NDArray, num_experts: int) -> float:
    """Share of the final checkpoint's choices that an earlier one makes already (eq. 5). 0..1.

    Mean over tokens of `|E(t) & E(T)| / |E(T)|`; tokens that end without an expert are left out
    (NaN if all are). Choosing at random gives k/E.

    Raises:
      ValueError: the tables are not of the same tokens.
    """
    if len(expert_TK) != len(final_TK):
        raise ValueError(f"tables of {len(expert_TK)} and {len(final_TK)} tokens")
    early_TE, final_TE = (_members(table, num_experts) for table in (expert_TK, final_TK))
    size_T = final_TE.sum(-1)
    if not size_T.any():
        return float("nan")
    shared_T = (early_TE & final_TE).sum(-1)
    return float((shared_T[size_T > 0] / size_T[size_T > 0]).mean())


def _members(expert_TK: NDArray, num_experts: int) -> NDArray[np.bool_]:
    member_TE = np.zeros((len(expert_TK), num_experts + 1), bool)
    inside_TK = np.where((expert_TK >= 0) & (expert_TK < num_experts), expert_TK, num_experts)
    member_TE[np.arange(len(expert_TK))[:, None], inside_TK] = True
    return member_TE[:, :num_experts]
