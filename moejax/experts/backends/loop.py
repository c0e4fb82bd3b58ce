"""The oracle: every expert on every token, one expert after the other. Slow and obvious."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from moejax.experts.spec import ACTIVATIONS, ExpertsSpec, Weights, expert_rows
from moejax.routing.contract import Routing


def loop(x_TD: jax.Array, routing: Routing, weights: Weights, spec: ExpertsSpec) -> jax.Array:
    """`y_t = sum_e combine[t, e] * E_e(x_t)`, `[T, D]` in the dtype of `x_TD`."""
    activation = ACTIVATIONS[spec.activation]
    combine_TE = routing.combine_TE()
    y_TD = jnp.zeros(x_TD.shape, jnp.promote_types(x_TD.dtype, jnp.float32))
    for expert in range(spec.num_experts):
        *into_FD, down_FD = (expert_rows(weights[n], spec, expert) for n in spec.weight_names)
        hidden_TF = activation(*(x_TD @ w_FD.T for w_FD in into_FD))
        y_TD = y_TD + combine_TE[:, expert : expert + 1] * (hidden_TF @ down_FD)
    return y_TD.astype(x_TD.dtype)
