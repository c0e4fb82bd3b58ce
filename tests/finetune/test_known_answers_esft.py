"""ESFT (methods.md D.6): scores, the edge of a selection, and slices that AdamW leaves alone."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest

from moejax.experts import MoeConfig, WidthPlan
from moejax.finetune.scores import average_gate, rounded, selection_ratio
from moejax.finetune.selection import (
    Selection,
    method_of,
    random_like,
    select,
    smallest_prefix,
    union,
)
from moejax.models import ModelConfig, Transformer
from moejax.models.attention import AttentionConfig
from moejax.models.block import Tokens
from moejax.routing.routers import TopK

GATES_JTE = np.array([[[0.5, 0.3, 0, 0], [0.4, 0, 0.4, 0], [0, 0.2, 0.6, 0]]])

# One layer of the released scores and configs of deepseek-ai/ESFT (commit 579a7711, MIT): task
# `intent`, layer 1, results/expert_scores and results/expert_configs, ESFT-Token, p = .2.
RELEASED_TOKEN = (
    0.0101, 0.0119, 0.0177, 0.008, 0.0082, 0.0131, 0.0423, 0.024, 0.0653, 0.0102, 0.0118,
    0.0119, 0.0096, 0.0099, 0.003, 0.0055, 0.0061, 0.0048, 0.0084, 0.0072, 0.0399, 0.0085,
    0.0181, 0.0047, 0.0185, 0.0279, 0.0463, 0.0148, 0.0041, 0.004, 0.0102, 0.0129, 0.0321,
    0.0243, 0.0078, 0.0086, 0.0065, 0.0061, 0.0075, 0.0167, 0.0105, 0.006, 0.0085, 0.0347,
    0.0069, 0.0095, 0.0161, 0.0115, 0.0193, 0.0178, 0.0162, 0.0109, 0.0219, 0.0055, 0.0065,
    0.0435, 0.0257, 0.0297, 0.0033, 0.007, 0.0309, 0.0075, 0.0342, 0.0083,
)  # fmt: skip
RELEASED_CHOICE = (8, 26, 55, 6, 20)


def test_gate_rows_give_the_average_gate_and_the_selection_ratio() -> None:
    assert rounded(average_gate(GATES_JTE)) == {0: 0.3, 1: 0.1667, 2: 0.3333, 3: 0.0}
    np.testing.assert_allclose(average_gate(GATES_JTE), [0.3, 1 / 6, 1 / 3, 0], rtol=1e-12)
    for slots in (2, None, np.full((1, 3), 2)):
        ratio_E = selection_ratio(GATES_JTE, slots)
        np.testing.assert_allclose(ratio_E, [1 / 3, 1 / 3, 1 / 3, 0], rtol=1e-12)


def test_a_token_without_an_expert_adds_nothing_and_a_lost_slot_still_counts_in_k() -> None:
    gate_JTE = np.array([[[0.7, 0.0], [0.0, 0.0]]])
    np.testing.assert_allclose(selection_ratio(gate_JTE), [0.5, 0])
    np.testing.assert_allclose(selection_ratio(gate_JTE, 2), [0.25, 0])


def test_samples_weigh_the_same() -> None:
    gate_JTE = np.array([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 0.5], [0.5, 0.0]]])
    np.testing.assert_allclose(average_gate(gate_JTE), [0.625, 0.125])
    np.testing.assert_allclose(selection_ratio(gate_JTE, 1), [0.75, 0.25])


@pytest.mark.parametrize(
    "scores, p, chosen",
    [
        ((0.5, 0.5), 0.5, (0,)),
        ((0.5, 0.5), 0.51, (0, 1)),
        ((0.3333, 0.3333, 0.3332), 1.0, (0, 1, 2)),
        ((0.1, 0.7, 0.2), 0.8, (1, 2)),
        ((0.1, 0.7, 0.1, 0.1), 0.8, (1, 0)),
    ],
    ids=["reached", "crossed", "never reached", "crossing included", "decimals, not binary"],
)
def test_selection_edge(scores: tuple[float, ...], p: float, chosen: tuple[int, ...]) -> None:
    """.7 + .1 is .7999999999999999 in binary, and .8 all the same."""
    assert smallest_prefix(dict(enumerate(scores)), p) == chosen


def test_a_released_layer_is_selected_as_released() -> None:
    scores = dict(enumerate(RELEASED_TOKEN))
    assert sum(scores.values()) == pytest.approx(1.0, abs=2e-3)
    assert smallest_prefix(scores, 0.2) == RELEASED_CHOICE


def test_a_random_choice_of_a_union_has_the_counts_of_the_union() -> None:
    tables = [{1: {0: 0.6, 1: 0.4, 2: 0.0}, 4: {0: 0.5, 1: 0.5}}]
    tables.append({1: {0: 0.1, 1: 0.2, 2: 0.7}, 4: {0: 0.9, 1: 0.1}})
    both = union([select(table, 0.5) for table in tables])
    assert both == {1: (0, 2), 4: (0,)}
    drawn = [random_like(both, tables[0], seed) for seed in range(12)]
    assert {tuple(map(len, one.values())) for one in drawn} == {(2, 1)}
    assert len({one[1] for one in drawn}) > 2 and {one[4] for one in drawn} == {(0,), (1,)}
    assert random_like(both, tables[0], 5) == drawn[5]


def test_one_step_of_adamw_leaves_frozen_slices_bit_identical() -> None:
    """With weight decay on, which a gradient of zero would not keep away from what it decays."""
    layer = MoeConfig(4, WidthPlan("explicit", explicit=(4, 4, 8, 8)), TopK(k=2), backend="loop")
    config = ModelConfig(
        vocab_size=16, d_model=8, num_layers=2, ffn_width=8, attention=AttentionConfig(heads=2),
        layers=("dense", "moe"), moe=layer,
    )  # fmt: skip
    model = Transformer(config)
    params, state = model.init(jax.random.key(0))
    chosen = {1: (3, 1)}
    tuning = method_of(Selection(chosen)).plan(model, jax.eval_shape(lambda: params))
    trainable, frozen = tuning.split(params, jax.random.key(1))
    optimizer = optax.adamw(1e-2, weight_decay=0.5)
    tokens = np.arange(16, dtype=np.int32).reshape(2, 8)
    ones = np.ones((2, 8), np.int32)
    place = Tokens(tokens, np.cumsum(ones, 1) - 1, ones)

    def loss(tree: dict) -> jax.Array:
        x_BSD, _ = model.hidden(tuning.assemble(tree, frozen), state, place, train=True)
        return (x_BSD**3).sum()

    gradients = jax.jit(jax.grad(loss))(trainable)
    updates, _ = optimizer.update(gradients, optimizer.init(trainable), trainable)
    after = tuning.assemble(optax.apply_updates(trainable, updates), frozen)
    ends = np.cumsum([0, *layer.spec.widths]) // layer.spec.unit
    own = np.concatenate([np.arange(ends[e], ends[e + 1]) for e in chosen[1]])
    seen = 0
    before_leaves = jax.tree_util.tree_leaves_with_path(params)
    for (path, old), new in zip(before_leaves, jax.tree.leaves(after), strict=True):
        old, new = np.asarray(old), np.asarray(new)
        if "'experts'" not in jax.tree_util.keystr(path):
            assert old.tobytes() == new.tobytes(), path
            continue
        seen += 1
        rest = np.setdiff1d(np.arange(old.shape[1]), own)
        assert old[:, rest].tobytes() == new[:, rest].tobytes(), path
        assert (old[:, own] != new[:, own]).mean() > 0.99, path
    assert seen == 3
