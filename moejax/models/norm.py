"""RMSNorm (Zhang & Sennrich 2019), statistics in float32 whatever the compute dtype."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx


class RMSNorm(nnx.Module):
    """`x / rms(x) * scale` over the last axis."""

    def __init__(self, width: int, eps: float, param_dtype: jnp.dtype = jnp.float32) -> None:
        self.eps = eps
        self.scale_D = nnx.Param(jnp.ones(width, param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., D]` to `[..., D]` in the dtype of `x`."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        scale = jax.lax.rsqrt((wide**2).mean(-1, keepdims=True) + self.eps)
        return (wide * scale * self.scale_D[...].astype(wide.dtype)).astype(x.dtype)
