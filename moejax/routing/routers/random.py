"""Random routing: a control without any rule (Zuo et al. 2021, THOR, 2110.04260)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from moejax.config.knobs import knob
from moejax.routing import noise
from moejax.routing.contract import ROUTERS, Card, Params, Router, RouterInputs, Routing, State
from moejax.routing.routers.hash import distinct_experts


@ROUTERS.register("random")
@dataclasses.dataclass(frozen=True)
class Random(Router):
    """`k` distinct experts for each token, drawn anew at each training step.

    What is drawn belongs to the token (row, position, id), so padding, order and mesh change
    nothing. Without a key, or outside training, `seed` takes the place of the key: each token
    then keeps its experts.
    """

    card = Card(
        proposed="control (cf. Zuo et al. 2021, arXiv 2110.04260)",
        rule="`k` experts at random, anew at each step",
        weights="1/k",
        losses=(),
    )
    has_scores = False
    has_logits = False
    expert_equivariant = False
    k: int = knob(2, low=1, unit="experts per token", doc="Experts that each token uses.")
    seed: int = knob(0, low=0, doc="What is drawn where no key is given, and in evaluation.")

    def slots(self, num_experts: int) -> int:
        return self.k

    def weight_sum(self) -> tuple[float, float]:
        return 1.0, 1.0

    def __call__(
        self, x_TD: jax.Array, inputs: RouterInputs, params: Params, state: State
    ) -> tuple[Routing, jax.Array | None]:
        token_T1 = (
            noise.token_bits(inputs, 1, noise.CHOICE)
            if inputs.noisy
            else noise.mix(self.seed, noise.token_hash(inputs))[:, None]
        )
        expert_TK = distinct_experts(token_T1, self.k, inputs.num_experts)
        weight_TK = jnp.full(expert_TK.shape, 1.0 / self.k, jnp.float32)
        routing = self.routing(inputs, expert_TK, weight_TK, num_experts=inputs.num_experts)
        return routing, inputs.carry_TE
