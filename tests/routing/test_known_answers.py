"""Known answers of ../shared/methods.md, by the name of their table."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand_routing import hand_routing, selection_routing, stats_of

from moejax.routing.losses import entropy_loss, load_balance, parameter_penalty, z_loss
from moejax.routing.routers import top_k, top_p
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


def test_A6_inclusive_threshold_keeps_one_where_strict_keeps_two():
    row = jnp.asarray([[0.4, 0.3, 0.2, 0.1]], jnp.float32)
    strict = top_p(row, 0.4, inclusive=False, renormalise=False, k_max=4)
    inclusive = top_p(row, 0.4, inclusive=True, renormalise=False, k_max=4)
    assert strict.requested_T.tolist() == [2]
    assert inclusive.requested_T.tolist() == [1]


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
