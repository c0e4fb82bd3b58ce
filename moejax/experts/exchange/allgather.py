"""All tokens of the expert axis to all of its devices, partial sums back; nothing overflows."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from moejax.experts.exchange.config import ExchangeConfig
from moejax.experts.exchange.local import Local, Pieces
from moejax.experts.spec import Weights


def allgather(
    local: Local,
    config: ExchangeConfig,
    x_TD: jax.Array,
    pieces: Pieces,
    weight_TK: jax.Array,
    weights: Weights,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """See `Exchange`."""
    del config
    gather = functools.partial(lax.all_gather, axis_name="expert", axis=0, tiled=True)
    x_TD, pieces, weight_TK = jax.tree.map(gather, (x_TD, pieces, weight_TK))
    y_TD = _wide(local.own_part(x_TD, pieces, weight_TK, weights))
    y_TD = lax.psum_scatter(y_TD, "expert", scatter_dimension=0, tiled=True)
    return lax.psum(y_TD, "tensor").astype(x_TD.dtype), {}


def alone(
    local: Local,
    config: ExchangeConfig,
    x_TD: jax.Array,
    pieces: Pieces,
    weight_TK: jax.Array,
    weights: Weights,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """One device on the expert axis: nothing travels but partial sums over `tensor`."""
    del config
    y_TD = _wide(local.own_part(x_TD, pieces, weight_TK, weights))
    return lax.psum(y_TD, "tensor").astype(x_TD.dtype), {}


def _wide(x: jax.Array) -> jax.Array:
    """Partial sums are added in float32 or wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
