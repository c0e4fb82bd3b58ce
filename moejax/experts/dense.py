"""A dense gated FFN: the shared expert, and the FFN of a dense block."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from moejax.experts.spec import ACTIVATIONS


class GatedFFN(nnx.Module):
    """`down(act(gate x, up x))`, no biases; weights `[F, D]`, one row per hidden unit."""

    def __init__(
        self,
        d_model: int,
        width: int,
        *,
        rngs: nnx.Rngs,
        activation: str = "swiglu",
        param_dtype: jnp.dtype = jnp.float32,
        out_scale: float = 1.0,
    ) -> None:
        def normal(std: float) -> nnx.Param[jax.Array]:
            sample = jax.random.normal(rngs.params(), (width, d_model)) * std
            return nnx.Param(sample.astype(param_dtype))

        self.activation = activation
        self.gate_FD = normal(d_model**-0.5)
        self.up_FD = normal(d_model**-0.5)
        self.down_FD = normal(out_scale * width**-0.5)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., D]` to `[..., D]`, computed in the dtype of `x`."""
        # Flat tokens: XLA:CPU takes twice as long when the weight gradients contract two axes.
        x_TD = x.reshape(-1, x.shape[-1])
        gate_TF = x_TD @ self.gate_FD[...].astype(x.dtype).T
        up_TF = x_TD @ self.up_FD[...].astype(x.dtype).T
        y_TD = ACTIVATIONS[self.activation](gate_TF, up_TF) @ self.down_FD[...].astype(x.dtype)
        return y_TD.reshape(x.shape)
