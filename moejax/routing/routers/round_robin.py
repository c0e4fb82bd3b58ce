"""Round robin: forced-uniform routing, a control."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from moejax.routing import noise
from moejax.routing.contract import ROUTERS, Card, RouterInputs
from moejax.routing.unscored import UnscoredRouter


@ROUTERS.register("round_robin")
@dataclasses.dataclass(frozen=True)
class RoundRobin(UnscoredRouter):
    """The i-th valid token of the batch uses the experts `(i*k + j) mod E`, `j < k`.

    The load is as equal as can be, whatever the text: what a balance loss aims at, without
    anything that a router could learn.
    """

    card = Card(
        proposed="control",
        rule="the next `k` experts in turn",
        weights="1/k",
        losses=(),
    )
    token_equivariant = False

    def choose(self, inputs: RouterInputs) -> jax.Array:
        turn_T1 = (noise.valid_index(inputs) % inputs.num_experts * self.k)[:, None]
        return (turn_T1 + jnp.arange(self.k)) % inputs.num_experts
