"""Weights of attention layers and the products with them, on flat matrices.

XLA:CPU takes about twice as long when the weight gradient contracts two axes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx


def normal(
    rngs: nnx.Rngs, shape: tuple[int, ...], std: float, dtype: jnp.dtype
) -> nnx.Param[jax.Array]:
    """A weight drawn from a normal distribution."""
    return nnx.Param((jax.random.normal(rngs.params(), shape) * std).astype(dtype))


def project(x_BSD: jax.Array, weight_DHd: jax.Array) -> jax.Array:
    """`[B, S, H, d]` from `[B, S, D]`; `[B, S, R]` with a weight `[D, R]`."""
    batch, length, width = x_BSD.shape
    flat_TN = x_BSD.reshape(-1, width) @ weight_DHd.reshape(width, -1)
    return flat_TN.reshape(batch, length, *weight_DHd.shape[1:])


def project_back(mixed_BSHd: jax.Array, weight_HdD: jax.Array) -> jax.Array:
    """`[B, S, D]` from `[B, S, H, d]`."""
    batch, length, heads, width = mixed_BSHd.shape
    flat_TN = mixed_BSHd.reshape(-1, heads * width)
    y_TD = flat_TN @ weight_HdD.reshape(heads * width, -1)
    return y_TD.reshape(batch, length, -1)
