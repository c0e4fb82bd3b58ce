"""Routers of the next issue, sketched: proof that the contract holds them without bending.

Each is the published rule in its simplest form; none is registered by moejax itself.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from moejax.config import knob
from moejax.routing.contract import ROUTERS, Router
from moejax.routing.linear import LinearRouter, Selection, linear_logits, renormalised


@ROUTERS.register("sketch_sigmoid_bias")
@dataclasses.dataclass(frozen=True)
class SigmoidBias(LinearRouter):
    """DeepSeek-V3 (methods C.7): select on `sigmoid + bias`, weigh without the bias."""

    k: int = knob(2, low=1)
    rate: float = knob(1e-3, low=0.0)

    def slots(self, num_experts):
        return self.k

    def score(self, logits_TE):
        return jax.nn.sigmoid(logits_TE)

    def init_state(self, num_experts):
        return {"bias_E": jnp.zeros(num_experts, jnp.float32)}

    def select(self, scores_TE, state):
        _, expert_TK = jax.lax.top_k(scores_TE + state["bias_E"], self.k)
        weight_TK = jnp.take_along_axis(scores_TE, expert_TK, axis=-1)
        return Selection(expert_TK, renormalised(weight_TK, jnp.ones_like(expert_TK, bool)))

    def update_state(self, state, stats):
        load_LE = stats.count_E.astype(jnp.float32)
        step_LE = self.rate * jnp.sign(load_LE.mean(-1, keepdims=True) - load_LE)
        return {"bias_E": state["bias_E"] + step_LE}


@ROUTERS.register("sketch_hash")
@dataclasses.dataclass(frozen=True)
class Hash(Router):
    """Hash layers: the token id alone decides; no scores, no parameters."""

    has_scores = False
    has_logits = False
    expert_equivariant = False

    def slots(self, num_experts):
        return 1

    def __call__(self, x_TD, inputs, params, state):
        num_experts = inputs.num_experts
        mixed_T = (inputs.token_id_T.astype(jnp.uint32) * jnp.uint32(2654435761)) >> 16
        expert_TK = (mixed_T % num_experts).astype(jnp.int32)[:, None]
        weight_TK = jnp.ones_like(expert_TK, jnp.float32)
        return self.routing(inputs, expert_TK, weight_TK, num_experts=num_experts), None


@ROUTERS.register("sketch_expert_choice")
@dataclasses.dataclass(frozen=True)
class ExpertChoice(LinearRouter):
    """Experts choose tokens (methods H.2): `E*C` rows, a token holds 0..E experts."""

    causal = False
    factor: float = knob(1.0, low=0.0, low_open=True)

    def slots(self, num_experts):
        return num_experts

    def max_rows(self, num_tokens, num_experts):
        return num_experts * self.capacity(num_tokens, num_experts)

    def capacity(self, num_tokens, num_experts):
        return max(1, round(self.factor * num_tokens / num_experts))

    def nominal_active(self, num_experts):
        return self.factor

    def __call__(self, x_TD, inputs, params, state):
        logits_TE = linear_logits(x_TD, params["w_DE"])
        scores_TE = self.score(logits_TE)
        num_tokens, num_experts = scores_TE.shape
        wanted_ET = jnp.where(inputs.valid_T[:, None], scores_TE, -1.0).T
        _, token_EC = jax.lax.top_k(wanted_ET, self.capacity(num_tokens, num_experts))
        chosen_ET = jnp.zeros((num_experts, num_tokens), bool)
        chosen_ET = chosen_ET.at[jnp.arange(num_experts)[:, None], token_EC].set(True)
        expert_TK = jnp.where(chosen_ET.T, jnp.arange(num_experts), num_experts)
        weight_TK = jnp.where(chosen_ET.T, scores_TE, 0.0)
        routing = self.routing(
            inputs,
            expert_TK,
            weight_TK,
            scores_TE=scores_TE,
            logits_TE=logits_TE,
            num_experts=num_experts,
        )
        return routing, None


@ROUTERS.register("sketch_remoe")
@dataclasses.dataclass(frozen=True)
class ReLU(LinearRouter):
    """ReMoE (methods H.5): ReLU scores, no top-k; lambda adapts to reach a sparsity."""

    target_active: float = knob(2.0, low=0.0)
    init_std: float = knob(0.5, low=0.0)

    def slots(self, num_experts):
        return num_experts

    def nominal_active(self, num_experts):
        return self.target_active

    def score(self, logits_TE):
        return jax.nn.relu(logits_TE)

    def init_state(self, num_experts):
        return {"lambda": jnp.full((), 1e-8, jnp.float32)}

    def select(self, scores_TE, state):
        num_experts = scores_TE.shape[-1]
        expert_TK = jnp.where(scores_TE > 0, jnp.arange(num_experts), num_experts)
        return Selection(expert_TK, scores_TE)

    def update_state(self, state, stats):
        num_experts = stats.count_E.shape[-1]
        active = stats.count_E.sum() / jnp.maximum(stats.tokens.sum(), 1)
        sparsity, target = 1 - active / num_experts, 1 - self.target_active / num_experts
        factor = jnp.where(sparsity < target, 1.2, 1 / 1.2)
        return {"lambda": state["lambda"] * factor}

    def auxiliary(self, stats, state):
        tokens_L1 = jnp.maximum(stats.tokens, 1)[..., None]
        load_LE = jax.lax.stop_gradient(stats.count_E / tokens_L1)
        load_LE = load_LE * stats.count_E.shape[-1] / self.target_active
        penalty_L = (load_LE * stats.score_E / tokens_L1).sum(-1)
        return {"remoe": (state["lambda"] * penalty_L).mean()}


@ROUTERS.register("sketch_moe_plus_plus")
@dataclasses.dataclass(frozen=True)
class GatingResidual(LinearRouter):
    """MoE++ (methods H.6): logits take in the previous layer's; zero experts have width 0."""

    carries = True
    expert_equivariant = False
    k: int = knob(2, low=1)

    def slots(self, num_experts):
        return self.k

    def num_parameters(self, d_model, num_experts):
        return d_model * num_experts + num_experts**2

    def init(self, key, d_model, num_experts):
        first, second = jax.random.split(key)
        residual_EE = 0.1 * jax.random.normal(second, (num_experts, num_experts))
        return super().init(first, d_model, num_experts) | {"residual_EE": residual_EE}

    def __call__(self, x_TD, inputs, params, state):
        logits_TE = linear_logits(x_TD, params["w_DE"])
        if inputs.carry_TE is not None:
            logits_TE = logits_TE + linear_logits(inputs.carry_TE, params["residual_EE"])
        scores_TE = self.score(logits_TE)
        weight_TK, expert_TK = jax.lax.top_k(scores_TE, self.k)
        routing = self.routing(
            inputs,
            expert_TK,
            weight_TK,
            scores_TE=scores_TE,
            logits_TE=logits_TE,
            num_experts=logits_TE.shape[-1],
        )
        return routing, logits_TE
