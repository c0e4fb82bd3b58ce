"""As `all_to_all`, without a buffer per pair: any number of rows travels, into one buffer.

`jax.lax.ragged_all_to_all` exists on TPU and GPU. On a CPU the same function is emulated by an
all-gather, so that tests compute with the very code that a pod runs around it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from moejax.experts.exchange.bounded import bounded, combined, destinations
from moejax.experts.exchange.config import ExchangeConfig
from moejax.experts.exchange.local import Local, Pieces, flat
from moejax.experts.spec import Weights


class _Plan(NamedTuple):
    """Who sends how many rows to whom, int32, after clipping to the receivers' buffers.

    Attributes:
      size_PP: rows from device i to device j.
      begin_PP: where they start in the sender's rows.
      place_PP: where they go in the receiver's buffer.
    """

    size_PP: jax.Array
    begin_PP: jax.Array
    place_PP: jax.Array

    def send(self, rows: jax.Array, buffer: jax.Array) -> jax.Array:
        """Rows of every sender into `buffer` of this device."""
        own = lax.axis_index("expert")
        return _ragged_all_to_all(
            rows,
            buffer,
            self.begin_PP[own],
            self.size_PP[own],
            self.place_PP[own],
            self.size_PP[:, own],
        )

    def reversed(self) -> _Plan:
        """The way back."""
        return _Plan(self.size_PP.T, self.place_PP.T, self.begin_PP.T)


def rows_received(tokens: int, planned: float, devices: int, factor: float) -> int:
    """Rows of a device's buffer: `factor` times those under balanced routing, of `planned`
    assignments to pieces of experts."""
    return min(tokens * devices, max(1, math.ceil(planned * factor)))


def ragged(
    local: Local,
    config: ExchangeConfig,
    x_TD: jax.Array,
    pieces: Pieces,
    weight_TK: jax.Array,
    weights: Weights,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """See `Exchange`."""
    num_tokens = x_TD.shape[0]
    received = rows_received(num_tokens, local.planned, local.devices, config.factor)
    wanted_TP, rank_TP = destinations(pieces, local.devices)
    wish_PP = lax.all_gather(wanted_TP.sum(0, dtype=jnp.int32), "expert")
    begin_PP = jnp.cumsum(wish_PP, 1) - wish_PP
    place_PP = jnp.cumsum(wish_PP, 0) - wish_PP
    # The first senders fill a buffer; the last ones find what is left of it.
    size_PP = jnp.clip(received - place_PP, 0, wish_PP)
    plan = _Plan(size_PP, begin_PP, jnp.minimum(place_PP, received))

    def travel(
        x_TD: jax.Array, weight_TK: jax.Array, weights: Weights, pieces: Pieces
    ) -> jax.Array:
        place_TP = begin_PP[lax.axis_index("expert")] + rank_TP
        place_TP = jnp.where(wanted_TP, place_TP, num_tokens * local.devices)
        return _there_and_back(local, x_TD, pieces, weight_TK, weights, place_TP, plan, received)

    if received == num_tokens * local.devices:
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
        fits_TP=rank_TP < size_PP[lax.axis_index("expert")],
        cause="exchange_receive",
    )


def _there_and_back(
    local: Local,
    x_TD: jax.Array,
    pieces: Pieces,
    weight_TK: jax.Array,
    weights: Weights,
    place_TP: jax.Array,
    plan: _Plan,
    received: int,
) -> jax.Array:
    """`place_TP`: row of each token among those sent, device after device; out of range if none."""
    num_tokens, devices = place_TP.shape
    slot_TJ, weight_TJ = flat(pieces.slot_TKM, weight_TK)
    device_TJ, _ = flat(pieces.device_TKM, weight_TK)
    sent = num_tokens * min(devices, slot_TJ.shape[1])
    token_R = jnp.full(sent, num_tokens, jnp.int32)
    token_R = token_R.at[place_TP].set(
        jnp.arange(num_tokens, dtype=jnp.int32)[:, None], mode="drop"
    )
    target_R = jnp.full(sent, devices, jnp.int32)
    target_R = target_R.at[place_TP].set(jnp.arange(devices, dtype=jnp.int32), mode="drop")

    def take(array: jax.Array) -> jax.Array:
        return jnp.take(array, token_R, axis=0, mode="fill", fill_value=0)

    def empty(width: int, dtype: jnp.dtype, fill: int = 0) -> jax.Array:
        return jnp.full((received, width), fill, dtype)

    here_RJ = (take(device_TJ) == target_R[:, None]) & (token_R < num_tokens)[:, None]
    slot_RJ = jnp.where(here_RJ, take(slot_TJ), local.empty)
    width, assignments = x_TD.shape[1], slot_TJ.shape[1]
    x_QD = plan.send(take(x_TD), empty(width, x_TD.dtype))
    slot_QJ = plan.send(slot_RJ, empty(assignments, slot_RJ.dtype, local.empty))
    weight_QJ = plan.send(take(weight_TJ), empty(assignments, weight_TJ.dtype))
    y_QD = local.run(x_QD, slot_QJ, weight_QJ, weights)
    y_RD = plan.reversed().send(y_QD, jnp.zeros((sent, width), y_QD.dtype))
    return combined(x_TD, token_R, y_RD)


def _ragged_all_to_all(*given: jax.Array) -> jax.Array:
    """`lax.ragged_all_to_all` over the expert axis; on a CPU, which has none, an emulation."""

    def native(*given: jax.Array) -> jax.Array:
        return lax.ragged_all_to_all(*given, axis_name="expert")

    return lax.platform_dependent(*given, cpu=_emulated, default=native)


def _emulated(
    rows: jax.Array,
    buffer: jax.Array,
    begin_P: jax.Array,
    size_P: jax.Array,
    place_P: jax.Array,
    received_P: jax.Array,
) -> jax.Array:
    """Everything to everyone, who takes what is theirs."""
    del received_P  # what the others' sizes say
    own = lax.axis_index("expert")
    rows_PR = lax.all_gather(rows, "expert")
    begin_P, size_P, place_P = (
        lax.all_gather(one, "expert")[:, own] for one in (begin_P, size_P, place_P)
    )
    index_Q = jnp.arange(buffer.shape[0])[:, None]
    from_QP = (index_Q >= place_P) & (index_Q < place_P + size_P)
    sender_Q = from_QP.argmax(1)
    row_Q = jnp.clip(begin_P[sender_Q] + index_Q[:, 0] - place_P[sender_Q], 0, rows.shape[0] - 1)
    return jnp.where(from_QP.any(1)[:, None], rows_PR[sender_Q, row_Q], buffer)
