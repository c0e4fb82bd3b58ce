"""MoE++: top-k with gating residuals (Jin et al. 2024, 2410.07348; methods H.6).

The experts that go with it, which compute nothing, are the layer's (`moe.zero_compute`).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from moejax.config.knobs import ConfigError, knob
from moejax.routing.contract import ROUTERS, Card, Params, RouterInputs, Routing, State
from moejax.routing.linear import LinearRouter, Selection, linear_logits, renormalised


@ROUTERS.register("moe_plus_plus")
@dataclasses.dataclass(frozen=True)
class MoEPlusPlus(LinearRouter):
    """Top-k of logits that take in those of the MoE layer before: `W x + W_g logits_before`.

    What the first layer takes in is zero.
    """

    card = Card(
        proposed="Jin et al. 2024, arXiv 2410.07348",
        rule="the `k` best by softmax of logits that add a map of the previous MoE layer's logits",
        weights="raw probabilities (paper), or renormalised without the zero experts (code)",
        losses=("load_balance",),
    )
    carries = True
    k: int = knob(2, low=1, unit="experts per token", doc="Experts that each token uses.")
    renormalise: bool = knob(
        False,
        doc="Divide the chosen probabilities by their sum (official code). False keeps them raw "
        "(eq. 1).",
    )
    zero_experts: int = knob(
        0,
        low=0,
        unit="experts",
        doc="The last experts whose weight is set to 0 before weights are renormalised: as many as "
        "`moe.zero_compute.zero` to weigh like the official code, 0 to weigh like the paper.",
    )
    two_layer: bool = knob(
        False,
        doc="Logits from a tanh layer of 8 E units (official code's default). False: from the "
        "hidden state directly (eq. 6).",
    )

    def slots(self, num_experts: int) -> int:
        return self.k

    def weight_sum(self) -> tuple[float, float]:
        return (1.0 if self.renormalise and not self.zero_experts else 0.0), 1.0

    def check_experts(self, num_experts: int, path: str) -> None:
        super().check_experts(num_experts, path)
        if self.zero_experts >= num_experts:
            raise ConfigError(
                f"{path}.zero_experts={self.zero_experts}: there are {num_experts} experts in all; "
                f"nearest valid value {num_experts - 1}"
            )

    def init(self, key: jax.Array, d_model: int, num_experts: int) -> Params:
        """`w_DE` (or `first_DM` and `w_ME`), and `residual_EE` from the carry to the logits."""
        shapes = {"w_DE": (d_model, num_experts), "residual_EE": (num_experts, num_experts)}
        if self.two_layer:
            del shapes["w_DE"]
            shapes |= {
                "first_DM": (d_model, 8 * num_experts),
                "w_ME": (8 * num_experts, num_experts),
            }
        keys = jax.random.split(key, len(shapes))
        return {
            name: self.init_std * jax.random.normal(key, shapes[name])
            for name, key in zip(sorted(shapes), keys, strict=True)
        }

    def num_parameters(self, d_model: int, num_experts: int) -> int:
        hidden = 8 * num_experts
        own = (d_model + num_experts) * hidden if self.two_layer else d_model * num_experts
        return own + num_experts**2

    def logits(self, x_TD: jax.Array, inputs: RouterInputs, params: Params) -> jax.Array:
        if self.two_layer:
            hidden_TM = jnp.tanh(linear_logits(self.jittered(x_TD, inputs), params["first_DM"]))
            logits_TE = linear_logits(hidden_TM, params["w_ME"])
        else:
            logits_TE = super().logits(x_TD, inputs, params)
        if inputs.carry_TE is None:
            return logits_TE
        return logits_TE + linear_logits(inputs.carry_TE, params["residual_EE"])

    def select(self, scores_TE: jax.Array, state: State) -> Selection:
        weight_TK, expert_TK = jax.lax.top_k(scores_TE, self.k)
        if self.renormalise:
            counted_TK = expert_TK < scores_TE.shape[-1] - self.zero_experts
            weight_TK = renormalised(weight_TK, counted_TK)
        return Selection(expert_TK, weight_TK)

    def __call__(
        self, x_TD: jax.Array, inputs: RouterInputs, params: Params, state: State
    ) -> tuple[Routing, jax.Array | None]:
        routing, _ = super().__call__(x_TD, inputs, params, state)
        return routing, routing.logits_TE
