"""Top-k token choice (Shazeer et al. 2017; GShard; Mixtral; OLMoE; DeepSeekMoE eq. 9-11)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from moejax.config.knobs import knob
from moejax.routing.contract import ROUTERS, State
from moejax.routing.linear import LinearRouter, Selection, renormalised


@ROUTERS.register("top_k")
@dataclasses.dataclass(frozen=True)
class TopK(LinearRouter):
    """Each token uses its `k` highest-scored experts; ties go to the lowest expert index."""

    k: int = knob(2, low=1, unit="experts per token", doc="Experts that each token uses.")
    renormalise: bool = knob(
        True,
        doc="Divide the chosen scores by their sum (Mixtral, HMoE eq. 8). False keeps the raw "
        "softmax probabilities (DeepSeekMoE eq. 9-11, OLMoE).",
    )

    def slots(self, num_experts: int) -> int:
        return self.k

    def select(self, scores_TE: jax.Array, state: State) -> Selection:
        return top_k(scores_TE, self.k, renormalise=self.renormalise)


def top_k(scores_TE: jax.Array, k: int, *, renormalise: bool) -> Selection:
    """The `k` highest scores of each row `[T, E]`, in descending order."""
    weight_TK, expert_TK = jax.lax.top_k(scores_TE, k)
    if renormalise:
        weight_TK = renormalised(weight_TK, jnp.ones_like(expert_TK, bool))
    return Selection(expert_TK, weight_TK)
