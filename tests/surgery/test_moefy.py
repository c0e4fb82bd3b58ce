"""Cut FFNs: all experts on are the dense model, the oracle is who it says, routers learn."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from surgery_samples import (
    LAYERS,
    MODEL,
    D,
    F,
    batch,
    dense_hidden,
    dense_output,
    ffn,
    hidden,
    hidden_units,
    parameters,
)  # fmt: skip

from moejax.config import ConfigError
from moejax.experts import MoeConfig, MoELayer, WidthPlan, expert_ffn
from moejax.experts.activity import activity
from moejax.experts.spec import ExpertsSpec
from moejax.routing import RouterInputs
from moejax.routing.routers import MoEfication, Oracle
from moejax.surgery import Moefying, all_on, moefy, partition, router_fit
from moejax.surgery.activations import activity_by_expert, coactivation, walk
from moejax.surgery.moefication import group_units, moefied_config, split_ffn


@pytest.fixture(scope="module")
def reads():
    """The inputs of both FFNs of the dense model: real tokens only, batch after batch."""
    found = list(walk(MODEL, parameters(), [batch(), batch(1)]))
    assert [read.layer for read in found] == [0, 1]
    assert all(read.x_TD.shape == (34, D) for read in found)
    return found


def oracle_choice(weights, x_TD, expert_F, k):
    """The k experts with most |hidden|, in NumPy, best first."""
    size_TF = np.abs(hidden_units(weights, x_TD))
    score_TE = np.stack([size_TF[:, expert_F == e].sum(1) for e in range(expert_F.max() + 1)], 1)
    return score_TE, np.argsort(-score_TE, axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("activation", ["swiglu", "relu"])
@pytest.mark.parametrize("k", [6, 2])
def test_the_oracles_experts_in_float64(k, activation):
    """With all on the dense FFN; with fewer, the dense FFN with the other units at zero."""
    random = np.random.default_rng(1)
    weights, x_TD = ffn(random, activation=activation), random.normal(size=(9, D))
    expert_F = partition.dealt(F, 6, 0).expert_F
    spec = ExpertsSpec((F // 6,) * 6, F // 6, activation=activation, backend="loop")
    with jax.enable_x64(True):
        cut = split_ffn(weights, activation, expert_F, 6)
        experts, x = {n: jnp.asarray(w) for n, w in cut.items()}, jnp.asarray(x_TD)
        inputs = RouterInputs.of(9, activity_TE=activity(x, experts, spec))
        routing, _ = Oracle(k=k)(x, inputs, {}, {})
        y_TD, _ = expert_ffn(x, routing, experts, spec)
    score_TE, chosen_TK = oracle_choice(weights, x_TD, expert_F, k)
    np.testing.assert_allclose(inputs.activity_TE, score_TE, rtol=1e-6)
    np.testing.assert_array_equal(routing.expert_TK, chosen_TK)
    assert (np.asarray(routing.weight_TK) == 1).all()
    on_TF = (expert_F == chosen_TK[..., None]).any(1)
    want_TD = (hidden_units(weights, x_TD) * on_TF) @ weights["down_FD"]
    np.testing.assert_allclose(y_TD, want_TD, rtol=0, atol=1e-10)
    if k == 6:
        np.testing.assert_allclose(y_TD, dense_output(weights, x_TD), rtol=0, atol=1e-10)


def test_units_in_another_order_are_the_same_layer():
    """Permute the neurons and relabel: the same experts, so the same outputs."""
    random = np.random.default_rng(2)
    weights, order = ffn(random), random.permutation(F)
    moved = {name: w[order] for name, w in weights.items()}
    expert_F = partition.dealt(F, 4, 3).expert_F
    one = split_ffn(weights, "swiglu", expert_F, 4)
    other = split_ffn(moved, "swiglu", expert_F[order], 4)
    for name in one:
        for a, b in zip(one[name], other[name], strict=True):
            np.testing.assert_array_equal(np.sort(a, axis=0), np.sort(b, axis=0))


def test_a_whole_model_with_all_on_is_the_dense_one(reads):
    """And its oracle, in the model, sees the activities that the walk of the dense one does."""
    how = Moefying(experts=6, k=2, router="oracle")
    model, tree, cut = moefy(MODEL, parameters(), how, seed=1)
    got, seen_LTE = hidden(
        all_on(model), tree["params"], tree["router_state"], lambda out, _: out.routing.scores_TE
    )
    for read, layer, seen_TE in zip(reads, cut, seen_LTE, strict=True):
        walked_TE = activity_by_expert(
            read.ffn, "swiglu", read.x_TD[:17], layer.partition.expert_F, 6
        )
        np.testing.assert_allclose(walked_TE, seen_TE, rtol=1e-4)
    np.testing.assert_allclose(got, dense_hidden(), rtol=0, atol=1e-5)
    assert model.moe.router == Oracle(k=2) and [layer.layer for layer in cut] == [0, 1]
    assert all(np.bincount(layer.partition.expert_F).tolist() == [4] * 6 for layer in cut)
    assert "router" not in tree["params"]["segments"]["0"]["0"]["ffn"]


def test_activities_and_coactivations_against_loops(reads):
    read = reads[1]
    expert_F = partition.contiguous(F, 4).expert_F
    score_TE, _ = oracle_choice(read.ffn, read.x_TD, expert_F, 1)
    got = activity_by_expert(read.ffn, "swiglu", read.x_TD, expert_F, 4)
    np.testing.assert_allclose(got, score_TE, rtol=1e-4)
    size_TF = np.abs(hidden_units(read.ffn, read.x_TD.astype(np.float64)))
    want = [[(size_TF[:, i] * size_TF[:, j]).sum() for j in range(F)] for i in range(F)]
    np.testing.assert_allclose(coactivation(read.ffn, "swiglu", read.x_TD), want, rtol=1e-4)


def test_units_that_are_active_together_go_together():
    """Two groups of units that look at one coordinate each, their weights otherwise unlike."""
    random = np.random.default_rng(5)
    weights = ffn(random, dtype=np.float32)
    side = random.permutation(np.repeat([0, 1], F // 2))
    for name in ("gate_FD", "up_FD"):
        weights[name] = np.zeros((F, D), np.float32)
        weights[name][np.arange(F), side] = random.choice([-2.0, 2.0], F)
    x_TD = np.zeros((40, D), np.float32)
    x_TD[np.arange(40), np.arange(40) % 2] = 1.0
    how = Moefying(experts=2, split="coactivation", router="oracle")
    found = group_units(weights, "swiglu", how, x_TD, seed=(0, 0))
    np.testing.assert_array_equal(found.expert_F, partition.numbered(side, 2))


@pytest.fixture(scope="module")
def layer_to_learn():
    """An FFN of four experts that each answer to a corner of their own."""
    random = np.random.default_rng(6)
    expert_F = partition.contiguous(F, 4).expert_F
    weights = ffn(random, dtype=np.float32)
    corner_ED = 4 * np.eye(4, D, dtype=np.float32)
    for name in ("gate_FD", "up_FD"):
        weights[name] = 0.3 * weights[name] + corner_ED[expert_F]
    x_TD = random.normal(size=(400, D)).astype(np.float32)
    return weights, expert_F, x_TD, activity_by_expert(weights, "swiglu", x_TD, expert_F, 4)


def test_a_router_learns_who_is_active(layer_to_learn):
    weights, expert_F, x_TD, active_TE = layer_to_learn
    centre_DE = router_fit.centres(weights["gate_FD"], expert_F, 4)
    linear = MoEfication(k=1)
    similar = router_fit.measure(
        linear, router_fit.similarity_params(centre_DE), x_TD[-40:], active_TE[-40:]
    )
    rule = MoEfication(k=1, hidden=4)
    first = router_fit.first_params(rule, centre_DE, jax.random.key(0))
    _, found = router_fit.fit(rule, first, x_TD, active_TE, epochs=12)
    assert found.uniform == 0.25 < similar.captured <= found.captured <= found.oracle
    assert found.found > 0.7 and found.tokens == 40
    nothing, kept = router_fit.fit(rule, first, x_TD, active_TE, epochs=0)
    assert nothing is first and kept.epochs == 0


def test_what_a_fit_is_measured_by(layer_to_learn):
    """Captured, oracle and found, by loops over tokens."""
    _, _, x_TD, active_TE = layer_to_learn
    rule = MoEfication(k=2)
    w_DE = np.random.default_rng(0).normal(size=(D, 4)).astype(np.float32)
    got = router_fit.measure(rule, {"w_DE": w_DE}, x_TD, active_TE)
    mine = best = same = 0.0
    for x, active in zip(x_TD, active_TE, strict=True):
        chosen = set(np.argsort(-(x @ w_DE))[:2])
        oracle = set(np.argsort(-active)[:2])
        mine += sum(active[e] for e in chosen)
        best += sum(active[e] for e in oracle)
        same += len(chosen & oracle)
    total = float(active_TE.sum())
    np.testing.assert_allclose(
        [got.captured, got.oracle, got.found], [mine / total, best / total, same / 800], rtol=1e-5
    )


def test_straight_through_weighs_one_and_carries_a_gradient():
    random = np.random.default_rng(0)
    x_TD = random.normal(size=(5, D)).astype(np.float32)
    params = {"w_DE": random.normal(size=(D, 4)).astype(np.float32)}

    def total(params, rule):
        routing, _ = rule(x_TD, RouterInputs.of(5), params, {})
        return (routing.weight_TK * jnp.arange(10).reshape(5, 2)).sum(), routing.weight_TK

    for through in (False, True):
        rule = MoEfication(k=2, straight_through=through)
        slopes, weight_TK = jax.grad(total, has_aux=True)(params, rule)
        assert (np.asarray(weight_TK) == 1).all()
        assert bool(np.any(slopes["w_DE"])) == through


def test_a_layer_shows_its_oracle_the_experts():
    from flax import nnx

    config = MoeConfig(4, WidthPlan(mean=6), Oracle(k=1), backend="loop")
    layer = MoELayer(D, config, rngs=nnx.Rngs(0))
    x_TD = jax.random.normal(jax.random.key(1), (6, D))
    out = layer.forward(x_TD, RouterInputs.of(6))
    weights = {f"{n}_FD": np.asarray(layer.experts[f"{n}_NUD"][...]).reshape(24, D)
               for n in ("gate", "up", "down")}  # fmt: skip
    _, chosen_TK = oracle_choice(weights, np.asarray(x_TD), partition.contiguous(24, 4).expert_F, 1)
    np.testing.assert_array_equal(out.routing.expert_TK, chosen_TK)
    with pytest.raises(ValueError, match=r"RouterInputs\(activity_TE=\.\.\.\)"):
        Oracle(k=1)(x_TD, RouterInputs.of(6), {}, {})
    with pytest.raises(ConfigError, match="Oracle looks at what all experts would do"):
        MoELayer(D, config, rngs=nnx.Rngs(0), parallel=object())


@pytest.mark.slow
@pytest.mark.parametrize("split", ["weights", "coactivation", "contiguous", "random"])
@pytest.mark.parametrize("router", ["oracle", "similarity", "mlp"])
def test_every_recipe_is_exact_with_all_on(split, router):
    how = Moefying(experts=6, k=2, split=split, router=router, epochs=2, first_dense=1, rows="both")
    model, tree, cut = moefy(MODEL, parameters(), how, [batch(), batch(1)], seed=1)
    got = hidden(all_on(model), tree["params"], tree["router_state"])
    np.testing.assert_allclose(got, dense_hidden(), rtol=0, atol=1e-5)
    (layer,) = cut
    assert layer.layer == LAYERS - 1 and (layer.fit is None) == (router == "oracle")
    assert bool(layer.partition.spread) == (split in ("weights", "coactivation"))


@pytest.mark.parametrize(
    "how, said",
    [
        (
            Moefying(experts=5),
            r"experts=5: does not divide .* nearest valid value 4",
        ),
        (Moefying(experts=6, k=7), r"k=7: of 6 experts; nearest valid value 6"),
        (Moefying(experts=6, split="weight"), r"split='weight': one of .*did you mean 'weights'"),
        (Moefying(experts=6, router="mpl"), r"router='mpl': one of oracle, similarity, mlp"),
    ],
)
def test_impossible_cuts_are_one_line(how, said):
    with pytest.raises(ConfigError, match=said):
        moefied_config(MODEL, how)


def test_a_text_is_asked_for_where_it_is_needed():
    with pytest.raises(ConfigError, match="need a text, and there is none"):
        moefy(MODEL, parameters(), Moefying(experts=6))
    assert Moefying(experts=48).active == 10 and Moefying(experts=2).active == 1
    assert not dataclasses.replace(Moefying(), router="oracle").needs_text
