"""MoEfication's learned routers: which parts of a dense FFN a token needs (2110.01786)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from moejax.config.knobs import knob
from moejax.routing.contract import ROUTERS, Card, Params, RouterInputs, State
from moejax.routing.linear import LinearRouter, Selection, linear_logits, top_k_experts


@ROUTERS.register("moefication")
@dataclasses.dataclass(frozen=True)
class MoEfication(LinearRouter):
    """Predicts from a token's direction which experts the `oracle` would choose; all with weight 1,
    so that all experts together are the dense FFN that they were cut from.

    With `hidden=0` a linear map ("similarity": its columns are the mean neurons of the experts);
    else two matrices with tanh between them. `moejax.surgery` fits them to the activity of the
    frozen model; both see tokens of length 1, as the official code does.
    """

    card = Card(
        proposed="Zhang et al. 2022, arXiv 2110.01786 (MoEfication)",
        rule="the `k` best by a linear map or a two-layer tanh network of the token's direction, "
        "fitted to the activations of a dense FFN",
        weights="1 (with a gradient of the scores, if asked for)",
        losses=("load_balance", "z_loss"),
    )
    k: int = knob(2, low=1, unit="experts per token", doc="Experts that each token uses.")
    hidden: int = knob(
        0,
        low=0,
        unit="hidden units",
        doc="Width of the tanh layer; 0: no such layer (MoEfication: as many as experts).",
    )
    straight_through: bool = knob(
        False,
        doc="Let the language model's loss reach the scores: weights stay 1, and their gradient is "
        "that of the scores. False: only a fit, or a loss on the scores, trains the router.",
    )

    def slots(self, num_experts: int) -> int:
        return self.k

    def weight_sum(self) -> tuple[float, float]:
        return float(self.k), float(self.k)

    def init(self, key: jax.Array, d_model: int, num_experts: int) -> Params:
        """`w_DE`, or `in_DH` and `out_HE`; float32."""
        if not self.hidden:
            return super().init(key, d_model, num_experts)
        in_key, out_key = jax.random.split(key)
        return {
            "in_DH": self.init_std * jax.random.normal(in_key, (d_model, self.hidden)),
            "out_HE": self.init_std * jax.random.normal(out_key, (self.hidden, num_experts)),
        }

    def num_parameters(self, d_model: int, num_experts: int) -> int:
        hidden = self.hidden
        return hidden * (d_model + num_experts) if hidden else d_model * num_experts

    def logits(self, x_TD: jax.Array, inputs: RouterInputs, params: Params) -> jax.Array:
        unit_TD = direction(self.jittered(x_TD, inputs))
        if not self.hidden:
            return linear_logits(unit_TD, params["w_DE"])
        return linear_logits(jnp.tanh(linear_logits(unit_TD, params["in_DH"])), params["out_HE"])

    def score(self, logits_TE: jax.Array) -> jax.Array:
        """The sigmoid: fits are of a cross-entropy per expert, and experts do not compete."""
        return jax.nn.sigmoid(logits_TE)

    def select(self, scores_TE: jax.Array, state: State) -> Selection:
        expert_TK = top_k_experts(scores_TE, self.k)
        weight_TK = jnp.ones(expert_TK.shape, jnp.float32)
        if self.straight_through:
            chosen_TK = jnp.take_along_axis(scores_TE, expert_TK, axis=-1)
            weight_TK = weight_TK + (chosen_TK - jax.lax.stop_gradient(chosen_TK))
        return Selection(expert_TK, weight_TK)


def direction(x_TD: jax.Array) -> jax.Array:
    """The tokens divided by their length; one shorter than 1e-6 has no direction and becomes 0."""
    square_T1 = jnp.sum(x_TD * x_TD, axis=-1, keepdims=True)
    long_T1 = square_T1 > 1e-12
    # The guard inside of the root: at 0 its gradient would be infinite.
    return x_TD * jnp.where(long_T1, jax.lax.rsqrt(jnp.where(long_T1, square_T1, 1.0)), 0.0)
