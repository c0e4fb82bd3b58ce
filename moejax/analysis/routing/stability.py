"""Stability: do the same tokens go to the same experts at two checkpoints?

Both tables are of the same tokens in the same order (one text, traced with two checkpoints of one
run). For runs of different seeds, match their experts first (`matching`).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from moejax.analysis.metrics import divide
from moejax.analysis.routing.tables import (
    Bools,
    Floats,
    Ints,
    check_choices,
    shared,
    slots,
    token_blocks,
)


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Mean agreement of two tables by layer, all `[L]`, with two chance levels.

    Attributes:
      tokens: tokens that have an expert in the later table, over which all means are taken.
      observed: what was measured.
      chance_uniform: expected if the earlier table chose as many experts as it did, at random.
      chance_load: expected if its rows were dealt to the tokens at random: both checkpoints keep
        their loads, and nothing else is shared. Higher, the less even the loads are.
    """

    tokens: Ints
    observed: Floats
    chance_uniform: Floats
    chance_load: Floats


def overlap(expert_LTK: NDArray, final_LTK: NDArray, mask_LE: Bools) -> Floats:
    """Share of each token's final choices that the earlier table has too, |A & B| / |B|, `[L, T]`.

    What `saturation` averages, for grouping. No unit, 0..1; NaN where the final one has no expert.

    Raises:
      ValueError: the tables are not of the same layers and tokens.
    """
    early, final, mask = _pair(expert_LTK, final_LTK, mask_LE)
    share = np.full(early.shape[:2], np.nan)
    for layer, mask_E in enumerate(mask):
        for block in token_blocks(early.shape[1]):
            before, after = (slots(table[layer, block], mask_E) for table in (early, final))
            hits = shared(before, after, len(mask_E))
            share[layer, block] = divide(hits, (after < len(mask_E)).sum(-1))
    return share


def saturation(expert_LTK: NDArray, final_LTK: NDArray, mask_LE: Bools) -> Agreement:
    """Router saturation, (1/T) sum_t |E_t(early) & E_t(final)| / |E_t(final)|, by layer.

    No unit, 0..1; 1: the early checkpoint makes every final choice. Chance: k/E (`chance_uniform`:
    mean of |A|/E) and, exactly, sum_i a_i b_i of the two tables (`chance_load`: a_i the share of
    tokens that use expert i early, b_i the mean over tokens of [i in B] / |B|);
    `tables.above_chance` takes it out. Bad: still low late in training (routing has not settled),
    or high within the first per cent (it never moved: look at the load too). Tokens that end
    without an expert are left out.

    Top-1 saturation: pass `[:, :, :1]` of both. Source: OLMoE (2409.02060) eq. 5.

    Raises:
      ValueError: the tables are not of the same layers and tokens.
    """
    early, final, mask = _pair(expert_LTK, final_LTK, mask_LE)
    found = [_layer(early[layer], final[layer], mask_E) for layer, mask_E in enumerate(mask)]
    tokens, *rest = np.asarray(found, np.float64).reshape(-1, 4).T
    return Agreement(tokens.astype(np.int64), *rest)


def churn(before_LTK: NDArray, after_LTK: NDArray, mask_LE: Bools) -> Agreement:
    """Share of a token's choices that are new since the checkpoint before, 1 - `saturation`.

    No unit, 0..1; 0: nothing moved. Chance 1 - k/E, and exactly under the loads, as in
    `saturation`. Divide by the tokens or steps in between before you compare intervals of different
    length. Bad: no decline as the learning rate falls.
    """
    same = saturation(before_LTK, after_LTK, mask_LE)
    return Agreement(
        same.tokens, 1.0 - same.observed, 1.0 - same.chance_uniform, 1.0 - same.chance_load
    )


def _pair(early: NDArray, final: NDArray, mask: NDArray) -> tuple[NDArray, NDArray, Bools]:
    early, mask = check_choices(early, mask)
    final, _ = check_choices(final, mask)
    if early.shape[:2] != final.shape[:2]:
        raise ValueError(f"tables of {early.shape[1]} and {final.shape[1]} tokens")
    return early, final, mask


def _layer(early_TK: NDArray, final_TK: NDArray, mask_E: Bools) -> tuple[float, ...]:
    """Tokens, observed, and the two chance levels of one layer."""
    experts = len(mask_E)
    tokens, hits = 0, 0.0
    used_E, weight_E = np.zeros(experts), np.zeros(experts)
    for block in token_blocks(len(early_TK)):
        after = slots(final_TK[block], mask_E)
        size = (after < experts).sum(-1)
        kept = size > 0
        before, after, size = slots(early_TK[block], mask_E)[kept], after[kept], size[kept]
        hits += (shared(before, after, experts) / size).sum()
        tokens += len(size)
        used_E += np.bincount(before.ravel(), minlength=experts + 1)[:-1]
        each = np.broadcast_to(1.0 / size[:, None], after.shape)
        weight_E += np.bincount(after.ravel(), each.ravel(), experts + 1)[:-1]
    if not tokens:
        return 0.0, np.nan, np.nan, np.nan
    uniform = used_E.sum() / tokens / mask_E.sum()
    return tokens, hits / tokens, uniform, float(used_E @ weight_E) / tokens**2
