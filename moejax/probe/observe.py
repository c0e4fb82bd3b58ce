"""What a trace needs to know of one MoE layer: computed where the layer is, returned by it."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from moejax.experts.layer import MoeOutput
from moejax.models.block import Observe
from moejax.routing.contract import RouterInputs

NEED_P = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Thresholds of `need_LTQ`."""
TOLERANCE = 1e-6
"""How far below a threshold a sum of probabilities reaches it: two experts of 0.25 are half."""

Tree = dict[str, Any]


def observer(*, probs: bool) -> Observe:
    """The observation of a layer, `[T, ...]`: `weight_TK` float32, and where the router has scores
    what `distribution` returns.

    Args:
      probs: also the probabilities themselves, `probs_TE` float16.
    """
    return functools.partial(_observe, with_probs=probs)


def _observe(out: MoeOutput, inputs: RouterInputs, *, with_probs: bool) -> Tree:
    del inputs
    found: Tree = {"weight_TK": out.kept.weight_TK.astype(jnp.float32)}
    if out.routing.scores_TE is None:
        return found
    probs_TE = out.routing.probs_TE
    found |= distribution(probs_TE)
    if with_probs:
        found["probs_TE"] = probs_TE.astype(jnp.float16)
    return found


def distribution(probs_TE: jax.Array) -> Tree:
    """Statistics of the rows of a distribution; NaN for a row that is all 0.

    Args:
      probs_TE: float32 `[T, E]`, rows that sum to 1 (or are 0).

    Returns:
      float32: `entropy_T` (nats, `-sum p log p`, 0 log 0 = 0), `top1_T` (the largest), `margin_T`
      (the largest minus the second, which is 0 where there is one expert) and `need_TQ` (the least
      n whose n largest add up to `NEED_P[q]`, less `TOLERANCE`).
    """
    sorted_TE = -jnp.sort(-probs_TE, axis=-1)
    second_T = sorted_TE[:, 1] if probs_TE.shape[1] > 1 else jnp.zeros(probs_TE.shape[0])
    safe_TE = jnp.where(probs_TE > 0, probs_TE, 1.0)
    reached_TE = jnp.cumsum(sorted_TE, axis=-1)
    wanted_Q = jnp.asarray(NEED_P, jnp.float32) - TOLERANCE
    short_TQE = reached_TE[:, None, :] < wanted_Q[:, None]
    need_TQ = jnp.minimum(short_TQE.sum(-1) + 1, probs_TE.shape[1])
    found = {
        "entropy_T": -(probs_TE * jnp.log(safe_TE)).sum(-1),
        "top1_T": sorted_TE[:, 0],
        "margin_T": sorted_TE[:, 0] - second_T,
        "need_TQ": need_TQ.astype(jnp.float32),
    }
    none_T = ~(probs_TE.sum(-1) > 0)
    return {
        name: jnp.where(none_T.reshape(-1, *[1] * (array.ndim - 1)), jnp.nan, array)
        for name, array in found.items()
    }
