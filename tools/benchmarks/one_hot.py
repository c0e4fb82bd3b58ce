"""One-hot capacity dispatch, for comparison only: GShard's einsums (Lepikhin et al. 2020, alg. 1).

It is NOT dropless. Each expert takes at most `C = ceil(factor k S / E)` tokens of a group of S;
what does not fit is lost. Dispatch and combine are products with `[G, S, E, C]` masks.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

GROUP = 512
FACTOR = 1.25
NAME = f"one-hot capacity {FACTOR} (drops)"

Weights = dict[str, jax.Array]


def one_hot_moe(
    weights: Weights, x_TD: jax.Array, *, k: int, factor: float = FACTOR, group: int = GROUP
) -> jax.Array:
    """A top-k SwiGLU layer with renormalised weights, `[T, D]`.

    Args:
      weights: `gate, up, down` `[E, F, D]` and `router` `[D, E]`.
      x_TD: tokens; T a multiple of `group`, or less than it.
      k: experts that each token wants.
      factor: room of an expert over its equal share.
      group: S, tokens that are dispatched together.
    """
    num_experts = weights["router"].shape[-1]
    group = min(group, x_TD.shape[0])
    capacity = math.ceil(factor * k * group / num_experts)
    x_GSD = x_TD.reshape(-1, group, x_TD.shape[-1])
    probs_GSE = jax.nn.softmax(x_GSD @ weights["router"])
    weight_GSK, expert_GSK = jax.lax.top_k(probs_GSE, k)
    weight_GSK = weight_GSK / weight_GSK.sum(-1, keepdims=True)
    # First choices before second ones, then in order of the tokens.
    one_hot_GSKE = jax.nn.one_hot(expert_GSK, num_experts, dtype=x_TD.dtype)
    queue = one_hot_GSKE.swapaxes(1, 2).reshape(-1, k * group, num_experts)
    place = (jnp.cumsum(queue, axis=1) - queue).reshape(-1, k, group, num_experts).swapaxes(1, 2)
    place_GSK = (place * one_hot_GSKE).sum(-1).astype(jnp.int32)
    slot_GSKC = jax.nn.one_hot(place_GSK, capacity, dtype=x_TD.dtype)  # beyond it: all zeros
    dispatch_GSEC = jnp.einsum("gske,gskc->gsec", one_hot_GSKE, slot_GSKC)
    combine_GSEC = jnp.einsum("gsk,gske,gskc->gsec", weight_GSK, one_hot_GSKE, slot_GSKC)
    rows_EGCD = jnp.einsum("gsec,gsd->egcd", dispatch_GSEC, x_GSD)
    hidden_EGCF = jax.nn.silu(jnp.einsum("egcd,efd->egcf", rows_EGCD, weights["gate"]))
    hidden_EGCF = hidden_EGCF * jnp.einsum("egcd,efd->egcf", rows_EGCD, weights["up"])
    out_EGCD = jnp.einsum("egcf,efd->egcd", hidden_EGCF, weights["down"])
    return jnp.einsum("gsec,egcd->gsd", combine_GSEC, out_EGCD).reshape(x_TD.shape)
