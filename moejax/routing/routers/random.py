"""Random routing: a control without any rule (Zuo et al. 2021, THOR, 2110.04260)."""

from __future__ import annotations

import dataclasses

import jax

from moejax.config.knobs import knob
from moejax.routing import noise
from moejax.routing.contract import ROUTERS, Card, RouterInputs
from moejax.routing.unscored import UnscoredRouter, distinct_experts


@ROUTERS.register("random")
@dataclasses.dataclass(frozen=True)
class Random(UnscoredRouter):
    """`k` distinct experts for each token, drawn anew at each training step.

    What is drawn belongs to the token (row, document, position, id), so padding, order and mesh
    change nothing. Without a key, or outside training, `seed` takes the place of the key: each
    token then keeps its experts.
    """

    card = Card(
        proposed="control (cf. Zuo et al. 2021, arXiv 2110.04260)",
        rule="`k` experts at random, anew at each step",
        weights="1/k",
        losses=(),
    )
    seed: int = knob(0, low=0, doc="What is drawn where no key is given, and in evaluation.")

    def choose(self, inputs: RouterInputs) -> jax.Array:
        token_T1 = (
            noise.token_bits(inputs, 1, noise.CHOICE)
            if inputs.noisy
            else noise.mix(self.seed, noise.token_hash(inputs))[:, None]
        )
        return distinct_experts(token_T1, self.k, inputs.num_experts)
