"""A dense FFN: the shared expert, and the FFN of a dense block."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from moejax.experts.spec import ACTIVATIONS, projections


class DenseFFN(nnx.Module):
    """`down(act(gate x, up x))`, or `down(act(up x))` for an ungated activation; no biases (the
    published models of `configs/papers` have none here).

    Weights are `gate_FD` (gated only), `up_FD` and `down_FD`, `[F, D]`, one row per hidden unit.
    """

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
        self.activation = activation
        for name in projections(activation):
            std = out_scale * width**-0.5 if name == "down" else d_model**-0.5
            sample = jax.random.normal(rngs.params(), (width, d_model)) * std
            setattr(self, f"{name}_FD", nnx.Param(sample.astype(param_dtype)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., D]` to `[..., D]`, computed in the dtype of `x`."""
        # Flat tokens: XLA:CPU takes twice as long when the weight gradients contract two axes.
        x_TD = x.reshape(-1, x.shape[-1])
        *into_FD, down_FD = (
            getattr(self, f"{name}_FD")[...].astype(x.dtype)
            for name in projections(self.activation)
        )
        hidden_TF = ACTIVATIONS[self.activation](*(x_TD @ w_FD.T for w_FD in into_FD))
        return (hidden_TF @ down_FD).reshape(x.shape)
