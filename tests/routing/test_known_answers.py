"""Known answers of ../shared/methods.md, by the name of their table."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand_routing import hand_routing, selection_routing, stats_of
from routers_under_test import stack

from moejax.routing import RouterInputs
from moejax.routing.groups import limit_to_groups
from moejax.routing.losses import entropy_loss, load_balance, parameter_penalty, z_loss
from moejax.routing.routers import (
    ExpertChoice,
    MoEPlusPlus,
    NoisyTopK,
    ReMoE,
    SigmoidBias,
    TopK,
    TopP,
    choose_tokens,
    top_k,
    top_p,
)
from moejax.routing.stats import token_entropy

# --- A.6: top-p ---------------------------------------------------------------------------------

A6 = [
    ([0.5, 0.3, 0.15, 0.05], 0.4, [0], [0.5]),
    ([0.3, 0.3, 0.25, 0.15], 0.4, [0, 1], [0.3, 0.3]),
    ([0.4, 0.3, 0.2, 0.1], 0.4, [0, 1], [0.4, 0.3]),
    ([0.25] * 4, 0.4, [0, 1], [0.25, 0.25]),
    ([1 / 16] * 16, 0.4, list(range(7)), [1 / 16] * 7),
    ([0.1, 0.6, 0.2, 0.1], 1.0, [1, 2, 0, 3], [0.6, 0.2, 0.1, 0.1]),
]


@pytest.mark.parametrize("probs,p,experts,weights", A6)
def test_A6_active_experts_and_raw_weights(probs, p, experts, weights):
    row = jnp.asarray([probs], jnp.float32)
    got = top_p(row, p, inclusive=False, renormalise=False, k_max=len(probs))
    assert got.expert_TK[0, : len(experts)].tolist() == experts
    assert (got.expert_TK[0, len(experts) :] == len(probs)).all()
    np.testing.assert_allclose(got.weight_TK[0, : len(experts)], weights, rtol=1e-6)
    assert not got.weight_TK[0, len(experts) :].any()
    assert got.requested_T.tolist() == [len(experts)]


@pytest.mark.parametrize("inclusive", [True, False])
def test_A6_p_of_one_takes_every_expert_however_small(inclusive):
    """A float32 sum reaches 1 before the last probability: it must not end the prefix."""
    logits = 3 * np.random.default_rng(0).normal(size=(2000, 8))
    logits[0] = [0, -20, -20, -20, -20, -20, -20, -20]
    probs = jax.nn.softmax(jnp.asarray(logits, jnp.float32))
    got = top_p(probs, 1.0, inclusive=inclusive, renormalise=False, k_max=8)
    assert set(np.asarray(got.requested_T)) == {8}


def test_A6_inclusive_threshold_keeps_one_where_strict_keeps_two():
    row = jnp.asarray([[0.4, 0.3, 0.2, 0.1]], jnp.float32)
    strict = top_p(row, 0.4, inclusive=False, renormalise=False, k_max=4)
    inclusive = top_p(row, 0.4, inclusive=True, renormalise=False, k_max=4)
    assert strict.requested_T.tolist() == [2]
    assert inclusive.requested_T.tolist() == [1]


@pytest.mark.parametrize(
    "p, num_experts, strict, inclusive",
    [
        (0.4, 16, 7, 7),  # Huang et al.
        (0.6, 8, 5, 5),  # HMoE
        (0.5, 8, 5, 4),  # p * E is whole: `>` takes one more
        (0.25, 16, 5, 4),
        (0.57, 100, 58, 57),  # 0.57 * 100 is 56.99999999999999 in floats
        (1.0, 8, 8, 8),
    ],
)
def test_A6_what_is_planned_is_what_uniform_scores_request(p, num_experts, strict, inclusive):
    uniform = jnp.full((1, num_experts), 1 / num_experts, jnp.float32)
    uneven = jax.nn.softmax(0.1 * jax.random.normal(jax.random.key(0), (64, num_experts)))
    for says, planned in ((False, strict), (True, inclusive)):
        router = TopP(p=p, inclusive=says)
        assert router.nominal_active(num_experts) == planned
        if num_experts != 100:  # 1/100 is not a float: its sums are next to p, on either side
            assert router.select(uniform, {}).requested_T.tolist() == [planned]
        assert (router.select(uneven, {}).requested_T <= planned).all()


def test_A6_what_is_planned_keeps_the_bounds():
    assert TopP(p=0.5, inclusive=True, k_max=3).nominal_active(8) == 3
    assert TopP(p=0.25, inclusive=True, k_min=3).nominal_active(8) == 3
    assert TopP(p=1e-9, inclusive=True).nominal_active(8) == 1


def test_A6_entropies():
    probs = [[0.5, 0.3, 0.15, 0.05], [0.25] * 4]
    np.testing.assert_allclose(token_entropy(jnp.asarray(probs)), [1.142120, 1.386294], atol=1e-6)
    np.testing.assert_allclose(token_entropy(jnp.full((1, 16), 1 / 16)), [2.772589], atol=1e-6)


def test_A6_batch_statistics():
    probs = jnp.asarray(
        [[0.5, 0.3, 0.15, 0.05], [0.3, 0.3, 0.25, 0.15], [0.05, 0.15, 0.3, 0.5], [0.25] * 4]
    )
    routing = selection_routing(
        top_p(probs, 0.4, inclusive=False, renormalise=False, k_max=4), probs
    )
    stats = stats_of(routing)
    np.testing.assert_allclose(stats.count_E / 4, [0.75, 0.5, 0, 0.25])
    np.testing.assert_allclose(stats.prob_E / 4, [0.275, 0.25, 0.2375, 0.2375], rtol=1e-6)
    np.testing.assert_allclose(load_balance(stats, "hmoe"), 1.5625, rtol=1e-6)
    np.testing.assert_allclose(entropy_loss(stats), 1.256015, atol=1e-6)
    np.testing.assert_allclose(routing.active_T.mean(), 1.5)


def test_A6_entropy_gradient_pushes_the_largest_logit_up():
    logits = jnp.asarray([[1.0, 0.5, -0.2, 0.1]])

    def loss(logits):
        return token_entropy(jax.nn.softmax(logits)).mean()

    probs = jax.nn.softmax(logits)
    log_p = jnp.log(probs)
    expected = probs * ((probs * log_p).sum(-1, keepdims=True) - log_p)
    gradient = jax.grad(loss)(logits)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)
    assert gradient[0].argmin() == logits[0].argmax()  # descent raises the largest logit most


def test_entropy_gradient_is_finite_at_zero_probability():
    gradient = jax.grad(lambda p: token_entropy(p).sum())(jnp.asarray([[1.0, 0.0, 0.0]]))
    assert jnp.isfinite(gradient).all()


# --- B.7: HMoE ----------------------------------------------------------------------------------

B7_PROBS = [[0.75, 0.25], [0.4, 0.6]]


def test_B7_parameter_penalty():
    stats = stats_of(hand_routing([[0], [1]], B7_PROBS, 2))
    np.testing.assert_allclose(parameter_penalty(stats, (1, 3), normalise=False), 1.85, rtol=1e-6)
    np.testing.assert_allclose(parameter_penalty(stats, (1, 3)), 0.925, rtol=1e-6)
    np.testing.assert_allclose(load_balance(stats, "hmoe"), 1.0, rtol=1e-6)


def test_B7_equal_widths_give_back_the_balance_loss():
    stats = stats_of(hand_routing([[0], [1]], B7_PROBS, 2))
    np.testing.assert_allclose(
        parameter_penalty(stats, (2, 2)), load_balance(stats, "hmoe"), rtol=1e-6
    )


def test_B7_renormalised_top_p_sums_to_one_and_small_p_is_top_1():
    probs = jax.nn.softmax(jax.random.normal(jax.random.key(0), (64, 8)))
    got = top_p(probs, 0.6, inclusive=True, renormalise=True, k_max=8)
    np.testing.assert_allclose(got.weight_TK.sum(-1), np.ones(64), rtol=1e-6)
    tiny = top_p(probs, 1e-6, inclusive=True, renormalise=True, k_max=8)
    assert tiny.requested_T.tolist() == [1] * 64
    assert tiny.expert_TK[:, 0].tolist() == probs.argmax(-1).tolist()
    np.testing.assert_allclose(tiny.weight_TK[:, 0], np.ones(64))


# --- C: DeepSeekMoE, V2, V3 ----------------------------------------------------------------------

C9_LOGITS = np.array([[2.0, 1.0, 0.0, -1.0]], np.float32)
C9_STATE = {"bias_E": np.array([-0.5, 0.0, 0.0, 0.6], np.float32)}


def test_C1_gates_are_raw_times_the_scaling_factor():
    probs = jnp.asarray([[0.5, 0.3, 0.2]])
    raw = top_k(probs, 2, renormalise=False, scale=16.0)
    np.testing.assert_allclose(raw.weight_TK, [[8.0, 4.8]], rtol=1e-6)
    scaled = top_k(probs, 2, renormalise=True, scale=2.5)
    np.testing.assert_allclose(scaled.weight_TK, [[2.5 * 5 / 8, 2.5 * 3 / 8]], rtol=1e-6)


def test_C1_softmax_after_selection_is_renormalise():
    logits_TE = 3 * jax.random.normal(jax.random.key(0), (32, 8))
    chosen_TK, expert_TK = jax.lax.top_k(logits_TE, 3)
    got = top_k(jax.nn.softmax(logits_TE), 3, renormalise=True)
    np.testing.assert_array_equal(got.expert_TK, expert_TK)
    np.testing.assert_allclose(got.weight_TK, jax.nn.softmax(chosen_TK), rtol=1e-5)


def test_C6_and_C7_groups_by_their_best_or_their_two_best():
    scores = jnp.asarray([[0.5, 0.0, 0.3, 0.3]])
    minus = -np.inf
    np.testing.assert_array_equal(limit_to_groups(scores, 2, 1, best=1), [[0.5, 0, minus, minus]])
    np.testing.assert_allclose(limit_to_groups(scores, 2, 1, best=2), [[minus, minus, 0.3, 0.3]])
    np.testing.assert_array_equal(limit_to_groups(scores, 2, 2, best=1), scores)
    np.testing.assert_array_equal(limit_to_groups(scores, 4, 1, best=2), [[0.5] + [minus] * 3])
    # The rules use them: V2 by the best expert, V3 by the sum of the two best biased scores.
    v2 = TopK(k=2, groups=2, groups_kept=1).select(scores, {})
    assert v2.expert_TK.tolist() == [[0, 1]]
    v3 = SigmoidBias(k=2, groups=2, groups_kept=1).select(scores, {"bias_E": jnp.zeros(4)})
    assert v3.expert_TK.tolist() == [[2, 3]]


@pytest.mark.parametrize("best, kept", [(1, {0, 2}), (2, {0, 1})])
def test_C9_groups_of_V2_and_V3(best, kept):
    scores = jnp.asarray([[0.9, 0.05, 0.5, 0.5, 0.6, 0.1, 0.3, 0.3]])
    limited = np.asarray(limit_to_groups(scores, 4, 2, best=best)).reshape(4, 2)
    assert {group for group in range(4) if np.isfinite(limited[group]).all()} == kept


def test_C8_a_closed_group_loses_to_a_negative_score():
    """V2's code fills with 0.0, which would win here."""
    state = {"bias_E": jnp.asarray([-0.7, -0.8, -2.0, -2.0])}
    scores = jnp.asarray([[0.5, 0.5, 0.9, 0.9]])
    chosen = SigmoidBias(k=2, groups=2, groups_kept=1).select(scores, state)
    assert chosen.expert_TK.tolist() == [[0, 1]]


