"""Experts that are gone: equal to experts that are forced off, and counted as gone."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from surgery_models import D, exact_outputs, model, moe, random_tree

from moejax.analysis.traces import EMPTY_SLOT, make_trace
from moejax.config import ConfigError, build, counts, to_plain
from moejax.experts import WidthPlan, ZeroCompute
from moejax.models import ModelConfig
from moejax.probe.interventions.edit import Edit
from moejax.routing.routers import Hash, ReMoE, SigmoidBias, TopK, TopP
from moejax.surgery.pruning import ALL, KEEP, REMOVE, magnitude, prune
from moejax.surgery.ranking import (
    GLOBAL,
    PROPORTIONAL,
    UNIFORM,
    activation_frequency,
    keep_mask,
    random_mask,
)

UNEQUAL = WidthPlan("explicit", explicit=(4, 4, 8, 8, 12, 12))
MIXED = model(
    None,
    moe(TopK(k=3, renormalise=False), widths=UNEQUAL, shared_width=4),
    moe(SigmoidBias(k=2)),
    moe(TopP(p=0.6), zero_compute=ZeroCompute(copy=1)),
    moe(ReMoE(k=2)),
)
KEPT = {1: (0, 4), 2: (1, 2, 5), 3: (0, 1, 3, 4), 4: (5,)}
SCANNED = model(*[moe(TopK(k=2))] * 4)


def forced_off(config: ModelConfig, kept: dict[int, tuple[int, ...]], how: str) -> dict[int, Edit]:
    """The same model, its router told that some experts are not there."""
    found = {}
    for layer, experts in kept.items():
        kind = config.plan()[layer]
        total = kind.num_experts
        gone_E = jnp.array([e not in experts and e < kind.experts for e in range(total)])
        found[layer] = Edit(
            top=jnp.int32(0),
            drop_E=gone_E,
            k=jnp.int32(getattr(kind.router, "k", 0)),
            p=jnp.float32(getattr(kind.router, "p", 0.0)),
            extra=jnp.int32(0),
            shared=jnp.bool_(True),
            router=kind.router,
            slots=kind.router.slots(total),
            when="before" if how == REMOVE else "after",
            renormalise=how == REMOVE,
        )
    return found


@pytest.fixture(scope="module")
def tree():
    return random_tree(MIXED)


@pytest.fixture(scope="module")
def whole(tree):
    return exact_outputs(MIXED, tree)


@pytest.mark.parametrize("how", [REMOVE, KEEP])
def test_gone_equals_forced_off(tree, whole, how):
    pruned, made = prune(MIXED, tree, KEPT, how)
    want = exact_outputs(MIXED, tree, forced_off(MIXED, KEPT, how))
    got = exact_outputs(pruned, made)
    # Routers are float32, and a softmax over fewer experts is a sum in another order.
    atol = 1e-5 if how == REMOVE else 1e-10
    np.testing.assert_allclose(got, want, rtol=0, atol=atol)
    assert np.abs(want - whole).max() > 1e-3, "nothing was taken away"


def test_it_is_smaller_by_just_what_is_gone(tree):
    """Layers keep different numbers of experts; the one counter sees it, and so do the arrays."""
    before, after = (
        counts.parameters(config.shape()) for config in (MIXED, prune(MIXED, tree, KEPT)[0])
    )
    gone = sum(
        width
        for layer, kept in KEPT.items()
        for expert, width in enumerate(MIXED.plan()[layer].spec.widths)
        if expert not in kept
    )
    assert before.experts - after.experts == 3 * D * gone
    assert before.router - after.router == D * sum(6 - len(kept) for kept in KEPT.values())
    assert after.shared_experts == before.shared_experts and after.active < before.active
    kept_rows, made = prune(MIXED, tree, KEPT, KEEP)
    assert counts.parameters(kept_rows.shape()).experts == after.experts
    assert counts.parameters(kept_rows.shape()).router == before.router
    sizes = [
        leaf.size
        for segment in made["params"]["segments"].values()
        for block in segment.values()
        if "experts" in block["ffn"]
        for leaf in block["ffn"]["experts"].values()
    ]
    assert sum(sizes) == after.experts


def test_layers_that_stay_equal_are_scanned_together():
    tree = random_tree(SCANNED)
    kept = {0: (0, 1, 2), 1: (3, 4, 5), 2: tuple(range(6))}
    pruned, made = prune(SCANNED, tree, kept)
    assert pruned.layers == ("pruned_0", "pruned_0", "pruned_1", "pruned_1")
    assert len(made["params"]["segments"]) == 2
    assert build(ModelConfig, to_plain(pruned)) == pruned
    old = tree["params"]["segments"]["0"]["0"]["ffn"]
    new = made["params"]["segments"]["0"]["0"]["ffn"]
    np.testing.assert_array_equal(new["router"]["w_DE"][1], old["router"]["w_DE"][1][:, 3:])
    np.testing.assert_array_equal(new["experts"]["up_NUD"][1], old["experts"]["up_NUD"][1][3:])


def test_all_that_is_left_is_on():
    """Every expert with weight 1: the dense FFN without some of its neurons."""
    config = model(moe(TopK(k=2)))
    tree = random_tree(config)
    pruned, made = prune(config, tree, {0: (1, 3, 4)}, ALL)
    ffn = tree["params"]["segments"]["0"]["0"]["ffn"]["experts"]
    dense = model(None, ffn_width=24)
    as_dense = random_tree(dense)
    block = {**tree["params"]["segments"]["0"]["0"]}
    block["ffn"] = {
        f"{name}_FD": ffn[f"{name}_NUD"][:, [1, 3, 4]].reshape(1, 24, D)
        for name in ("gate", "up", "down")
    }
    as_dense["params"] = {**tree["params"], "segments": {"0": {"0": block}}}
    np.testing.assert_allclose(
        exact_outputs(pruned, made), exact_outputs(dense, as_dense), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize(
    "config, kept, how, says",
    [
        (model(None), {0: (0,)}, REMOVE, "layer 0: has no experts"),
        (SCANNED, {7: (0,)}, REMOVE, "layer 7: has no experts"),
        (SCANNED, {0: ()}, REMOVE, "at least one of 0 to 5"),
        (SCANNED, {0: (6,)}, REMOVE, "at least one of 0 to 5"),
        (SCANNED, {0: (1,)}, "drop", "--router='drop'"),
        (model(moe(Hash())), {0: (1,)}, REMOVE, "hash chooses by .* nearest valid --router=keep"),
        (
            model(moe(TopK(groups=2))), {0: (1,)}, REMOVE,
            "equal groups; nearest valid --router=keep",
        ),
        (MIXED, {3: (1,)}, ALL, "nearest valid --router=remove"),
    ],
)  # fmt: skip
def test_what_cannot_be_pruned_is_refused(config, kept, how, says):
    with pytest.raises(ConfigError, match=says):
        prune(config, random_tree(config), kept, how)


# ---- which experts go


def tiny_trace():
    """Two layers of 3 and 2 experts, four tokens, two slots."""
    expert_LTK = np.full((2, 4, 2), EMPTY_SLOT, np.uint16)
    expert_LTK[0] = [[0, 1], [0, 2], [0, EMPTY_SLOT], [1, 0]]
    expert_LTK[1, :, 0] = [1, 1, 1, 0]
    return make_trace(
        {
            "layers_L": np.array([1, 3]),
            "width_LE": np.array([[8, 8, 8], [8, 8, -1]]),
            "expert_LTK": expert_LTK,
        }
    )


def test_frequencies_are_counts_over_tokens():
    trace = tiny_trace()
    got = activation_frequency(trace)
    np.testing.assert_array_equal(got, [[1.0, 0.5, 0.25], [0.25, 0.75, np.nan]])
    assert got[1, :2].sum() == 1.0  # sum over experts is k
    some = activation_frequency(trace, np.array([True, False, True, False]))
    np.testing.assert_array_equal(some, [[1.0, 0.5, 0.0], [0.0, 1.0, np.nan]])
    none = activation_frequency(trace, np.zeros(4, bool))
    assert np.isnan(none).all()


def slow_global(score, rate, least):
    """Takes the lowest of all that may still go, again and again."""
    kept = ~np.isnan(score)
    gone = int(np.floor(rate * kept.sum() + 0.5 + 1e-9))
    for _ in range(gone):
        best = None
        for layer in range(score.shape[0]):
            for expert in range(score.shape[1]):
                if not kept[layer, expert] or kept[layer].sum() <= least:
                    continue
                if best is None or score[layer, expert] <= score[best]:
                    best = layer, expert
        if best is not None:
            kept[best] = False
    return kept


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3, 0.5, 0.9])
def test_masks_by_rate_and_spread(rng, rate):
    score = rng.integers(0, 6, (4, 7)) / 6.0
    score[1, 4:] = np.nan
    np.testing.assert_array_equal(
        keep_mask(score, rate, GLOBAL, least=2), slow_global(score, rate, 2)
    )
    uniform = keep_mask(score, rate, UNIFORM)
    for layer, size in enumerate([7, 4, 7, 7]):
        gone = min(int(np.floor(rate * size + 0.5 + 1e-9)), size - 1)
        assert uniform[layer].sum() == size - gone
        assert np.nanmax(np.where(uniform[layer], np.nan, score[layer]), initial=-1) <= np.nanmin(
            np.where(uniform[layer], score[layer], np.nan)
        )
    shares = keep_mask(score, rate, PROPORTIONAL)
    gone_L = np.array([7, 4, 7, 7]) - shares.sum(-1)
    assert gone_L.sum() == min(int(np.floor(rate * 25 + 0.5 + 1e-9)), 21)
    drawn = random_mask(uniform, ~np.isnan(score), seed=3)
    np.testing.assert_array_equal(drawn.sum(-1), uniform.sum(-1))
    assert not drawn[1, 4:].any()
    assert (drawn == random_mask(uniform, ~np.isnan(score), seed=3)).all()


def test_proportional_shares_follow_idleness():
    """Layers in use 3/4, 1/2 and 1/4 of the time lose experts as 1 : 2 : 3."""
    score = np.repeat([[0.75], [0.5], [0.25]], 12, axis=1)
    gone_L = 12 - keep_mask(score, 1 / 3, PROPORTIONAL).sum(-1)
    np.testing.assert_array_equal(gone_L, [2, 4, 6])


def test_an_expert_that_is_never_used_costs_nothing():
    """Frequency 0 on the text: under the same top-k its removal changes no output there."""
    config = model(moe(SigmoidBias(k=2)))
    tree = random_tree(config)
    tree["router_state"]["segments"]["0"]["0"]["ffn"]["router_state"]["bias_E"][:, 2] = -100.0
    pruned, made = prune(config, tree, {0: (0, 1, 3, 4, 5)})
    np.testing.assert_allclose(
        exact_outputs(pruned, made), exact_outputs(config, tree), rtol=0, atol=1e-10
    )


def test_magnitude_is_the_rms_of_all_matrices(tree):
    got = magnitude(MIXED, tree)
    assert got.shape == (4, 6)
    stacked = tree["params"]["segments"]["1"]["0"]["ffn"]["experts"]
    rows = slice(2, 4)  # expert 2 of the unequal layer: units of 4
    own = np.concatenate([stacked[name][0, rows].ravel() for name in stacked])
    assert got[0, 2] == pytest.approx(np.sqrt(np.mean(own.astype(np.float64) ** 2)), rel=1e-6)


@pytest.mark.parametrize(
    "rate, spread, least, says",
    [
        (1.0, UNIFORM, 1, "nearest valid value 0.9"),
        (float("nan"), UNIFORM, 1, "--rate=nan"),
        (0.2, "globl", 1, "did you mean 'global'"),
        (0.2, UNIFORM, 0, "--least=0"),
    ],
)
def test_rates_that_are_none(rate, spread, least, says):
    with pytest.raises(ConfigError, match=says):
        keep_mask(np.ones((1, 4)), rate, spread, least)


def test_the_router_keeps_its_knobs(tree):
    pruned, _ = prune(MIXED, tree, KEPT)
    plan = pruned.plan()
    assert plan[1].router == dataclasses.replace(MIXED.plan()[1].router, k=2)
    assert [kind.experts for kind in plan[1:]] == [2, 3, 4, 1]
    assert plan[3].num_experts == 5 and plan[4].router.k == 1
