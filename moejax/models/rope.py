"""Rotary position embeddings (Su et al. 2021), half-split pairs as in Llama/Hugging Face."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def rotate(x_BSHd: jax.Array, positions_BS: jax.Array, theta: float) -> jax.Array:
    """Rotates pairs `(x[i], x[i + d/2])` of each head by `position * theta**(-2i/d)`.

    Angles and rotation are float32 at least; the result has the dtype of `x_BSHd`.
    """
    half = x_BSHd.shape[-1] // 2
    wide = jnp.promote_types(x_BSHd.dtype, jnp.float32)
    frequency_d = theta ** (-jnp.arange(half, dtype=wide) / half)
    angle_BS1d = positions_BS.astype(wide)[..., None, None] * frequency_d
    cos, sin = jnp.cos(angle_BS1d), jnp.sin(angle_BS1d)
    first, second = jnp.split(x_BSHd.astype(wide), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BSHd.dtype)
