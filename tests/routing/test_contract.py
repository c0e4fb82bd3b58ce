"""The contract outside the battery: what is refused, what is planned, what a base class says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand_routing import hand_routing, stats_of
from routers_under_test import make_inputs, make_router, stack

from moejax.config import ConfigError, check
from moejax.routing import ROUTERS, Card, LinearRouter, LossesConfig, Router, RouterInputs
from moejax.routing.routers import ExpertChoice, MoEPlusPlus, ReMoE, SigmoidBias, TopK, TopP

T, D = 24, 12
OURS = [name for name in ROUTERS.names() if ROUTERS.get(name).__module__.startswith("moejax.")]


def hidden():
    return np.random.default_rng(0).normal(size=(T, D)).astype(np.float32)


def routed(router):
    given = hidden(), make_inputs(T), *make_router(router, D)
    return jax.tree.map(np.asarray, jax.jit(lambda *given: router(*given)[0])(*given))


def test_top_p_counts_what_k_max_cuts():
    wide, cut = routed(TopP(p=0.7)), routed(TopP(p=0.7, k_max=2))
    np.testing.assert_array_equal(wide.requested_T, cut.requested_T)
    np.testing.assert_array_equal(cut.active_T, np.minimum(cut.requested_T, 2))
    np.testing.assert_array_equal(cut.expert_TK, wide.expert_TK[:, :2])


def test_top_p_gives_at_least_k_min():
    few, more = routed(TopP(p=0.4)), routed(TopP(p=0.4, k_min=3))
    assert few.active_T.min() == 1
    np.testing.assert_array_equal(more.active_T, np.maximum(few.active_T, 3))
    np.testing.assert_array_equal(more.expert_TK[:, :1], few.expert_TK[:, :1])


@pytest.mark.parametrize("router", [TopK(k=1, renormalise=False), TopP(), ReMoE(), ExpertChoice()])
def test_a_gradient_reaches_the_router_through_the_weights(router):
    params, state = make_router(router, D)

    def loss(params):
        return (router(hidden(), make_inputs(T), params, state)[0].weight_TK ** 2).sum()

    assert np.abs(jax.jit(jax.grad(loss))(params)["w_DE"]).max() > 0


@pytest.mark.parametrize(
    "router, message",
    [
        (TopK(k=9), "r.k: asks for 9 experts per token but there are 8; nearest valid value 8"),
        (TopP(k_max=9), "r.k_max: 9 experts per token but there are 8; nearest valid value 8"),
        (TopP(k_min=9), "r.k_min: 9 experts per token but there are 8; nearest valid value 8"),
        (
            TopP(k_min=4, k_max=3),
            "r.k_min: 4 experts per token but k_max=3; nearest valid value 3",
        ),
        (TopK(groups=3), "r.groups=3: does not divide 8 experts; nearest valid value 2"),
        (SigmoidBias(groups=9), "r.groups=9: does not divide 8 experts; nearest valid value 8"),
        (
            TopK(groups=2, groups_kept=3),
            "r.groups_kept=3: there are 2 groups; nearest valid value 2",
        ),
        (
            SigmoidBias(k=5, groups=4, groups_kept=2),
            "r.k: asks for 5 experts per token but the 2 kept of 4 groups hold 4; "
            "nearest valid value 4",
        ),
        (ReMoE(k=9), "r.k: asks for 9 experts per token but there are 8; nearest valid value 8"),
        (
            MoEPlusPlus(zero_experts=8),
            "r.zero_experts=8: there are 8 experts in all; nearest valid value 7",
        ),
    ],
)
def test_impossible_knobs_are_refused(router, message):
    with pytest.raises(ConfigError) as error:
        router.check_experts(8, "r")
    assert str(error.value) == message


@pytest.mark.parametrize("p", [0.0, 1.5, -0.1])
def test_p_outside_its_interval_is_refused(p):
    with pytest.raises(ConfigError, match=r"router\.p="):
        check(TopP(p=p), "router")


def test_a_router_without_a_rule_says_so():
    class Nameless(LinearRouter):
        pass

    class Wide(Router):
        def slots(self, num_experts):
            return 9

    with pytest.raises(TypeError, match="Nameless has no selection rule"):
        Nameless().select(jnp.ones((1, 2)), {})
    with pytest.raises(TypeError, match="Router does not say how many slots"):
        Router().slots(4)
    with pytest.raises(TypeError, match="Router does not route"):
        Router()(jnp.ones((1, 2)), RouterInputs.of(1), {}, {})
    with pytest.raises(ConfigError, match=r"^r: asks for 9 experts per token but there are 8"):
        Wide().check_experts(8, "r")  # no knob to name


def test_what_a_router_need_not_say():
    stats = stack(stats_of(hand_routing([[0]], np.eye(3)[:1], 3)))
    router = Router()
    assert router.init(jax.random.key(0), 2, 3) == router.init_state(3) == {}
    assert router.num_parameters(2, 3) == 0
    assert router.update_state({"a": 1}, stats) == {"a": 1}
    assert router.auxiliary(stats, {}) == {}
    assert router.weight_sum() == (0.0, float("inf"))
    assert router.card == Card()


def test_nominal_active_is_where_a_fresh_router_starts():
    assert TopP(p=0.4).nominal_active(8) == 4
    assert TopP(p=0.4).nominal_active(16) == 7
    assert TopP(p=1.0).nominal_active(8) == 8
    assert TopP(p=0.6, k_max=3).nominal_active(8) == 3
    assert TopP(p=0.1, k_min=2).nominal_active(8) == 2
    assert TopK(k=3).nominal_active(8) == 3
    assert ReMoE(k=3).nominal_active(8) == 3
    assert ExpertChoice(factor=1.5).nominal_active(8) == 1.5


@pytest.mark.parametrize("name", OURS)
def test_every_router_has_a_card_of_its_own(name):
    cls = ROUTERS.get(name)
    card = cls.__dict__["card"]
    assert card.proposed and card.rule and card.weights
    known = {field.name for field in dataclasses.fields(LossesConfig)} | {"own"}
    assert set(card.losses) <= known
    assert ("own" in card.losses) == (cls.auxiliary is not Router.auxiliary)
    if not cls.has_scores:
        assert not card.losses


def test_rows_next_to_zero_are_not_normalised():
    """Their gradient would divide by the square of the sum: 0 in float32."""
    routing = hand_routing([[0], [0]], [[1e-25, 0.0], [1.0, 3.0]], 2)
    np.testing.assert_allclose(routing.probs_TE, [[1e-25, 0], [0.25, 0.75]])

    def total(scores_TE):
        return (dataclasses.replace(routing, scores_TE=scores_TE).probs_TE ** 2).sum()

    assert np.isfinite(jax.grad(total)(routing.scores_TE)).all()
