"""What every expert would do with every token: the ground truth of MoEfication's selection."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from moejax.experts.spec import ACTIVATIONS, ExpertsSpec, Weights


def activity(x_TD: jax.Array, weights: Weights, spec: ExpertsSpec) -> jax.Array:
    """float32 `[T, E]`: the sum of `|hidden|` over the hidden units of each expert, 0 or more.

    MoEfication (Zhang et al. 2022, 2110.01786) adds up ReLU's outputs, which are not negative. A
    gated unit answers with either sign; what it adds to the output follows its size, hence the
    absolute value: our choice, and the same number for ReLU. No gradient flows through it. It costs
    the products into the hidden units of *all* experts.

    Args:
      x_TD: `[T, D]`.
      weights: the arrays of `spec.weight_names`, `[N, U, D]`, in the dtype of `x_TD`.
      spec: what the experts are; one of width 0 has activity 0.
    """
    hidden_TNU = hidden_units(x_TD, [weights[name] for name in spec.weight_names[:-1]], spec)
    size_TN = jnp.abs(hidden_TNU).astype(jnp.float32).sum(-1)
    owner_N = [expert for expert, units in enumerate(spec.units) for _ in range(units)]
    owned_NE = jax.nn.one_hot(jnp.asarray(owner_N, jnp.int32), spec.num_experts)
    # A sum of a few numbers each, and a choice hangs on it: not in fewer bits.
    total_TE = jnp.matmul(size_TN, owned_NE, precision=jax.lax.Precision.HIGHEST)
    return jax.lax.stop_gradient(total_TE)


def hidden_units(x_TD: jax.Array, into: list[jax.Array], spec: ExpertsSpec) -> jax.Array:
    """`[T, N, U]`: the hidden units of all experts, from the arrays that lead into them."""
    parts = [jnp.einsum("td,nud->tnu", x_TD, weight_NUD) for weight_NUD in into]
    return ACTIVATIONS[spec.activation](*parts)
