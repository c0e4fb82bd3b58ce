"""What every router promises: shapes, sentinels, causality, equivariance, padding, extremes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from routers_under_test import ROUTERS, D, E, make_inputs, make_router

from moejax.config import ConfigError, check
from moejax.routing import LinearRouter, Router, RouterInputs
from moejax.routing.routers import TopK, TopP

T = 24
each_router = pytest.mark.parametrize("name", ROUTERS)


@functools.cache
def hidden():
    return jax.random.normal(jax.random.key(0), (T, D))


@functools.cache
def call(name):
    """The router as one compiled function of everything that it may look at."""
    router = ROUTERS[name]
    return jax.jit(lambda x_TD, inputs, params, state: router(x_TD, inputs, params, state)[0])


@jax.jit
def _combine(routing):
    return routing.combine_TE()


def combine(routing):
    return np.asarray(_combine(routing))


@functools.cache
def made(name):
    return make_router(name)[1:]


def routed(name, x_TD, inputs):
    """Arrays of NumPy: what the tests do with them compiles nothing."""
    return jax.tree.map(np.asarray, call(name)(x_TD, inputs, *made(name)))


@each_router
def test_shapes_dtypes_and_sentinels(name):
    router = ROUTERS[name]
    routing = routed(name, hidden(), make_inputs(T))
    slots = router.slots(E)
    assert routing.expert_TK.shape == routing.weight_TK.shape == (T, slots)
    assert routing.expert_TK.dtype == routing.requested_T.dtype == jnp.int32
    assert routing.weight_TK.dtype == jnp.float32
    assert (routing.scores_TE is not None) == router.has_scores
    assert (routing.logits_TE is not None) == router.has_logits
    expert_TK, weight_TK = np.asarray(routing.expert_TK), np.asarray(routing.weight_TK)
    assert ((expert_TK >= 0) & (expert_TK <= E)).all()
    assert (weight_TK[expert_TK == E] == 0).all()
    for row in expert_TK:  # a token holds an expert at most once
        held = row[row < E]
        assert len(set(held)) == len(held)
    assert routing.filled_TK.sum() <= routing.max_rows
    assert (routing.requested_T >= routing.active_T).all()
    np.testing.assert_array_equal(routing.count_E, np.bincount(expert_TK[expert_TK < E], None, E))


@each_router
def test_the_analytic_parameter_count_is_the_real_one(name):
    router, params, _ = make_router(name)
    assert router.num_parameters(D, E) == sum(leaf.size for leaf in jax.tree.leaves(params))


@each_router
def test_a_later_token_changes_nothing_earlier_unless_declared(name):
    before = routed(name, hidden(), make_inputs(T))
    changed = hidden().at[T // 2].add(5.0)
    after = routed(name, changed, make_inputs(T))
    same = all(
        np.array_equal(getattr(before, field)[: T // 2], getattr(after, field)[: T // 2])
        for field in ("expert_TK", "weight_TK")
    )
    assert same == ROUTERS[name].causal


@each_router
def test_permuting_tokens_permutes_the_routing(name):
    assert ROUTERS[name].token_equivariant
    order = jax.random.permutation(jax.random.key(1), T)
    inputs = make_inputs(T)
    permuted = dataclasses.replace(
        inputs,
        token_id_T=inputs.token_id_T[order],
        position_T=inputs.position_T[order],
        sequence_T=inputs.sequence_T[order],
        carry_TE=inputs.carry_TE[order],
    )
    plain = routed(name, hidden(), inputs)
    moved = routed(name, hidden()[order], permuted)
    np.testing.assert_array_equal(combine(plain)[order], combine(moved))


@pytest.mark.parametrize("name", [n for n, r in ROUTERS.items() if r.expert_equivariant])
def test_permuting_experts_permutes_the_routing(name):
    params, state = made(name)
    order = jax.random.permutation(jax.random.key(2), E)
    plain = routed(name, hidden(), make_inputs(T))
    params = {key: value[:, order] for key, value in params.items()}
    state = {key: value[order] if value.ndim else value for key, value in state.items()}
    moved = call(name)(hidden(), make_inputs(T), params, state)
    np.testing.assert_allclose(combine(plain)[:, order], combine(moved), atol=1e-6)


@pytest.mark.parametrize("name", [n for n, r in ROUTERS.items() if r.causal])
def test_padded_equals_compacted(name):
    """Expert choice is left out: its capacity is a share of all rows, padding included."""
    real = np.arange(T) % 3 != 0
    inputs = make_inputs(T, valid_T=jnp.asarray(real))
    padded = routed(name, hidden(), inputs)
    compact_inputs = jax.tree.map(lambda leaf: leaf[real] if leaf.ndim else leaf, inputs)
    compact = routed(name, hidden()[real], compact_inputs)
    np.testing.assert_allclose(combine(padded)[real], combine(compact), atol=1e-6)
    assert (padded.expert_TK[~real] == E).all() and not padded.requested_T[~real].any()


@each_router
def test_extreme_hidden_states_stay_finite(name):
    router, params, state = make_router(name)
    inputs = make_inputs(T, carry_TE=jnp.zeros((T, E)))

    def weight_sum(params, x_TD):
        return router(x_TD, inputs, params, state)[0].weight_TK.sum()

    graded = jax.jit(jax.value_and_grad(weight_sum, argnums=(0, 1)))
    for scale in (0.0, 1e4):
        result = graded(params, scale * hidden())
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result))


@pytest.mark.parametrize("router", [TopK(k=2), TopP(p=0.2)])
def test_ties_go_to_the_lowest_expert(router):
    params = {"w_DE": jnp.zeros((D, E))}
    routing, _ = router(hidden(), make_inputs(T), params, {})
    assert routing.expert_TK[:, :2].tolist() == [[0, 1]] * T


@each_router
def test_router_numerics_are_float32_under_a_bfloat16_model(name):
    low = hidden().astype(jnp.bfloat16)
    routing = routed(name, low, make_inputs(T))
    exact = routed(name, low.astype(jnp.float32), make_inputs(T))
    np.testing.assert_array_equal(routing.expert_TK, exact.expert_TK)
    np.testing.assert_array_equal(routing.weight_TK, exact.weight_TK)


def test_top_p_counts_what_k_max_cuts():
    open_rule, cut_rule = TopP(p=0.7), TopP(p=0.7, k_max=2)
    params = open_rule.init(jax.random.key(3), D, E)
    wide, _ = open_rule(hidden(), make_inputs(T), params, {})
    cut, _ = cut_rule(hidden(), make_inputs(T), params, {})
    np.testing.assert_array_equal(wide.requested_T, cut.requested_T)
    np.testing.assert_array_equal(cut.active_T, np.minimum(cut.requested_T, 2))
    np.testing.assert_array_equal(cut.expert_TK, wide.expert_TK[:, :2])


def test_a_gradient_reaches_the_router_through_the_weights():
    router, params, state = make_router("top_p")

    def loss(params):
        return (router(hidden(), make_inputs(T), params, state)[0].weight_TK ** 2).sum()

    assert np.abs(jax.jit(jax.grad(loss))(params)["w_DE"]).max() > 0


def test_state_changes_the_choice_and_is_updated_once_per_step():
    from hand_routing import hand_routing, stats_of

    router = ROUTERS["sigmoid_bias"]
    counts = [[0]] * 5 + [[1]] * 3 + [[2]] * 2 + [[3]] * 2
    stats = stats_of(hand_routing(counts, np.full((12, 4), 0.25), 4))
    stacked = jax.tree.map(lambda leaf: leaf[None], stats)
    new = router.update_state({"bias_E": jnp.zeros((1, 4))}, stacked)
    np.testing.assert_allclose(new["bias_E"], [[-1e-3, 0, 1e-3, 1e-3]])
    assert router.update_state.__func__ is not Router.update_state
    assert Router().update_state({"a": 1}, stacked) == {"a": 1}
    assert Router().auxiliary(stacked, {}) == {}
    logits = jnp.asarray([[2.0, 1.0, 0.0, -1.0]])
    state = {"bias_E": jnp.asarray([-0.5, 0.0, 0.0, 0.6])}
    selection = router.select(router.score(logits), state)  # methods C.9
    assert selection.expert_TK.tolist() == [[3, 1]]
    np.testing.assert_allclose(selection.weight_TK, [[0.268941, 0.731059]], atol=1e-6)


def test_remoe_lambda_follows_the_sparsity():
    from hand_routing import hand_routing, stats_of

    router = ROUTERS["remoe"]  # target: 2 of 8 experts, sparsity 0.75
    dense = stats_of(hand_routing([[0, 1, 2]] * 4, np.full((4, 8), 0.125), 8))
    sparse = stats_of(hand_routing([[0]] * 4, np.full((4, 8), 0.125), 8))
    state = {"lambda": jnp.full((1,), 1e-8)}
    stack = functools.partial(jax.tree.map, lambda leaf: leaf[None])
    np.testing.assert_allclose(router.update_state(state, stack(dense))["lambda"], [1.2e-8])
    np.testing.assert_allclose(router.update_state(state, stack(sparse))["lambda"], [1e-8 / 1.2])


@pytest.mark.parametrize(
    "router,message",
    [
        (TopK(k=9), "r: asks for 9 experts per token but there are 8; nearest valid value 8"),
        (TopP(k_max=9), "r.k_max: 9 experts per token but there are 8; nearest valid value 8"),
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

    with pytest.raises(TypeError, match="Nameless has no selection rule"):
        Nameless().select(jnp.ones((1, 2)), {})
    with pytest.raises(TypeError, match="Router does not say how many slots"):
        Router().slots(4)
    with pytest.raises(TypeError, match="Router does not route"):
        Router()(jnp.ones((1, 2)), RouterInputs.of(1), {}, {})
    assert Router().init(jax.random.key(0), 2, 3) == {}
    assert Router().init_state(3) == {}
    assert Router().num_parameters(2, 3) == 0


def test_nominal_active_is_where_a_fresh_top_p_router_starts():
    assert TopP(p=0.4).nominal_active(8) == 4
    assert TopP(p=0.4).nominal_active(16) == 7
    assert TopP(p=1.0).nominal_active(8) == 8
    assert TopP(p=0.6, k_max=3).nominal_active(8) == 3
    assert TopK(k=3).nominal_active(8) == 3