def test_C9_choice_by_biased_and_weight_by_plain_sigmoid():
    router = SigmoidBias(k=2)
    scores = router.score(jnp.asarray(C9_LOGITS))
    np.testing.assert_allclose(scores, [[0.880797, 0.731059, 0.5, 0.268941]], atol=1e-6)
    chosen = router.select(scores, C9_STATE)
    assert chosen.expert_TK.tolist() == [[3, 1]]
    np.testing.assert_allclose(chosen.weight_TK, [[0.268941, 0.731059]], atol=1e-6)
    scaled = SigmoidBias(k=2, scale=2.5).select(scores, C9_STATE)
    np.testing.assert_allclose(scaled.weight_TK, [[0.672354, 1.827646]], atol=1e-5)
    unbiased = router.select(scores, router.init_state(4))
    assert unbiased.expert_TK.tolist() == [[0, 1]]


def test_C9_bias_update():
    router = SigmoidBias(k=1, rate=1e-3)
    experts = [[0]] * 5 + [[1]] * 3 + [[2]] * 2 + [[3]] * 2
    stats = stats_of(hand_routing(experts, np.full((12, 4), 0.25), 4))
    new = router.update_state(stack({"bias_E": np.zeros(4, np.float32)}), stack(stats))
    np.testing.assert_allclose(new["bias_E"], [[-1e-3, 0, 1e-3, 1e-3]])
    fixed = dataclasses.replace(router, rate=0.0)
    np.testing.assert_array_equal(fixed.update_state(new, stack(stats))["bias_E"], new["bias_E"])


