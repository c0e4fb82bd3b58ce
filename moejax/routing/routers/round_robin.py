"""Round robin: forced-uniform routing, a control."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from moejax.config.knobs import knob
from moejax.routing import noise
from moejax.routing.contract import ROUTERS, Card, Params, Router, RouterInputs, Routing, State


@ROUTERS.register("round_robin")
@dataclasses.dataclass(frozen=True)
class RoundRobin(Router):
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
    has_scores = False
    has_logits = False
    token_equivariant = False
    expert_equivariant = False
    k: int = knob(2, low=1, unit="experts per token", doc="Experts that each token uses.")

    def slots(self, num_experts: int) -> int:
        return self.k

    def weight_sum(self) -> tuple[float, float]:
        return 1.0, 1.0

    def __call__(
        self, x_TD: jax.Array, inputs: RouterInputs, params: Params, state: State
    ) -> tuple[Routing, jax.Array | None]:
        if inputs.num_experts < self.k:
            raise ValueError(
                f"{self.k} distinct experts of {inputs.num_experts}: RouterInputs(num_experts=...)"
            )
        turn_T1 = (noise.valid_index(inputs) % inputs.num_experts * self.k)[:, None]
        expert_TK = (turn_T1 + jnp.arange(self.k)) % inputs.num_experts
        weight_TK = jnp.full(expert_TK.shape, 1.0 / self.k, jnp.float32)
        routing = self.routing(inputs, expert_TK, weight_TK, num_experts=inputs.num_experts)
        return routing, inputs.carry_TE
