"""From layer to layer: joint choices, information, routes."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from routing_oracles import chosen, entropy, first_choice, mean, random_table, same

from moejax.analysis.routing import information, paths


@pytest.mark.parametrize(
    "top, cost, cells", [(4, 0, 1 << 20), (4, 0, 100), (1, 0, 99), (4, 1e9, 9)]
)
def test_joint_choices_and_transitions_equal_loops(rng, monkeypatch, top, cost, cells):
    monkeypatch.setattr(
        "moejax.analysis.routing.pairs.PAIR_COST", cost
    )  # count pairs, or multiply tables
    monkeypatch.setattr("moejax.analysis.routing.pairs.BLOCK_CELLS", cells)
    table, mask = random_table(rng)
    table = table[:, :, :top]
    joint = paths.joint_choices(table, mask)
    forward = paths.transitions(joint)
    assert joint.shape == forward.shape == (2, 6, 6)
    same(joint.sum((1, 2)), 1)
    for layer in range(2):
        pairs = [
            (chosen(table, mask, layer, t), chosen(table, mask, layer + 1, t)) for t in range(60)
        ]
        pairs = [(a, b) for a, b in pairs if a and b]
        for i, j in itertools.product(range(6), repeat=2):
            share = mean((i in a) * (j in b) / len(a) / len(b) for a, b in pairs)
            same(joint[layer, i, j], share)
            out = mean((i in a) / len(a) for a, b in pairs)
            same(forward[layer, i, j], share / out if out else math.nan)


def test_layers_that_do_not_meet():
    table = np.array([[[0], [9]], [[9], [1]]])
    assert np.isnan(paths.joint_choices(table, np.ones((2, 4), bool))).all()
    assert paths.joint_choices(table[:1], np.ones((1, 4), bool)).shape == (0, 4, 4)
    assert paths.layer_information(table[:1], np.ones((1, 4), bool)).plug_in.shape == (0,)


def test_independent_layers_meet_the_chance_of_transitions(rng):
    table = np.argsort(rng.random((2, 20_000, 5)), -1)[:, :, :2]
    joint = paths.joint_choices(table, np.ones((2, 5), bool))[0]
    np.testing.assert_allclose(paths.transitions(joint), np.full((5, 5), 0.2), atol=0.01)
    np.testing.assert_allclose(joint, joint.sum(1)[:, None] * joint.sum(0), atol=0.002)


def test_information_between_layers_is_that_of_the_first_choice_as_label(rng):
    table, mask = random_table(rng)
    got = paths.layer_information(table, mask, permutations=2, seed=7)
    for layer in range(2):
        label = [first_choice(table, mask, layer, t) for t in range(60)]
        label = np.array([-1 if e is None else e for e in label])
        after = slice(layer + 1, layer + 2)
        want = information.mutual_information(
            table[after], mask[after], label, permutations=2, seed=7 + layer
        )
        for name in ("assignments", "labels", "plug_in", "chance", "ceiling", "adjusted"):
            same(getattr(got, name)[layer], getattr(want, name)[0])


def test_information_between_layers_loses_its_bias(rng):
    """16 x 16 cells and 500 tokens: unrelated layers, and layers of which one names the other."""
    first = rng.integers(0, 16, 500)
    table = np.stack([first, rng.integers(0, 16, 500), 15 - first, first])[..., None]
    mask = np.ones((4, 16), bool)
    got = paths.layer_information(table, mask, permutations=8)
    assert (got.plug_in[:2] > 0.2).all()
    assert (np.abs(got.adjusted[:2]) < 0.03).all()
    same(got.share[2], 1)


# ---- routes


@pytest.mark.parametrize("layers", [(0, 1, 2), (2, 0), (1,)])
def test_routes_equal_a_counter(rng, layers):
    table, mask = random_table(rng, tokens=120)
    got = paths.common_paths(table, mask, layers, top=4)
    routes = [tuple(first_choice(table, mask, x, t) for x in layers) for t in range(120)]
    routes = Counter(r for r in routes if None not in r)
    n = sum(routes.values())
    assert (got.tokens, got.distinct) == (n, len(routes))
    same(got.entropy, entropy(routes))
    same(got.coverage, 1 - sum(c == 1 for c in routes.values()) / n)
    ceiling = sum(math.log(mask[x].sum()) for x in layers)
    same(got.ceiling, min(ceiling, math.log(n)))
    best = sorted(routes.items(), key=lambda item: (-item[1], item[0]))[:4]
    shown = zip(map(tuple, got.path_Pl.tolist()), got.count_P.tolist(), strict=True)
    assert list(shown) == best
    same(got.top, sum(c for _, c in best) / n)


def test_routes_of_independent_layers_are_at_chance_and_repeated_ones_are_not(rng):
    table = rng.integers(0, 6, (3, 4000, 1))
    mask = np.ones((3, 6), bool)
    got = paths.common_paths(table, mask, range(3), permutations=3)
    assert got.entropy == pytest.approx(got.chance_entropy, abs=0.01)
    assert got.top == pytest.approx(got.chance_top, abs=0.01)
    assert got.chance_entropy < 3 * math.log(6)  # finite tokens: below the sum of entropies
    again = paths.common_paths(table[[0, 0, 0]], mask, range(3))
    assert again.distinct == 6 and again.entropy < math.log(6) + 1e-9
    assert again.chance_entropy > 5


def test_deep_routes_do_not_overflow(rng):
    table = rng.integers(0, 60_000, (40, 30, 1))
    got = paths.common_paths(table, np.ones((40, 60_000), bool), range(40), top=1)
    assert got.distinct == 30 and got.coverage == 0
    same([got.entropy, got.ceiling], math.log(30))
    assert got.path_Pl[0].tolist() in table[:, :, 0].T.tolist()


def test_no_route():
    none = paths.common_paths(np.full((2, 3, 1), 9), np.ones((2, 4), bool), (0, 1))
    assert (none.tokens, none.distinct, none.count_P.size) == (0, 0, 0)
    assert np.isnan([none.entropy, none.ceiling, none.top, none.chance_top, none.coverage]).all()