def test_C9_no_gradient_reaches_the_bias():
    router = SigmoidBias(k=2)

    def weight(bias_E):
        return router.select(router.score(jnp.asarray(C9_LOGITS)), {"bias_E": bias_E}).weight_TK[
            0, 0
        ]

    assert not jax.grad(weight)(jnp.asarray(C9_STATE["bias_E"])).any()


# --- 0.2, C.9, H.1: losses ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "convention,value", [("switch", 2.0), ("hmoe", 2.0), ("deepseek", 1.0), ("megatron", 1.0)]
)
def test_S02_value_at_perfect_balance(convention, value):
    experts = [[0, 1], [1, 2], [2, 3], [3, 0]]
    stats = stats_of(hand_routing(experts, np.full((4, 4), 0.25), 4))
    np.testing.assert_allclose(load_balance(stats, convention), value, rtol=1e-6)


def test_C9_expert_level_loss():
    probs = jnp.asarray([[0.5, 0.3, 0.2], [0.1, 0.3, 0.6]])
    routing = selection_routing(top_k(probs, 2, renormalise=False), probs)
    assert routing.count_E.tolist() == [1, 2, 1]
    np.testing.assert_allclose(load_balance(stats_of(routing), "deepseek"), 0.975, rtol=1e-6)


def test_H1_z_loss():
    logits = jnp.asarray([[0.0, 0, 0, 0], [1.0, 2, 3, 4]])
    np.testing.assert_allclose(jax.nn.logsumexp(logits, axis=-1), [1.386294, 4.440190], atol=1e-6)
    probs = jax.nn.softmax(logits)
    routing = selection_routing(top_k(probs, 1, renormalise=False), probs, logits)
    np.testing.assert_allclose(z_loss(stats_of(routing)), 10.818548, rtol=1e-6)


