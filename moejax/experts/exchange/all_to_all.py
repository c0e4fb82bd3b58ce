"""Each token once to each device that holds a piece of its experts, in buffers of a fixed size."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from moejax.experts.exchange.allgather import allgather
from moejax.experts.exchange.config import ExchangeConfig
from moejax.experts.exchange.local import Local, Pieces, flat
from moejax.experts.spec import Weights
from moejax.sharding import AXES


def rows_per_pair(tokens: int, planned: float, devices: int, factor: float) -> int:
    """Rows that a device can send to another: `factor` times those under balanced routing, of
    `planned` assignments to pieces of experts; `tokens` is always enough."""
    return min(tokens, max(1, math.ceil(planned / devices * factor)))


def all_to_all(
    local: Local,
    config: ExchangeConfig,
    x_TD: jax.Array,
    pieces: Pieces,
    weight_TK: jax.Array,
    weights: Weights,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """See `Exchange`."""
    num_tokens = x_TD.shape[0]
    capacity = rows_per_pair(num_tokens, local.planned, local.devices, config.factor)
    wanted_TP = (pieces.device_TKM[..., None] == jnp.arange(local.devices)).any((1, 2))
    rank_TP = jnp.cumsum(wanted_TP, 0, dtype=jnp.int32) - 1
    sent_TP = wanted_TP & (rank_TP < capacity)

    def travel(
        x_TD: jax.Array, weight_TK: jax.Array, weights: Weights, pieces: Pieces
    ) -> jax.Array:
        return _there_and_back(
            local, x_TD, pieces, weight_TK, weights, jnp.where(sent_TP, rank_TP, capacity), capacity
        )

    if capacity == num_tokens:
        return travel(x_TD, weight_TK, weights, pieces), {}
    if config.overflow == "exact":
        lost = lax.psum((wanted_TP & ~sent_TP).sum(dtype=jnp.int32), AXES)
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
    fits_TP1 = jnp.pad(sent_TP, ((0, 0), (0, 1)), constant_values=True)  # no piece: nothing to lose
    fits_TKM = jnp.take_along_axis(fits_TP1[:, None, :], pieces.device_TKM, axis=2)
    lost_TK = ~fits_TKM.all(-1)
    pieces = pieces._replace(
        device_TKM=jnp.where(lost_TK[..., None], local.devices, pieces.device_TKM)
    )
    return travel(x_TD, weight_TK, weights, pieces), {"exchange_send": lost_TK}


def _there_and_back(
    local: Local,
    x_TD: jax.Array,
    pieces: Pieces,
    weight_TK: jax.Array,
    weights: Weights,
    place_TP: jax.Array,
    capacity: int,
) -> jax.Array:
    """`place_TP`: row of each token in the buffer for each device; `capacity` if it is not sent."""
    num_tokens, devices = place_TP.shape
    token_PC = jnp.full((devices, capacity), num_tokens, jnp.int32)
    token_PC = token_PC.at[jnp.arange(devices), place_TP].set(
        jnp.arange(num_tokens, dtype=jnp.int32)[:, None], mode="drop"
    )
    take = functools.partial(jnp.take, indices=token_PC, axis=0, mode="fill")
    exchange = functools.partial(lax.all_to_all, axis_name="expert", split_axis=0, concat_axis=0)
    slot_TJ, weight_TJ = flat(pieces.slot_TKM, weight_TK)
    device_TJ, _ = flat(pieces.device_TKM, weight_TK)
    here_PCJ = take(device_TJ, fill_value=devices) == jnp.arange(devices)[:, None, None]
    slot_PCJ = jnp.where(here_PCJ, take(slot_TJ, fill_value=0), local.empty)
    rows = (take(x_TD, fill_value=0), slot_PCJ, take(weight_TJ, fill_value=0))
    # [P, C]: from rows for each device to rows from each device, and back again.
    x_PCD, slot_PCJ, weight_PCJ = map(exchange, rows)
    y_RD = local.run(
        x_PCD.reshape(-1, x_PCD.shape[-1]),
        slot_PCJ.reshape(-1, slot_PCJ.shape[-1]),
        weight_PCJ.reshape(-1, weight_PCJ.shape[-1]),
        weights,
    )
    y_PCD = exchange(y_RD.reshape(x_PCD.shape))
    # A token's parts come back from several devices: they add, in float32 or wider.
    y_TD = jnp.zeros(x_TD.shape, jnp.promote_types(x_TD.dtype, jnp.float32))
    y_TD = y_TD.at[token_PC].add(y_PCD.astype(y_TD.dtype), mode="drop")
    return lax.psum(y_TD, "tensor").astype(x_TD.dtype)
