"""Learned masks: known answers, the dense model at the start, and what is left at its true cost."""

from __future__ import annotations

import dataclasses
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from surgery_models import D, exact_outputs, model, moe, random_tree

from moejax.config import ConfigError, counts
from moejax.experts import WidthPlan, ZeroCompute
from moejax.routing import RouterInputs, hard_concrete
from moejax.routing.capacity import CapacityConfig
from moejax.routing.routers import FixedMasks, LearnedMasks, TopK
from moejax.surgery.masks import Classes, classify, harden, masked, masks_of

DENSE = model(None, None, None)
LEARNED = LearnedMasks(masks=3, init_std=1.0)


@pytest.fixture(scope="module")
def dense():
    return random_tree(DENSE)


def with_gates(tree, layers):
    """The masked tree with these masks (bool `[M, E]` by layer) decided."""
    for segment in tree["params"]["segments"].values():
        gain_LME = segment["0"]["ffn"]["router"]["gain_ME"]
        member_LME = np.stack(layers)
        segment["0"]["ffn"]["router"]["gain_ME"] = np.where(member_LME, 4.0, -4.0).astype(
            gain_LME.dtype
        ) / np.float32(LEARNED.gain)
    return tree


# ---- the gates


@pytest.mark.parametrize("log_alpha, want", [(0, 0.831822), (2, 0.973367), (-2, 0.400975)])
def test_open_probability_and_its_monte_carlo(log_alpha, want):
    assert float(hard_concrete.open_probability(jnp.float32(log_alpha))) == pytest.approx(
        want, abs=1e-6
    )
    draws = 20_000
    z = np.asarray(
        hard_concrete.sample(jnp.full(draws, float(log_alpha), jnp.float32), jax.random.key(0))
    )
    assert abs((z > 0).mean() - want) < 3 * math.sqrt(want * (1 - want) / draws)
    assert z.min() == 0.0 and z.max() == 1.0


def slow_decided(log_alpha):
    """One row, the slow way."""
    size = len(log_alpha)
    shut = [1 - 1 / (1 + math.exp(-(a - 2 / 3 * math.log(0.1 / 1.1)))) for a in log_alpha]
    count = min(round(sum(shut)), size - 1)
    order = sorted(range(size), key=lambda e: (log_alpha[e], -e))
    gone = {e for e in order[:count] if log_alpha[e] < math.log(11)}
    return [e not in gone for e in range(size)]


def test_as_many_gates_close_as_are_expected_to(rng):
    rows = [rng.normal(0, 3, 9) for _ in range(20)]
    rows += [np.full(9, -4.6), np.zeros(9), np.full(9, 4.6), np.array([-4, -4, 4.6, 4.6] * 2 + [0])]
    got = np.asarray(hard_concrete.decided(jnp.asarray(np.stack(rows), jnp.float32)))
    for row, found in zip(rows, got, strict=True):
        assert found.tolist() == slow_decided(row.tolist())
    assert got[20].tolist() == [True] + [False] * 8, "the last gate never closes"
    many = jnp.full((1, 4000), LEARNED.init_log_alpha)
    assert np.asarray(hard_concrete.decided(hard_concrete.clamped(many))).all()


def test_the_clamp_lets_gradients_in_but_not_out():
    at = jnp.array([5.0, 5.0, -5.0, -5.0, 1.0, 1.0])
    push = jnp.array([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])  # a step goes against it
    value, back = jax.vjp(hard_concrete.clamped, at)
    np.testing.assert_allclose(value, np.clip(at, math.log(0.01), math.log(100)))
    np.testing.assert_array_equal(back(push)[0], [1, 0, 0, -1, 1, -1])


# ---- the Lagrangian


def layer_stats(share):
    """What of the statistics of two layers counts: eight tokens, ten experts, this share of them
    in use."""
    return types.SimpleNamespace(
        score_E=jnp.full((2, 10), 8 * share, jnp.float32), tokens=jnp.full(2, 8)
    )


