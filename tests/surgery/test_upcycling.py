"""Upcycled models: the dense model at the first step, whatever the recipe that promises it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from surgery_samples import LAYERS, MODEL, D, F, dense_hidden, dense_output, ffn, hidden, parameters

from moejax.config import ConfigError
from moejax.experts import expert_ffn
from moejax.experts.spec import ExpertsSpec
from moejax.routing import Routing
from moejax.routing.routers import TopK
from moejax.surgery import Upcycling, put_layers, take_layers, upcycle, upcycled_config
from moejax.surgery.upcycling import copied_experts

RECIPES = {
    "whole": Upcycling(copies=4, k=2),
    "pieces": Upcycling(copies=3, k=2, pieces=4),
    "pieces, in the weights": Upcycling(copies=3, k=1, pieces=2, scale="weights"),
    "raw": Upcycling(copies=4, k=2, renormalise=False, router_std=0.0),
    "raw pieces": Upcycling(copies=4, k=2, pieces=3, renormalise=False, router_std=0.0),
}


def routed(how, x_TD, random):
    """What a router of the recipe gives, in float64 and in NumPy: softmax, the best, weights."""
    w_DC = how.router_std * random.normal(size=(D, how.copies))
    logits_TE = np.repeat(x_TD @ w_DC, how.pieces, axis=1)
    probs_TE = np.exp(logits_TE) / np.exp(logits_TE).sum(1, keepdims=True)
    expert_TK = np.argsort(-probs_TE, axis=1, kind="stable")[:, : how.k * how.pieces]
    weight_TK = np.take_along_axis(probs_TE, expert_TK, 1)
    if how.renormalise:
        weight_TK = weight_TK / weight_TK.sum(1, keepdims=True)
    weight_TK = weight_TK * (how.factor if how.scale == "router" else 1.0)
    experts = how.copies * how.pieces
    return Routing(
        jnp.asarray(expert_TK, jnp.int32), jnp.asarray(weight_TK),
        jnp.full(len(x_TD), expert_TK.shape[1], jnp.int32), None, None, experts, expert_TK.size,
    )  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_the_experts_are_the_dense_ffn_in_float64(name):
    how, random = RECIPES[name], np.random.default_rng(3)
    how = dataclasses.replace(how, router_std=how.router_std * 50)  # gates far from equal
    weights, x_TD = ffn(random), random.normal(size=(7, D))
    spec = ExpertsSpec((F // how.pieces,) * (how.copies * how.pieces), F // how.pieces)
    with jax.enable_x64(True):
        experts = {n: jnp.asarray(w) for n, w in copied_experts(weights, "swiglu", how).items()}
        spec = dataclasses.replace(spec, backend="loop")
        y_TD, _ = expert_ffn(jnp.asarray(x_TD), routed(how, x_TD, random), experts, spec)
    np.testing.assert_allclose(y_TD, dense_output(weights, x_TD), rtol=0, atol=1e-10)


def test_without_the_factor_pieces_are_too_quiet():
    random = np.random.default_rng(4)
    how = Upcycling(copies=3, k=2, pieces=4, scale="none")
    weights, x_TD = ffn(random), random.normal(size=(5, D))
    spec = ExpertsSpec((F // 4,) * 12, F // 4, backend="loop")
    with jax.enable_x64(True):
        experts = {n: jnp.asarray(w) for n, w in copied_experts(weights, "swiglu", how).items()}
        y_TD, _ = expert_ffn(jnp.asarray(x_TD), routed(how, x_TD, random), experts, spec)
    np.testing.assert_allclose(
        4 * np.asarray(y_TD), dense_output(weights, x_TD), rtol=0, atol=1e-10
    )


def test_a_whole_model_is_the_dense_one_at_its_first_step():
    """Pieces, and every second layer: the layers lie in other segments than before."""
    model, tree = upcycle(MODEL, parameters(), Upcycling(copies=3, k=2, pieces=2, every=2), seed=5)
    assert [layer is None for layer in model.plan()] == [True, False]
    got = hidden(model, tree["params"], tree["router_state"])
    np.testing.assert_allclose(got, dense_hidden(), rtol=0, atol=1e-5)
    assert model.moe.router == TopK(k=4, scale=2.0)
    router_DE = tree["params"]["segments"]["1"]["0"]["ffn"]["router"]["w_DE"][0]
    np.testing.assert_array_equal(router_DE[:, 0::2], router_DE[:, 1::2])  # a virtual group
    assert len(np.unique(router_DE[0])) == 3 and 0.01 < router_DE.std() < 0.03


def test_copies_are_copies_and_noise_parts_them():
    random = np.random.default_rng(0)
    weights = ffn(random, dtype=np.float32)
    plain = copied_experts(weights, "swiglu", Upcycling(copies=3))
    for name in ("gate", "up", "down"):
        for copy in plain[f"{name}_NUD"]:
            np.testing.assert_array_equal(copy, weights[f"{name}_FD"])
    noisy = copied_experts(weights, "swiglu", Upcycling(copies=40, noise=0.1), seed=(1, 2))
    off = noisy["up_NUD"] - weights["up_FD"]
    assert noisy["up_NUD"].dtype == np.float32
    np.testing.assert_allclose(off.std(), 0.1 * weights["up_FD"].std(), rtol=0.05)
    assert abs(np.corrcoef(off[0].ravel(), off[1].ravel())[0, 1]) < 0.2
    again = copied_experts(weights, "swiglu", Upcycling(copies=40, noise=0.1), seed=(1, 3))
    assert np.abs(again["up_NUD"] - noisy["up_NUD"]).max() > 0


def test_layers_come_back_from_their_stack():
    layers = take_layers(MODEL, parameters()["segments"])
    assert len(layers) == LAYERS and layers[1]["ffn"]["up_FD"].shape == (F, D)
    assert not np.array_equal(layers[0]["ffn"]["up_FD"], layers[1]["ffn"]["up_FD"])
    jax.tree.map(np.testing.assert_array_equal, put_layers(MODEL, layers), parameters()["segments"])


@pytest.mark.parametrize(
    "how, said",
    [
        (Upcycling(copies=2, k=3), r"k=3: of 2 copies; nearest valid value 2"),
        (
            Upcycling(pieces=5),
            r"pieces=5: does not divide .* nearest valid value 4",
        ),
        (Upcycling(scale="both"), r"scale='both': one of router, weights, none"),
        (Upcycling(first_dense=2), r"moe: no layer uses it"),
    ],
)
def test_impossible_recipes_are_one_line(how, said):
    with pytest.raises(ConfigError, match=said):
        upcycle(MODEL, parameters(), how)


def test_a_model_with_experts_is_not_upcycled_again():
    with pytest.raises(ConfigError, match="upcycle: layer 1 has experts already"):
        upcycled_config(upcycled_config(MODEL, Upcycling(first_dense=1)), Upcycling())
