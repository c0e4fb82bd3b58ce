"""The base of routers without scores: a rule names `k` experts, all with weight 1/k."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from moejax.config.knobs import knob
from moejax.routing import noise
from moejax.routing.contract import Params, Router, RouterInputs, Routing, State


@dataclasses.dataclass(frozen=True)
class UnscoredRouter(Router):
    """`k` distinct experts for each token; nothing is learned. Override `choose`."""

    has_scores = False
    has_logits = False
    expert_equivariant = False
    k: int = knob(2, low=1, unit="experts per token", doc="Experts that each token uses.")

    def slots(self, num_experts: int) -> int:
        return self.k

    def weight_sum(self) -> tuple[float, float]:
        return 1.0, 1.0

    def choose(self, inputs: RouterInputs) -> jax.Array:
        """int32 `[T, k]`, all different, in `[0, inputs.num_experts)`."""
        raise TypeError(f"{type(self).__name__} does not choose experts")

    def __call__(
        self, x_TD: jax.Array, inputs: RouterInputs, params: Params, state: State
    ) -> tuple[Routing, jax.Array | None]:
        """Raises ValueError when `inputs.num_experts` was not filled in."""
        num_experts = inputs.num_experts
        if num_experts < self.k:
            raise ValueError(
                f"{self.k} distinct experts of {num_experts}: RouterInputs(num_experts=...)"
            )
        expert_TK = self.choose(inputs)
        weight_TK = jnp.full(expert_TK.shape, 1.0 / self.k, jnp.float32)
        return self.routing(inputs, expert_TK, weight_TK, num_experts=num_experts), inputs.carry_TE


def distinct_experts(hash_T1: jax.Array, k: int, num_experts: int) -> jax.Array:
    """int32 `[T, k]`: `k` different experts for each uint32 hash `[T, 1]`; all sets are equally
    likely."""
    draw_TE = noise.mix(hash_T1, jnp.arange(num_experts)) >> 1  # 31 bits fit every sort's int32
    return jax.lax.top_k(draw_TE.astype(jnp.int32), k)[1]
