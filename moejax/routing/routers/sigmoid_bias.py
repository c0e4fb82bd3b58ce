"""Sigmoid scores balanced by a bias, without a loss (Wang et al. 2024, 2408.15664; DeepSeek-V3)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from moejax.config.knobs import knob
from moejax.routing.contract import ROUTERS, Card, State
from moejax.routing.groups import check_groups, limit_to_groups
from moejax.routing.linear import LinearRouter, Selection
from moejax.routing.routers.top_k import top_k
from moejax.routing.stats import RoutingStats


@ROUTERS.register("sigmoid_bias")
@dataclasses.dataclass(frozen=True)
class SigmoidBias(LinearRouter):
    """Chooses by `sigmoid(x @ w) + bias`, weighs by the sigmoid alone.

    After each optimiser step the bias of every expert with more than the mean load goes down by
    `rate`, that of every one with less goes up. No gradient reaches it.
    """

    card = Card(
        proposed="Wang et al. 2024, arXiv 2408.15664; DeepSeek-V3, arXiv 2412.19437",
        rule="the `k` best by sigmoid score plus a bias that follows the load; optionally from the "
        "best groups only",
        weights="scores without the bias, renormalised or raw, times `scale`",
        losses=("load_balance",),
    )
    k: int = knob(2, low=1, unit="experts per token", doc="Experts that each token uses (V3: 8).")
    renormalise: bool = knob(True, doc="Divide the chosen scores by their sum (V3).")
    scale: float = knob(
        1.0, low=0.0, low_open=True, doc="Factor on the combine weights (V3's route_scale: 2.5)."
    )
    rate: float = knob(
        1e-3, low=0.0, doc="Step of the bias at each optimiser step (V3: 1e-3); 0: it stays."
    )
    groups: int = knob(1, low=1, unit="groups", doc="Equal groups of neighbouring experts (V3: 8).")
    groups_kept: int = knob(
        1,
        low=1,
        unit="groups",
        doc="Groups that a token's experts may come from: those with the highest sum of their two "
        "best biased scores (V3: 4).",
    )

    def slots(self, num_experts: int) -> int:
        return self.k

    def weight_sum(self) -> tuple[float, float]:
        # A raw sigmoid is below 1, and so is its sum over k experts below k.
        return (self.scale, self.scale) if self.renormalise else (0.0, self.scale * self.k)

    def check_experts(self, num_experts: int, path: str) -> None:
        super().check_experts(num_experts, path)
        check_groups(self.k, self.groups, self.groups_kept, num_experts, path)

    def init_state(self, num_experts: int) -> State:
        """`bias_E` float32, zeros."""
        return {"bias_E": jnp.zeros(num_experts, jnp.float32)}

    def score(self, logits_TE: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(logits_TE)

    def select(self, scores_TE: jax.Array, state: State) -> Selection:
        biased_TE = limit_to_groups(
            scores_TE + state["bias_E"], self.groups, self.groups_kept, best=2
        )
        return top_k(
            scores_TE,
            self.k,
            renormalise=self.renormalise,
            scale=self.scale,
            ranked_by_TE=biased_TE,
        )

    def update_state(self, state: State, stats: RoutingStats) -> State:
        load_LE = stats.count_E.astype(jnp.float32)
        step_LE = self.rate * jnp.sign(load_LE.mean(-1, keepdims=True) - load_LE)
        return {"bias_E": state["bias_E"] + step_LE}
