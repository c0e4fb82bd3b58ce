"""Compute: what each token costs, in experts, hidden units, parameters and FLOPs.

Everything here is per token (`[L, T]` or `[T]`), exact and without a chance level; `grouped` turns
it into means, 95th percentiles and intervals by layer, class, frequency, domain, ...
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moejax.analysis.metrics import divide
from moejax.analysis.routing.tables import (
    Bools,
    Floats,
    Ints,
    check_choices,
    exists,
    slots,
    token_blocks,
)


def active_experts(expert_LTK: NDArray, mask_LE: Bools) -> Ints:
    """Experts that compute each token, int64 `[L, T]`: filled slots. 0..K; k for dropless top-k.

    Bad: 0 (the token skipped the layer), or a 95th percentile far above the mean, which is what
    memory and the slowest device are sized for.
    """
    expert, mask = check_choices(expert_LTK, mask_LE)
    active = np.zeros(expert.shape[:2], np.int64)
    for layer, mask_E in enumerate(mask):
        for block in token_blocks(expert.shape[1]):
            active[layer, block] = (slots(expert[layer, block], mask_E) < len(mask_E)).sum(-1)
    return active


def active_width(expert_LTK: NDArray, width_LE: NDArray) -> Ints:
    """Hidden units of routed experts that compute each token, int64 `[L, T]`: sum of the widths of
    its experts. 0..sum of all widths. What FLOPs follow, where experts differ in width.
    """
    width = np.asarray(width_LE)
    expert, mask = check_choices(expert_LTK, exists(width))
    units = np.zeros(expert.shape[:2], np.int64)
    for layer, mask_E in enumerate(mask):
        of_slot = np.append(np.where(mask_E, width[layer], 0), 0).astype(np.int64)
        for block in token_blocks(expert.shape[1]):
            units[layer, block] = of_slot[slots(expert[layer, block], mask_E)].sum(-1)
    return units


def expert_width(active_LT: NDArray, width_LT: NDArray) -> Floats:
    """Mean width of the experts a token chose, width / active, `[L, T]`, hidden units. NaN where it
    has none. Bad only where it is the smallest width for every token: the large experts are idle.
    """
    return divide(width_LT, active_LT)


def token_cost(
    width_LT: NDArray, nominal_width_L: ArrayLike, nominal: float, per_width: ArrayLike
) -> Floats:
    """Cost of each token through the whole model, `[T]`: what the plan says, moved by the widths
    that it really used, nominal + sum_l per_width_l * (width_lt - nominal_width_l).

    With `flops_per_token` and `flops_per_width` of a run's model.json: training FLOPs (3 x
    forward, attention at its mean context). With `active_parameters` and `flops_per_width / 6`:
    active parameters (a weight costs 2 FLOPs forward and 4 backward). Above 0.

    Args:
      width_LT: hidden units of routed experts, `active_width`.
      nominal_width_L: the plan's, `nominal_active_width` of model.json's MoE layers.
      nominal: cost of a token of nominal widths.
      per_width: cost of one hidden unit, a number or `[L]`.
    """
    width = np.asarray(width_LT, np.float64)
    extra = width - np.asarray(nominal_width_L, np.float64)[:, None]
    return nominal + (np.broadcast_to(per_width, len(width))[:, None] * extra).sum(0)


def work_share(count_LE: NDArray, width_LE: NDArray) -> Floats:
    """Share of a layer's expert FLOPs done by each expert, n_i w_i / sum_j n_j w_j, `[L, E]`. No
    unit, 0..1, sums to 1. Equal to the load share where all widths are equal.

    Bad: far from w_i / sum_j w_j, the share of an expert that is loaded as it is sized. NaN where
    there is no expert or no work.
    """
    mask = exists(width_LE)
    work = np.where(mask, np.asarray(count_LE, np.float64) * np.asarray(width_LE), 0.0)
    return np.where(mask, divide(work, work.sum(-1, keepdims=True)), np.nan)
