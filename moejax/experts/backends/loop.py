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
        gate_FD = expert_rows(weights["gate_NUD"], spec, expert)
        up_FD = expert_rows(weights["up_NUD"], spec, expert)
        down_FD = expert_rows(weights["down_NUD"], spec, expert)
        hidden_TF = activation(x_TD @ gate_FD.T, x_TD @ up_FD.T)
        y_TD = y_TD + combine_TE[:, expert : expert + 1] * (hidden_TF @ down_FD)
    return y_TD.astype(x_TD.dtype)