def test_the_target_falls_and_the_multipliers_climb():
    router = LearnedMasks(target=0.4, warmup=10, rate=2.0, quadratic=3.0)
    assert [float(router.wanted(jnp.float32(s))) for s in (0, 5, 10, 99)] == pytest.approx(
        [1.0, 0.7, 0.4, 0.4]
    )
    stats = layer_stats(0.9)
    assert float(router.init_state(10)["quadratic"]) == 3.0
    state = {"linear": jnp.full(2, 0.5), "quadratic": jnp.full(2, 3.0), "step": jnp.full(2, 5.0)}
    cost = router.auxiliary(stats, state)["learned_masks"]
    assert float(cost) == pytest.approx(0.5 * 0.2 + 3.0 * 0.04, rel=1e-5)
    new = router.update_state(state, stats)
    np.testing.assert_allclose(new["linear"], 0.5 + 2.0 * 0.2, rtol=1e-5)
    np.testing.assert_allclose(new["quadratic"], 3.0 + 2.0 * 0.04, rtol=1e-5)
    np.testing.assert_array_equal(new["step"], [6, 6])


def test_scores_are_what_l0_counts():
    """Per token the expected share of experts, over the masks that it uses; its gradient closes
    gates, and reaches no choice."""
    router = LearnedMasks(masks=3, per_token=2, init_std=1.0)
    rng = np.random.default_rng(1)
    x_TD, choose_DM, log_alpha_ME = (rng.normal(size=s) for s in ((7, D), (D, 3), (3, 5)))
    params = {"choose_DM": choose_DM, "gain_ME": log_alpha_ME / router.gain}
    params = {name: leaf.astype(np.float32) for name, leaf in params.items()}
    inputs = RouterInputs.of(7)

    def total(params):
        routing, _ = router(x_TD, inputs, params, {})
        return routing.scores_TE.sum(), routing.scores_TE

    slope, scores_TE = jax.jit(jax.grad(total, has_aux=True))(params)
    open_ME = 1 / (1 + np.exp(-(router.gain * np.asarray(params["gain_ME"]) + 1.598597)))
    logits_TM = np.asarray(x_TD) @ np.asarray(params["choose_DM"])
    for token, row in enumerate(logits_TM):
        first, second = np.argsort(-row)[:2]
        want = 1 - (1 - open_ME[first]) * (1 - open_ME[second])
        np.testing.assert_allclose(scores_TE[token], want, rtol=1e-5)
    assert not slope["choose_DM"].any() and (slope["gain_ME"] > 0).all()


def test_the_loss_reaches_gates_and_the_choice_of_masks():
    router = LearnedMasks(masks=3)
    rng = np.random.default_rng(1)
    x_TD, choose_DM, want_TE = (rng.normal(size=s) for s in ((7, D), (D, 3), (7, 5)))
    params = {"choose_DM": choose_DM.astype(np.float32), "gain_ME": np.zeros((3, 5), np.float32)}
    inputs = RouterInputs.of(7, train=True, key=jax.random.key(4))

    def loss(params):
        routing, _ = router(x_TD, inputs, params, {})
        return (routing.combine_TE() * want_TE).sum()

    slope = jax.jit(jax.grad(loss))(params)
    assert all(np.abs(leaf).max() > 0 for leaf in slope.values())


# ---- models


def test_masks_start_at_the_dense_model_to_the_bit(dense):
    config, tree = masked(DENSE, dense, LEARNED, groups=6)
    want = exact_outputs(DENSE, dense)
    np.testing.assert_allclose(exact_outputs(config, tree), want, rtol=0, atol=1e-12)
    before, after = (counts.parameters(one.shape()) for one in (DENSE, config))
    assert after.experts == before.dense_ffn and after.total == before.total


def test_an_moe_that_was_a_dense_ffn_can_be_masked_too():
    """Pieces of unequal width, all on."""
    widths = WidthPlan("explicit", explicit=(4, 4, 12, 4))
    cut = model(*[moe(FixedMasks(masks=1), experts=4, widths=widths)] * 3)
    tree = random_tree(cut)
    tree["router_state"] = jax.tree.map(np.ones_like, tree["router_state"])
    config, made = masked(cut, tree, LEARNED)
    np.testing.assert_allclose(
        exact_outputs(config, made), exact_outputs(cut, tree), rtol=0, atol=1e-12
    )