# --- H: Switch, expert choice, ReMoE, MoE++ -------------------------------------------------------


def train_inputs(num_tokens, key=0):
    position = np.arange(num_tokens, dtype=np.int32)
    return RouterInputs.of(num_tokens, position_T=position, key=jax.random.key(key), train=True)


def test_H1_jitter_multiplies_the_inputs_while_training():
    router, ones_TD = TopK(k=1, jitter=0.1), jnp.ones((2000, 4))
    jittered = jax.jit(router.jittered)
    factor_TD = np.asarray(jittered(ones_TD, train_inputs(2000)))
    assert 0.9 <= factor_TD.min() < 0.901 and 1.099 < factor_TD.max() <= 1.1
    np.testing.assert_allclose(factor_TD.mean(0), 1.0, atol=0.005)
    np.testing.assert_allclose(factor_TD.std(), 0.1 / 3**0.5, rtol=0.02)
    evaluated = dataclasses.replace(train_inputs(2000), train=False)
    assert (np.asarray(jittered(ones_TD, evaluated)) == 1).all()


def test_noisy_top_k_adds_normal_noise_of_learned_size():
    """Shazeer et al. 2017, eq. 4: standard deviation softplus(x @ w_noise), log 2 to start with."""
    router, x_TD = NoisyTopK(k=2), jnp.ones((4000, 1))
    params = {"w_DE": jnp.zeros((1, 4)), "w_noise_DE": jnp.asarray([[0.0, 0.0, 3.0, -9.0]])}
    noise_TE = np.asarray(jax.jit(router.logits)(x_TD, train_inputs(4000), params))
    np.testing.assert_allclose(noise_TE.std(0)[:3], np.log1p(np.exp([0, 0, 3])), rtol=0.05)
    np.testing.assert_allclose(noise_TE.mean(0), 0, atol=0.15)
    assert np.abs(np.corrcoef(noise_TE.T) - np.eye(4)).max() < 0.06
    assert np.abs(noise_TE[:, 3]).max() < 1e-3


