"""Each token once to each device that holds a piece of its experts, in buffers of a fixed size."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from moejax.experts.exchange.bounded import bounded, combined, destinations
from moejax.experts.exchange.config import ExchangeConfig
from moejax.experts.exchange.local import Local, Pieces, flat
from moejax.experts.spec import Weights


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
    wanted_TP, rank_TP = destinations(pieces, local.devices)
    fits_TP = rank_TP < capacity
    place_TP = jnp.where(wanted_TP & fits_TP, rank_TP, capacity)

    def travel(
        x_TD: jax.Array, weight_TK: jax.Array, weights: Weights, pieces: Pieces
    ) -> jax.Array:
        return _there_and_back(local, x_TD, pieces, weight_TK, weights, place_TP, capacity)

    if capacity == num_tokens:
        return travel(x_TD, weight_TK, weights, pieces), {}
    return bounded(
        travel,
        local,
        config,
        x_TD,
        pieces,
        weight_TK,
        weights,
        wanted_TP=wanted_TP,
        fits_TP=fits_TP,
        cause="exchange_send",
    )


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
    return combined(x_TD, token_PC, y_PCD)
