"""What one device does, and the contract of an exchange."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from moejax.experts.exchange.config import ExchangeConfig
from moejax.experts.spec import ROOM, ExpertsSpec, Weights
from moejax.routing.contract import Routing

Compute = Callable[[jax.Array, Routing, Weights, ExpertsSpec], jax.Array]


class Pieces(NamedTuple):
    """Where the pieces of each assignment's expert are, int32 `[T, K, M]`; out of range if none."""

    device_TKM: jax.Array
    slot_TKM: jax.Array


@dataclasses.dataclass(frozen=True)
class Local:
    """What a device knows about the experts of its axis, static.

    Attributes:
      spec: the device's own slots as if they were the experts of a layer.
      devices: devices on the expert axis (P).
      planned: assignments to pieces that a device computes under balanced routing.
      compute: the back end.
    """

    spec: ExpertsSpec
    devices: int
    planned: float
    compute: Compute

    @property
    def empty(self) -> int:
        """The slot that is none."""
        return self.spec.num_experts

    def run(
        self, x_RD: jax.Array, slot_RJ: jax.Array, weight_RJ: jax.Array, weights: Weights
    ) -> jax.Array:
        """This device's part of the output of some rows, `[R, D]`.

        Args:
          slot_RJ: int32, slots of this device; `empty` where a row has no use for it.
        """
        filled_RJ = slot_RJ < self.empty
        routing = Routing(
            expert_TK=slot_RJ,
            weight_TK=jnp.where(filled_RJ, weight_RJ, 0.0),
            requested_T=filled_RJ.sum(-1, dtype=jnp.int32),
            scores_TE=None,
            logits_TE=None,
            num_experts=self.empty,
            max_rows=slot_RJ.size,
        )
        spec = dataclasses.replace(self.spec, rows_per_token=ROOM * self.planned / x_RD.shape[0])
        return self.compute(x_RD, routing, weights, spec)

    def own_part(
        self, x_TD: jax.Array, pieces: Pieces, weight_TK: jax.Array, weights: Weights
    ) -> jax.Array:
        """This device's part of the output of tokens that are all here."""
        here_TKM = pieces.device_TKM == lax.axis_index("expert")
        slot_TJ, weight_TJ = flat(jnp.where(here_TKM, pieces.slot_TKM, self.empty), weight_TK)
        return self.run(x_TD, slot_TJ, weight_TJ, weights)


def flat(slot_TKM: jax.Array, weight_TK: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Slots and combine weights of a token's `J = K M` pieces."""
    tokens, slots, pieces = slot_TKM.shape
    weight_TJ = jnp.broadcast_to(weight_TK[:, :, None], slot_TKM.shape)
    return slot_TKM.reshape(tokens, slots * pieces), weight_TJ.reshape(tokens, slots * pieces)


Exchange = Callable[
    [Local, ExchangeConfig, jax.Array, Pieces, jax.Array, Weights],
    tuple[jax.Array, dict[str, jax.Array]],
]
"""`(local, config, x_TD, pieces, weight_TK, weights) -> (y_TD, lost)` inside the shard_map, on a
device's own rows; `lost`: bool `[T, K]` by cause, assignments that were dropped."""
