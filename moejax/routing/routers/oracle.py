"""The oracle of MoEfication: the experts that are most active (Zhang et al. 2022, 2110.01786)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from moejax.config.knobs import knob
from moejax.routing.contract import ROUTERS, Card, Params, Router, RouterInputs, Routing, State
from moejax.routing.linear import top_k_experts


@ROUTERS.register("oracle")
@dataclasses.dataclass(frozen=True)
class Oracle(Router):
    """Each token uses the `k` experts whose hidden units are most active on it; all with weight 1.

    It computes every expert in order to choose, so it saves nothing: it is the ground truth that
    learned routers are held against, and the router of activation-frequency maps. With `k` all the
    experts, a dense FFN that was cut into experts is itself again. It learns nothing.
    """

    card = Card(
        proposed="Zhang et al. 2022, arXiv 2110.01786 (MoEfication)",
        rule="the `k` experts with the largest sum of absolute hidden activations, all of which it "
        "computes",
        weights="1",
        losses=(),
    )
    has_logits = False
    sees_activity = True
    k: int = knob(2, low=1, unit="experts per token", doc="Experts that each token uses.")

    def slots(self, num_experts: int) -> int:
        return self.k

    def weight_sum(self) -> tuple[float, float]:
        return float(self.k), float(self.k)

    def __call__(
        self, x_TD: jax.Array, inputs: RouterInputs, params: Params, state: State
    ) -> tuple[Routing, jax.Array | None]:
        """Raises ValueError without `inputs.activity_TE`."""
        if inputs.activity_TE is None:
            raise ValueError(
                "the oracle needs to see the experts: RouterInputs(activity_TE=...), which an "
                "MoELayer fills in"
            )
        scores_TE = inputs.activity_TE
        expert_TK = top_k_experts(scores_TE, self.k)
        routing = self.routing(
            inputs,
            expert_TK,
            jnp.ones(expert_TK.shape, jnp.float32),
            scores_TE=scores_TE,
            num_experts=scores_TE.shape[-1],
        )
        return routing, inputs.carry_TE
