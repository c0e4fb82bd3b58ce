"""The shared linear router: float32 logits, scores, then one pure selection rule."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from moejax.config.knobs import knob
from moejax.routing import noise
from moejax.routing.contract import Params, Router, RouterInputs, Routing, State, normalised


class Selection(NamedTuple):
    """What a rule returns.

    Attributes:
      expert_TK: int32 `[T, K]`; `E` where the slot is empty.
      weight_TK: float32 `[T, K]` combine weights (ignored where empty).
      requested_T: int32 `[T]` experts asked for before any bound, or None: the filled slots.
    """

    expert_TK: jax.Array
    weight_TK: jax.Array
    requested_T: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class LinearRouter(Router):
    """`scores = softmax(x @ w)`, then `select`. Override `select` (`score` and `logits` if needed).

    The weights are drawn from a normal of standard deviation `init_std` (DeepSeekMoE 0.006,
    OLMoE 0.02): small, so that routing starts near uniform.
    """

    init_std: float = knob(
        0.02, low=0.0, unit="standard deviation", doc="Initial scale of the router's weights."
    )
    jitter: float = knob(
        0.0,
        low=0.0,
        high=1.0,
        doc="While training, multiply every input of the router by U(1 - jitter, 1 + jitter) "
        "(Switch 1e-2).",
    )

    def init(self, key: jax.Array, d_model: int, num_experts: int) -> Params:
        """`w_DE` float32 `[D, E]`."""
        return {"w_DE": self.init_std * jax.random.normal(key, (d_model, num_experts))}

    def num_parameters(self, d_model: int, num_experts: int) -> int:
        return d_model * num_experts

    def logits(self, x_TD: jax.Array, inputs: RouterInputs, params: Params) -> jax.Array:
        """Router logits `[T, E]`, float32."""
        return linear_logits(self.jittered(x_TD, inputs), params["w_DE"])

    def jittered(self, x_TD: jax.Array, inputs: RouterInputs) -> jax.Array:
        """float32 `[T, D]`: the hidden states as the router sees them."""
        x_TD = x_TD.astype(jnp.float32)
        if self.jitter == 0.0 or not inputs.noisy:
            return x_TD
        draw_TD = noise.uniform(inputs, x_TD.shape[-1], noise.JITTER)
        return x_TD * (1.0 + self.jitter * (2.0 * draw_TD - 1.0))

    def score(self, logits_TE: jax.Array) -> jax.Array:
        """Non-negative scores of float32 logits; softmax over the routed experts."""
        return jax.nn.softmax(logits_TE, axis=-1)

    def select(self, scores_TE: jax.Array, state: State) -> Selection:
        """The rule: scores `[T, E]` (and router state) to a `Selection`."""
        raise TypeError(f"{type(self).__name__} has no selection rule")

    def __call__(
        self, x_TD: jax.Array, inputs: RouterInputs, params: Params, state: State
    ) -> tuple[Routing, jax.Array | None]:
        logits_TE = self.logits(x_TD, inputs, params)
        scores_TE = self.score(logits_TE)
        selection = self.select(scores_TE, state)
        routing = self.routing(
            inputs,
            selection.expert_TK,
            selection.weight_TK,
            requested_T=selection.requested_T,
            scores_TE=scores_TE,
            logits_TE=logits_TE,
            num_experts=logits_TE.shape[-1],
        )
        return routing, inputs.carry_TE


def linear_logits(x_TD: jax.Array, w_DE: jax.Array) -> jax.Array:
    """Router logits `[T, E]` in float32 at full precision (methods A.5 pitfall 5: a router in
    bfloat16 changes which experts are chosen near a threshold)."""
    return jnp.matmul(
        x_TD.astype(jnp.float32), w_DE.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
    )


def top_k_experts(scores_TE: jax.Array, k: int) -> jax.Array:
    """int32 `[T, k]`: the experts with the highest scores, in descending order; ties go to the
    lowest index. No gradient flows through the choice."""
    return jax.lax.top_k(jax.lax.stop_gradient(scores_TE), k)[1]


def renormalised(weight_TK: jax.Array, filled_TK: jax.Array) -> jax.Array:
    """Weights divided by their sum over the filled slots, `[T, K]`; rows of zeros stay zero."""
    return normalised(jnp.where(filled_TK, weight_TK, 0.0))
