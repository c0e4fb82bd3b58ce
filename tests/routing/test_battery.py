"""Every registered router and variant passes the battery, and the battery sees what it should."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from router_battery import CHECKS, check_router
from router_subject import Subject
from routers_under_test import ROUTERS, routers

from moejax.config import knob
from moejax.routing import ROUTERS as REGISTRY
from moejax.routing import LinearRouter, Selection
from moejax.routing.linear import linear_logits
from moejax.routing.routers import ExpertChoice, TopK, top_k


@functools.cache
def subject(name):
    return Subject(ROUTERS[name])


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", ROUTERS)
def test_battery(name, check):
    check(subject(name))


def test_registering_is_enough(monkeypatch):
    """A router from outside the package is in the battery as soon as it is registered."""
    monkeypatch.setattr(REGISTRY, "_classes", dict(REGISTRY._classes))

    @REGISTRY.register("outside")
    @dataclasses.dataclass(frozen=True)
    class BestAndRunnersUp(LinearRouter):
        share: float = knob(0.5, low=0, high=1)

        def slots(self, num_experts):
            return num_experts

        def select(self, scores_TE, state):
            weight_TK, expert_TK = jax.lax.top_k(scores_TE, scores_TE.shape[-1])
            keep_TK = weight_TK >= self.share * weight_TK[:, :1]
            return Selection(jnp.where(keep_TK, expert_TK, scores_TE.shape[-1]), weight_TK)

    check_router(routers()["outside"])


# ---- routers that break one promise each: the check of that promise must turn red


class SeesTheFuture(TopK):
    def __call__(self, x_TD, inputs, params, state):
        return super().__call__(x_TD - x_TD.mean(0), inputs, params, state)


class DeclaresTooLittle(TopK):
    causal = False


class CountsPadding(ExpertChoice):
    def __call__(self, x_TD, inputs, params, state):
        everyone = dataclasses.replace(inputs, valid_T=jnp.ones_like(inputs.valid_T))
        routing, carry_TE = super().__call__(x_TD, everyone, params, state)
        experts = routing.expert_TK, routing.weight_TK
        kept = self.routing(inputs, *experts, num_experts=routing.num_experts)
        return dataclasses.replace(
            kept, scores_TE=routing.scores_TE, logits_TE=routing.logits_TE
        ), carry_TE


class RoundsLogits(TopK):
    def logits(self, x_TD, inputs, params):
        return (x_TD @ params["w_DE"].astype(x_TD.dtype)).astype(jnp.float32)


class PrefersTheLast(TopK):
    def select(self, scores_TE, state):
        chosen = top_k(scores_TE[:, ::-1], self.k, renormalise=True)
        return chosen._replace(expert_TK=scores_TE.shape[-1] - 1 - chosen.expert_TK)


class WeighsTwice(TopK):
    def select(self, scores_TE, state):
        chosen = super().select(scores_TE, state)
        return chosen._replace(weight_TK=2 * chosen.weight_TK)


class HidesARequest(TopK):
    def select(self, scores_TE, state):
        return super().select(scores_TE, state)._replace(requested_T=jnp.ones(len(scores_TE), int))


class Unsteady(TopK):
    def logits(self, x_TD, inputs, params):
        drawn_TE = jax.random.normal(jax.random.key(0) if inputs.train else jax.random.key(1))
        return linear_logits(x_TD, params["w_DE"]) + drawn_TE * jnp.arange(inputs.num_experts)


class Rewarded(TopK):
    """The balance loss of its scores drives it further apart."""

    def score(self, logits_TE):
        return jax.nn.softmax(-logits_TE, axis=-1)

    def select(self, scores_TE, state):
        return super().select(jax.nn.softmax(-jnp.log(scores_TE), axis=-1), state)


@pytest.mark.parametrize(
    "router, check, symptom",
    [
        (SeesTheFuture(), "causality_is_as_declared", "causal=True is not so"),
        (DeclaresTooLittle(), "causality_is_as_declared", "causal=False is not so"),
        (CountsPadding(), "padded_equals_compacted_in_values_and_gradients", "not equal"),
        (RoundsLogits(), "bfloat16_activations_choose_what_float32_math_says", "Not equal"),
        (PrefersTheLast(), "ties_go_to_the_lowest_index", "not equal"),
        (WeighsTwice(), "shapes_types_and_books", "weights sum to 2.0"),
        (HidesARequest(), "shapes_types_and_books", "more experts than asked for"),
        (Unsteady(), "noise_needs_a_key_and_training", "not equal"),
        (Rewarded(), "the_balance_loss_lowers_the_load_cv", "load CV went from"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_the_battery_turns_red_for(router, check, symptom):
    function = next(known for known in CHECKS if known.__name__ == check)
    with pytest.raises(AssertionError, match=symptom):
        function(Subject(router))
