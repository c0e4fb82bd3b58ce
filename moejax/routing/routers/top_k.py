"""Top-k token choice (Shazeer et al. 2017; GShard; Mixtral; OLMoE; DeepSeekMoE eq. 9-11)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from moejax.config.knobs import knob
from moejax.routing.contract import ROUTERS, Card, State
from moejax.routing.groups import check_groups, limit_to_groups
from moejax.routing.linear import LinearRouter, Selection, renormalised, top_k_experts


@ROUTERS.register("top_k")
@dataclasses.dataclass(frozen=True)
class TopK(LinearRouter):
    """Each token uses its `k` highest-scored experts; ties go to the lowest expert index.

    The softmax is over all experts. A softmax over the chosen logits alone (Shazeer et al.,
    Mixtral) gives the same weights as `renormalise=True`: dividing by the chosen probabilities'
    sum cancels the other experts' part of the denominator.
    """

    card = Card(
        proposed="Shazeer et al. 2017, arXiv 1701.06538; Lepikhin et al. 2020, arXiv 2006.16668",
        rule="the `k` best by softmax probability; optionally from the best groups only",
        weights="probabilities, renormalised or raw, times `scale`",
        losses=("load_balance", "z_loss", "device_balance", "communication", "parameter_penalty"),
    )
    k: int = knob(2, low=1, unit="experts per token", doc="Experts that each token uses.")
    renormalise: bool = knob(
        True,
        doc="Divide the chosen scores by their sum, which is a softmax after selection (Mixtral, "
        "HMoE eq. 8). False keeps the raw softmax probabilities (DeepSeekMoE eq. 9-11, OLMoE).",
    )
    scale: float = knob(
        1.0,
        low=0.0,
        low_open=True,
        doc="Factor on the combine weights, renormalised or not (DeepSeek's routed_scaling_factor; "
        "V2 16).",
    )
    groups: int = knob(1, low=1, unit="groups", doc="Equal groups of neighbouring experts.")
    groups_kept: int = knob(
        1,
        low=1,
        unit="groups",
        doc="Groups that a token's experts may come from: those with the best expert "
        "(DeepSeek-V2: 3 of 8).",
    )

    def slots(self, num_experts: int) -> int:
        return self.k

    def weight_sum(self) -> tuple[float, float]:
        return (self.scale if self.renormalise else 0.0), self.scale

    def check_experts(self, num_experts: int, path: str) -> None:
        super().check_experts(num_experts, path)
        check_groups(self.k, self.groups, self.groups_kept, num_experts, path)

    def select(self, scores_TE: jax.Array, state: State) -> Selection:
        limited_TE = limit_to_groups(scores_TE, self.groups, self.groups_kept, best=1)
        return top_k(
            scores_TE,
            self.k,
            renormalise=self.renormalise,
            scale=self.scale,
            ranked_by_TE=limited_TE,
        )


def top_k(
    scores_TE: jax.Array,
    k: int,
    *,
    renormalise: bool,
    scale: float = 1.0,
    ranked_by_TE: jax.Array | None = None,
) -> Selection:
    """The `k` highest of each row `[T, E]`, in descending order.

    Args:
      scores_TE: float32, what the weights are made of.
      ranked_by_TE: what the choice is made by, where that is something else (biased scores, scores
        with -inf for experts that are out of reach). No gradient flows through the choice.
    """
    ranked_TE = scores_TE if ranked_by_TE is None else ranked_by_TE
    expert_TK = top_k_experts(ranked_TE, k)
    weight_TK = jnp.take_along_axis(scores_TE, expert_TK, axis=-1)
    if renormalise:
        weight_TK = renormalised(weight_TK, jnp.ones_like(expert_TK, bool))
    return Selection(expert_TK, scale * weight_TK)