@pytest.mark.parametrize("factor, capacity", [(1.0, 4), (2.0, 8), (0.1, 1), (9.0, 16)])
def test_H2_every_expert_takes_exactly_its_capacity(factor, capacity):
    router = ExpertChoice(factor=factor)
    x_TD = jax.random.normal(jax.random.key(0), (16, 6))
    params = {"w_DE": jax.random.normal(jax.random.key(1), (6, 4))}
    routing, _ = jax.jit(router.__call__)(x_TD, RouterInputs.of(16), params, {})
    assert router.capacity(16, 4) == capacity
    assert routing.count_E.tolist() == [capacity] * 4
    assert routing.max_rows == 4 * capacity == int(routing.filled_TK.sum())
    if factor == 1.0:  # a token has any number of experts
        assert routing.active_T.min() == 0 and routing.active_T.max() > 1
    weight_TE, probs_TE = np.asarray(routing.combine_TE()), np.asarray(routing.scores_TE)
    for expert in range(4):
        best = np.argsort(-probs_TE[:, expert], kind="stable")[:capacity]
        assert set(np.flatnonzero(weight_TE[:, expert])) == set(best)
        np.testing.assert_array_equal(weight_TE[best, expert], probs_TE[best, expert])


def test_H2_ties_go_to_the_earliest_token_and_padding_is_never_taken():
    valid_T = np.array([False, True, True, True])
    taken_TE = choose_tokens(jnp.full((4, 2), 0.5), valid_T, np.ones(2, bool))
    np.testing.assert_array_equal(taken_TE, [[0, 0], [1, 1], [1, 1], [0, 0]])


REMOE = ReMoE(k=1)


@pytest.mark.parametrize(
    "active, factor",
    [(3, 1.2), (1, 1 / 1.2), (0, 1 / 1.2)],
    ids=["S=.625 < .875", "S = target", "all off"],
)
def test_H5_lambda_follows_the_sparsity(active, factor):
    experts = [list(range(active)) + [8] * (3 - active)] * 4
    stats = stats_of(hand_routing(experts, np.full((4, 8), 0.125), 8))
    state = stack({"lambda": np.float32(1e-8)})
    new = REMOE.update_state(state, stack(stats))["lambda"]
    np.testing.assert_allclose(new, [1e-8 * factor], rtol=1e-6)


def test_H5_the_penalty_is_L1_with_balance():
    scores_TE = np.maximum(np.random.default_rng(0).normal(size=(6, 8)), 0).astype(np.float32)
    chosen = REMOE.select(jnp.asarray(scores_TE), {})
    stats = stats_of(selection_routing(chosen, scores_TE))
    f_E = 8 / (1 * 6) * (scores_TE > 0).sum(0)
    want = 3e-2 * (f_E * scores_TE).sum() / 6
    got = REMOE.auxiliary(stack(stats), {"lambda": jnp.asarray([3e-2])})["remoe"]
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("scores", [(0.5, 0.0, 0.0, 0.0), (0.0, 0.3, 0.9, 0.0)])
def test_H5_the_penalty_at_balance_and_collapse(scores):
    """lambda times a token's scores at balance, E/k times as much when all use the same k."""
    k = np.count_nonzero(scores)
    router = ReMoE(k=k)
    state = {"lambda": jnp.asarray([3e-2])}
    for shift, factor in ((1, 1), (0, 4 / k)):
        scores_TE = np.asarray([np.roll(scores, shift * t) for t in range(8)], np.float32)
        stats = stats_of(selection_routing(router.select(jnp.asarray(scores_TE), {}), scores_TE))
        got = router.auxiliary(stack(stats), state)["remoe"]
        np.testing.assert_allclose(got, 3e-2 * sum(scores) * factor, rtol=1e-5)


def test_H5_all_zero_scores_give_no_expert_and_no_nan():
    def weight_and_penalty(w_DE):
        inputs, state = RouterInputs.of(5), {"lambda": jnp.ones(())}
        routing, _ = REMOE(jnp.ones((5, 3)), inputs, {"w_DE": w_DE}, state)
        stats = stats_of(routing)
        own = REMOE.auxiliary(stack(stats), stack(state))["remoe"]
        return routing.weight_TK.sum() + own + load_balance(stats, "megatron"), routing

    graded = jax.jit(jax.value_and_grad(weight_and_penalty, has_aux=True))
    for level in (-1.0, 0.0):
        (value, routing), slope = graded(jnp.full((3, 8), level))
        assert value == 0 and not routing.filled_TK.any() and not slope.any()