MASKS = [
    np.array([[1, 1, 0, 0, 1, 1], [1, 0, 1, 0, 1, 0], [1, 1, 0, 0, 1, 1]], bool),
    np.array([[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]], bool),
    np.array([[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1]], bool),
]


def test_classes_are_the_known_answer():
    found = classify(np.array([[1, 1, 0, 0], [1, 0, 1, 0]], bool))
    assert found == Classes(shared=(0,), specific=(1, 2), inactive=(3,))


@pytest.mark.parametrize("per_token", [1, 2])
def test_what_is_left_computes_the_masked_model(dense, per_token):
    """A shared expert and three of different widths; one expert; no shared expert."""
    learned = dataclasses.replace(LEARNED, per_token=per_token)
    config, tree = masked(DENSE, dense, learned, groups=6)
    tree = with_gates(tree, MASKS)
    assert [one.tolist() for one in masks_of(config, tree).values()] == [m.tolist() for m in MASKS]
    cut, made, report = harden(config, tree)
    # Two masks of a token have float32 weights, whose sum is 1 only so nearly.
    atol = 1e-10 if per_token == 1 else 1e-4
    np.testing.assert_allclose(
        exact_outputs(cut, made), exact_outputs(config, tree), rtol=0, atol=atol
    )
    first, second, third = cut.plan()
    assert first.shared_width == 8 and first.widths.widths(first.experts) == (8, 4)
    assert second.shared_width == 0 and second.widths.widths(1) == (8,)
    assert third.shared_width == 0 and sorted(third.spec.widths) == [4, 4, 16]
    assert [one.always for one in report] == [8, 0, 0]
    assert report[0].classes == Classes((0, 4), (1, 2, 5), (3,))
    before, after = (counts.parameters(one.shape()) for one in (DENSE, cut))
    left = sum(12 + 8 if i == 0 else m.any(0).sum() * 4 for i, m in enumerate(MASKS))
    assert after.experts + after.shared_experts == 3 * D * left < before.dense_ffn
    if per_token == 1:
        active = sum(m.sum() / 3 * 4 for m in MASKS)
        assert after.active_experts + after.shared_experts == pytest.approx(3 * D * active)


def test_a_gated_shared_expert_stays_alone():
    kind = moe(FixedMasks(masks=1), shared_width=4, shared_gate=True)
    config = model(kind)
    learned, tree = masked(config, random_tree(config), LEARNED)
    tree = with_gates(tree, MASKS[:1])
    cut, made, _ = harden(learned, tree)
    assert cut.plan()[0].shared_width == 4
    assert sorted(cut.plan()[0].spec.widths) == [8, 16, 16]
    np.testing.assert_allclose(
        exact_outputs(cut, made), exact_outputs(learned, tree), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize(
    "config, says",
    [
        (DENSE, "--groups=5: does not divide the 24 neurons of layer 0; nearest valid value 4"),
        (model(moe(TopK(), zero_compute=ZeroCompute(zero=1))), "compute nothing"),
        (
            model(moe(TopK(), capacity=CapacityConfig(factor=1.0)), allow_noncausal=True),
            "a capacity",
        ),
    ],
)
def test_what_cannot_be_masked_is_refused(config, says):
    with pytest.raises(ConfigError, match=says):
        masked(config, random_tree(config), LEARNED, groups=5)


def test_only_learned_masks_are_hardened(dense):
    with pytest.raises(ConfigError, match="no layer has learned masks"):
        harden(DENSE, dense)


def test_more_masks_per_token_than_masks():
    with pytest.raises(ConfigError, match="nearest valid value 2"):
        model(moe(LearnedMasks(masks=2, per_token=3))).moe_variants["k0"].router.validate("r")
