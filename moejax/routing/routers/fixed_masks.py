"""Masks that are decided: what `learned_masks` becomes when layers are cut to their true cost."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from moejax.config.knobs import knob
from moejax.routing.contract import ROUTERS, Card, Params, RouterInputs, Routing, State
from moejax.routing.mask_choice import MaskRouter


@ROUTERS.register("fixed_masks")
@dataclasses.dataclass(frozen=True)
class FixedMasks(MaskRouter):
    """Each token uses all experts of the mask that it chooses. With one mask: all that it has.

    The masks are router state, which no gradient reaches; a fresh layer has masks of all experts.
    """

    card = Card(
        proposed="Liu et al. 2025, ACL 2025 long.768; or pruning that leaves all other experts on",
        rule="all experts of the best `per_token` of `masks` masks, which are fixed",
        weights="1, or the masks' renormalised probabilities added up",
        losses=(),
    )
    has_scores = False
    most: int = knob(
        0, low=0, unit="experts per token", doc="Experts of a token at most; 0: all there are."
    )
    active: float = knob(
        0.0, low=0.0, unit="experts per token", doc="Experts per token to plan with; 0: `most`."
    )

    def slots(self, num_experts: int) -> int:
        return self.most or num_experts

    def nominal_active(self, num_experts: int) -> float:
        return self.active or float(self.slots(num_experts))

    def init_state(self, num_experts: int) -> State:
        """`member_ME` float32 `[M, E]`: above 0.5 where the mask has the expert."""
        return {"member_ME": jnp.ones((self.masks, num_experts), jnp.float32)}

    def __call__(
        self, x_TD: jax.Array, inputs: RouterInputs, params: Params, state: State
    ) -> tuple[Routing, jax.Array | None]:
        member_ME = (state["member_ME"] > 0.5).astype(jnp.float32)
        return self.routed(inputs, self.chosen(x_TD, params), member_ME), inputs.carry_TE
