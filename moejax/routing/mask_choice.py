"""What routers that choose among masks share: a mask per token, and the routing that it makes.

A *mask* says which experts a token uses; there are `M` of them, axis letter `M`. All experts of a
mask have the same say: with one mask per token their weight is 1, so a layer whose masks are all
ones is the sum of its experts, which is the dense FFN that it was cut from.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from moejax.config.knobs import ConfigError, knob
from moejax.routing.contract import Params, Router, RouterInputs, Routing
from moejax.routing.linear import linear_logits


@dataclasses.dataclass(frozen=True)
class MaskRouter(Router):
    """A linear map chooses `per_token` of the `masks`, by softmax probability."""

    has_logits = False
    masks: int = knob(4, low=1, unit="masks", doc="Masks that a token's router chooses from (M).")
    per_token: int = knob(
        1,
        low=1,
        unit="masks",
        doc="Masks of a token; it uses the experts of all of them, weighed by their renormalised "
        "probabilities.",
    )
    init_std: float = knob(
        0.02, low=0.0, unit="standard deviation", doc="Initial scale of the map that chooses."
    )

    def slots(self, num_experts: int) -> int:
        return num_experts

    def validate(self, path: str) -> None:
        """Raises ConfigError when a token asks for more masks than there are."""
        if self.per_token > self.masks:
            raise ConfigError(
                f"{path}.per_token: asks for {self.per_token} masks per token but there are "
                f"{self.masks}; nearest valid value {self.masks}"
            )

    def init(self, key: jax.Array, d_model: int, num_experts: int) -> Params:
        """`choose_DM` float32 `[D, M]`."""
        return {"choose_DM": self.init_std * jax.random.normal(key, (d_model, self.masks))}

    def num_parameters(self, d_model: int, num_experts: int) -> int:
        return d_model * self.masks

    def chosen(self, x_TD: jax.Array, params: Params) -> jax.Array:
        """float32 `[T, M]`: the weights of a token's masks, which sum to 1; 0 for all others.

        A single mask per token has weight 1 to the bit, and yet its probability has a gradient: no
        gradient flows through the sum that the probabilities are divided by.
        """
        probs_TM = jax.nn.softmax(linear_logits(x_TD, params["choose_DM"]), axis=-1)
        _, mask_TK = jax.lax.top_k(jax.lax.stop_gradient(probs_TM), self.per_token)
        picked_TM = (mask_TK[..., None] == jnp.arange(self.masks)).any(1)
        kept_TM = jnp.where(picked_TM, probs_TM, 0.0)
        fixed_TM = jax.lax.stop_gradient(kept_TM)
        total_T1 = fixed_TM.sum(-1, keepdims=True)
        # p / p is not always 1 in a compiled program.
        weight_TM = fixed_TM / total_T1 if self.per_token > 1 else picked_TM.astype(jnp.float32)
        return weight_TM + (kept_TM - fixed_TM) / total_T1

    def routed(
        self,
        inputs: RouterInputs,
        chosen_TM: jax.Array,
        gate_ME: jax.Array,
        scores_TE: jax.Array | None = None,
    ) -> Routing:
        """Every expert with a positive gate in a mask of the token, by descending weight."""
        num_experts = gate_ME.shape[-1]
        weight_TE = jnp.matmul(chosen_TM, gate_ME, precision=jax.lax.Precision.HIGHEST)
        weight_TK, expert_TK = jax.lax.top_k(weight_TE, self.slots(num_experts))
        return self.routing(
            inputs,
            jnp.where(weight_TK > 0, expert_TK, num_experts),
            weight_TK,
            scores_TE=scores_TE,
            num_experts=num_experts,
        )
