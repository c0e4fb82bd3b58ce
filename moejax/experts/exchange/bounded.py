"""What exchanges with buffers of a fixed size share: who wants to go where, what becomes of rows
that find no room, and how parts of an output add up."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from moejax.experts.exchange.allgather import allgather
from moejax.experts.exchange.config import ExchangeConfig
from moejax.experts.exchange.local import Local, Pieces
from moejax.experts.spec import Weights
from moejax.sharding import AXES

Travel = Callable[[jax.Array, jax.Array, Weights, Pieces], jax.Array]
"""`(x_TD, weight_TK, weights, pieces) -> y_TD`."""


def destinations(pieces: Pieces, devices: int) -> tuple[jax.Array, jax.Array]:
    """bool `[T, P]`, the devices that hold a piece of a token's experts; int32 `[T, P]`, how many
    earlier tokens go to the same one."""
    wanted_TP = (pieces.device_TKM[..., None] == jnp.arange(devices)).any((1, 2))
    return wanted_TP, jnp.cumsum(wanted_TP, 0, dtype=jnp.int32) - 1


def bounded(
    travel: Travel,
    local: Local,
    config: ExchangeConfig,
    x_TD: jax.Array,
    pieces: Pieces,
    weight_TK: jax.Array,
    weights: Weights,
    *,
    wanted_TP: jax.Array,
    fits_TP: jax.Array,
    cause: str,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Runs `travel`, or what `config.overflow` says where not everything fits.

    Args:
      wanted_TP: from `destinations`.
      fits_TP: bool, the tokens that a device has room for; of no meaning where not wanted.
      cause: of drops, in the ledger.

    Returns:
      As an `Exchange`.
    """
    if config.overflow == "exact":
        lost = lax.psum((wanted_TP & ~fits_TP).sum(dtype=jnp.int32), AXES)
        y_TD = lax.cond(
            lost == 0,
            travel,
            # Recomputed: a branch that is hardly ever taken must not have its residuals allocated.
            jax.checkpoint(
                lambda x_TD, weight_TK, weights, pieces: allgather(
                    local, config, x_TD, pieces, weight_TK, weights
                )[0]
            ),
            x_TD,
            weight_TK,
            weights,
            pieces,
        )
        return y_TD, {}
    # An expert in pieces is computed whole or not at all.
    fits_TP1 = jnp.pad(fits_TP, ((0, 0), (0, 1)), constant_values=True)  # no piece: nothing to lose
    fits_TKM = jnp.take_along_axis(fits_TP1[:, None, :], pieces.device_TKM, axis=2)
    lost_TK = ~fits_TKM.all(-1)
    pieces = pieces._replace(
        device_TKM=jnp.where(lost_TK[..., None], local.devices, pieces.device_TKM)
    )
    return travel(x_TD, weight_TK, weights, pieces), {cause: lost_TK}


def combined(x_TD: jax.Array, token: jax.Array, rows: jax.Array) -> jax.Array:
    """`[T, D]` like `x_TD`: rows `[..., D]` that came back, added to their tokens (ids out of range
    are dropped) and over `tensor`, in float32 or wider."""
    y_TD = jnp.zeros(x_TD.shape, jnp.promote_types(x_TD.dtype, jnp.float32))
    y_TD = y_TD.at[token].add(rows.astype(y_TD.dtype), mode="drop")
    return lax.psum(y_TD, "tensor").astype(x_TD.dtype)
