"""Hash routing: the token id alone decides (Roller et al. 2021, Hash Layers, 2106.04426)."""

from __future__ import annotations

import dataclasses

import jax

from moejax.config.knobs import knob
from moejax.routing import noise
from moejax.routing.contract import ROUTERS, Card, RouterInputs
from moejax.routing.unscored import UnscoredRouter, distinct_experts


@ROUTERS.register("hash")
@dataclasses.dataclass(frozen=True)
class Hash(UnscoredRouter):
    """Each token id has its `k` experts, fixed by `seed` before training; nothing is learned.

    The `k` experts of an id are those of highest `hash(id, expert, seed)`: distinct, and every
    expert holds the same share of the *vocabulary* (not of the tokens: frequent ids weigh more).
    """

    card = Card(
        proposed="Roller et al. 2021, arXiv 2106.04426",
        rule="`k` experts fixed for each token id by a hash",
        weights="1/k",
        losses=(),
    )
    k: int = knob(1, low=1, unit="experts per token", doc="Experts that each token id uses.")
    seed: int = knob(0, low=0, doc="Another seed is another table.")

    def choose(self, inputs: RouterInputs) -> jax.Array:
        if inputs.token_id_T is None:
            raise ValueError("hash routing needs token ids: RouterInputs(token_id_T=...)")
        id_T1 = noise.mix(self.seed, inputs.token_id_T)[:, None]
        return distinct_experts(id_T1, self.k, inputs.num_experts)
