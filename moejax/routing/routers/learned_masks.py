"""Learned masks over the experts of a layer (Liu et al., ACL 2025 long.768; methods F).

Of the paper only the abstract was to be had: masks on the activations of a pretrained dense FFN,
one for each expert of the MoE it becomes, L0-regularised, all on at first and sparsified step by
step. Constants and schedule are those of LLM-Shearing; what else is ours is marked so.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from moejax.config.knobs import knob
from moejax.routing import hard_concrete
from moejax.routing.contract import ROUTERS, Card, Params, RouterInputs, Routing, State
from moejax.routing.mask_choice import MaskRouter
from moejax.routing.stats import RoutingStats


@ROUTERS.register("learned_masks")
@dataclasses.dataclass(frozen=True)
class LearnedMasks(MaskRouter):
    """Each token uses the experts whose hard-concrete gate is open in the mask that it chooses.

    The experts are groups of neurons of one dense FFN, and the masks rows of gates over them. The
    expected share of experts that a token uses, `a`, follows a target that falls from `start` to
    `target` in `warmup` steps, by the Lagrangian `l1 (a - t) + l2 (a - t)^2`; both multipliers grow
    by gradient ascent, once per optimiser step. `a` and `t` are means over all layers that share
    this router's config: some may keep more than others.

    While training gates are drawn anew at each step, one draw for all tokens of a layer. Without
    noise they are 0 or 1 (`hard_concrete.decided`).
    """

    card = Card(
        proposed="Liu et al. 2025, ACL 2025 long.768; gates: Louizos et al. 2018, arXiv 1712.01312",
        rule="all experts whose hard-concrete gate is open in the best `per_token` of `masks` "
        "masks, of which a Lagrangian keeps `target` of the experts",
        weights="the gates (1 without noise) times the masks' renormalised probabilities",
        losses=("own",),
    )
    target: float = knob(
        0.5,
        low=0.0,
        low_open=True,
        high=1.0,
        unit="share of experts",
        doc="Experts that a token uses in the end.",
    )
    start: float = knob(
        1.0, low=0.0, low_open=True, high=1.0, unit="share of experts", doc="The first target."
    )
    warmup: int = knob(
        1000, low=0, unit="optimiser steps", doc="Steps from the first target to the last."
    )
    rate: float = knob(1.0, low=0.0, doc="Step size of the multipliers' ascent (ours).")
    quadratic: float = knob(10.0, low=0.0, doc="The quadratic term's first multiplier (ours).")
    gain: float = knob(
        1000.0,
        low=0.0,
        low_open=True,
        doc="log alpha is this times the stored parameter: an optimiser whose steps have the size "
        "of its rate (Adam) moves gates so many times faster than weights (ours; LLM-Shearing has "
        "a rate for masks that is 1e4 times the weights').",
    )
    init_log_alpha: float = knob(5.0, doc="Mean of log alpha at first: nearly all gates open.")

    def init(self, key: jax.Array, d_model: int, num_experts: int) -> Params:
        """`choose_DM`, and `gain_ME` float32 `[M, E]`: log alpha over `gain`, which starts at
        N(init_log_alpha, 0.01). (By its name it does not decay.)"""
        choose_key, gate_key = jax.random.split(key)
        draw_ME = jax.random.normal(gate_key, (self.masks, num_experts))
        return super().init(choose_key, d_model, num_experts) | {
            "gain_ME": (self.init_log_alpha + 0.01 * draw_ME) / self.gain
        }

    def num_parameters(self, d_model: int, num_experts: int) -> int:
        return self.masks * (d_model + num_experts)

    def nominal_active(self, num_experts: int) -> float:
        return max(self.target * num_experts, min(1.0, float(num_experts)))

    def init_state(self, num_experts: int) -> State:
        """Multipliers `linear` and `quadratic`, and optimiser steps done; float32 scalars."""
        return {
            "linear": jnp.zeros((), jnp.float32),
            "quadratic": jnp.full((), self.quadratic, jnp.float32),
            "step": jnp.zeros((), jnp.float32),
        }

    def log_alpha(self, params: Params) -> jax.Array:
        """float32 `[M, E]`, within its bounds."""
        return hard_concrete.clamped(self.gain * params["gain_ME"])

    def decided(self, params: Params) -> jax.Array:
        """bool `[M, E]`: the masks as they are without noise."""
        return hard_concrete.decided(self.log_alpha(params))

    def __call__(
        self, x_TD: jax.Array, inputs: RouterInputs, params: Params, state: State
    ) -> tuple[Routing, jax.Array | None]:
        log_alpha_ME = self.log_alpha(params)
        if inputs.noisy:
            assert inputs.key is not None
            gate_ME = hard_concrete.sample(log_alpha_ME, inputs.key)
        else:
            gate_ME = hard_concrete.decided(log_alpha_ME).astype(jnp.float32)
        chosen_TM = self.chosen(x_TD, params)
        # Scores are the probabilities that a token uses an expert: the sum is what L0 counts. They
        # move gates only; the choice among masks is trained by the model's own loss.
        picked_TM1 = jax.lax.stop_gradient(chosen_TM > 0)[..., None]
        shut_ME = 1.0 - hard_concrete.open_probability(log_alpha_ME)
        scores_TE = 1.0 - jnp.where(picked_TM1, shut_ME, 1.0).prod(1)
        return self.routed(inputs, chosen_TM, gate_ME, scores_TE), inputs.carry_TE

    def wanted(self, step: jax.Array) -> jax.Array:
        """The target after so many steps: linear from `start` to `target`."""
        progress = jnp.minimum(step / self.warmup, 1.0) if self.warmup else jnp.float32(1.0)
        return self.start + (self.target - self.start) * progress

    def update_state(self, state: State, stats: RoutingStats) -> State:
        excess = _share(stats) - self.wanted(state["step"])
        return {
            "linear": state["linear"] + self.rate * excess,
            "quadratic": state["quadratic"] + self.rate * jnp.square(excess),
            "step": state["step"] + 1.0,
        }

    def auxiliary(self, stats: RoutingStats, state: State) -> dict[str, jax.Array]:
        """The Lagrangian, mean over layers (which all have the same state)."""
        excess = _share(stats) - self.wanted(state["step"])
        cost = state["linear"] * excess + state["quadratic"] * jnp.square(excess)
        return {"learned_masks": cost.mean()}


def _share(stats: RoutingStats) -> jax.Array:
    """Expected share of experts that a token uses, mean over tokens and layers: a scalar."""
    assert stats.score_E is not None  # they are this router's own
    experts = stats.score_E.shape[-1]
    tokens_L = jnp.maximum(stats.tokens, 1).astype(jnp.float32)
    return (stats.score_E.sum(-1) / tokens_L / experts).mean()
