"""Hash routing: the token id alone decides (Roller et al. 2021, Hash Layers, 2106.04426)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from moejax.config.knobs import knob
from moejax.routing import noise
from moejax.routing.contract import ROUTERS, Card, Params, Router, RouterInputs, Routing, State


@ROUTERS.register("hash")
@dataclasses.dataclass(frozen=True)
class Hash(Router):
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
    has_scores = False
    has_logits = False
    expert_equivariant = False
    k: int = knob(1, low=1, unit="experts per token", doc="Experts that each token id uses.")
    seed: int = knob(0, low=0, doc="Another seed is another table.")

    def slots(self, num_experts: int) -> int:
        return self.k

    def weight_sum(self) -> tuple[float, float]:
        return 1.0, 1.0

    def __call__(
        self, x_TD: jax.Array, inputs: RouterInputs, params: Params, state: State
    ) -> tuple[Routing, jax.Array | None]:
        if inputs.token_id_T is None:
            raise ValueError("hash routing needs token ids: RouterInputs(token_id_T=...)")
        id_T1 = noise.mix(self.seed, inputs.token_id_T)[:, None]
        expert_TK = distinct_experts(id_T1, self.k, inputs.num_experts)
        weight_TK = jnp.full(expert_TK.shape, 1.0 / self.k, jnp.float32)
        routing = self.routing(inputs, expert_TK, weight_TK, num_experts=inputs.num_experts)
        return routing, inputs.carry_TE


def distinct_experts(hash_T1: jax.Array, k: int, num_experts: int) -> jax.Array:
    """int32 `[T, k]`: `k` different experts for each uint32 hash `[T, 1]`, all sets equally likely.

    Raises:
      ValueError: `num_experts` was not filled in.
    """
    if num_experts < k:
        raise ValueError(f"{k} distinct experts of {num_experts}: RouterInputs(num_experts=...)")
    draw_TE = noise.mix(hash_T1, jnp.arange(num_experts)) >> 1  # 31 bits fit every sort's int32
    return jax.lax.top_k(draw_TE.astype(jnp.int32), k)[1]