def test_H5_the_sparsity_tracks_its_target():
    """A toy: lambda must bring 4 of 8 active experts down to 1 and hold it there."""
    router = ReMoE(k=1, init_lambda=1e-4)
    keys = jax.random.split(jax.random.key(0), 4)
    # Without a feature that tokens share, a linear map is positive for half of them, or for none.
    x_TD = jax.random.normal(keys[0], (128, 8)).at[:, 0].set(2.0)
    y_TC = jax.nn.relu(x_TD @ jax.random.normal(keys[1], (8, 8)))
    start = {
        "w_DE": 0.3 * jax.random.normal(keys[2], (8, 8)),
        "out_EC": 0.3 * jax.random.normal(keys[3], (8, 8)),
    }

    def loss(params, state):
        routing, _ = router(x_TD, RouterInputs.of(128), {"w_DE": params["w_DE"]}, state)
        stats = stats_of(routing)
        fit = ((routing.combine_TE() @ params["out_EC"] - y_TC) ** 2).mean()
        return fit + router.auxiliary(stack(stats), stack(state))["remoe"], stats

    def step(carry, _):
        params, state = carry
        slopes, stats = jax.grad(loss, has_aux=True)(params, state)
        params = jax.tree.map(lambda p, g: p - 0.05 * g, params, slopes)
        state = {"lambda": router.update_state(stack(state), stack(stats))["lambda"][0]}
        return (params, state), stats.count_E.sum() / 128

    run = jax.jit(lambda: jax.lax.scan(step, (start, router.init_state(8)), None, length=400)[1])
    active_N = np.asarray(run())
    assert active_N[0] > 3
    np.testing.assert_allclose(active_N[-200:].mean(), 1.0, atol=0.1)  # measured: 1.05


def test_H6_gating_residual():
    """Eq. 6: logits_j = W_j x + W_g logits_{j-1}; nothing from before the first layer."""
    router = MoEPlusPlus(k=2)
    params = {"w_DE": jnp.eye(3), "residual_EE": jnp.asarray([[0, 2.0, 0], [0, 0, 0], [0, 0, 1.0]])}
    x_TD, carry_TE = jnp.asarray([[1.0, 2.0, 3.0]]), jnp.asarray([[10.0, 5.0, 7.0]])
    first, carried = router(x_TD, RouterInputs.of(1), params, {})
    np.testing.assert_array_equal(carried, [[1, 2, 3]])
    second, carried = router(x_TD, RouterInputs.of(1, carry_TE=carry_TE), params, {})
    np.testing.assert_array_equal(carried, [[1, 22, 10]])
    assert first.expert_TK.tolist() == [[2, 1]] and second.expert_TK.tolist() == [[1, 2]]


def test_H6_weight_of_a_zero_expert_in_paper_and_code():
    probs = jnp.asarray([[0.5, 0.1, 0.1, 0.3]])  # the last is the zero expert
    paper = MoEPlusPlus(k=2).select(probs, {})
    code = MoEPlusPlus(k=2, renormalise=True, zero_experts=1).select(probs, {})
    assert paper.expert_TK.tolist() == code.expert_TK.tolist() == [[0, 3]]
    np.testing.assert_allclose(paper.weight_TK, [[0.5, 0.3]])
    np.testing.assert_array_equal(code.weight_TK, [[1.0, 0.0]])


def test_padding_enters_no_statistic():
    probs = jax.nn.softmax(jax.random.normal(jax.random.key(1), (6, 4)))
    logits = jnp.log(probs)
    real = jnp.asarray([True, False, True, True, False, True])
    full = selection_routing(top_k(probs, 2, renormalise=False), probs, logits)
    kept = selection_routing(top_k(probs[real], 2, renormalise=False), probs[real], logits[real])
    masked = dataclasses.replace(
        full,
        expert_TK=jnp.where(real[:, None], full.expert_TK, 4),
        weight_TK=jnp.where(real[:, None], full.weight_TK, 0),
        requested_T=jnp.where(real, full.requested_T, 0),
    )
    sequence = jnp.asarray([0, 0, 0, 1, 1, 1])
    padded = stats_of(masked, num_sequences=2, valid_T=real, sequence_T=sequence)
    compact = stats_of(kept, num_sequences=2, sequence_T=sequence[real])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), padded, compact)
