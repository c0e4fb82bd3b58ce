"""Load: known answers, slow oracles, ends of the ranges, chance by simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from routing_oracles import random_table, same

from moejax.analysis.routing import load, tables

BALANCED = np.array([[10, 10, 10, 10]])
SKEWED = np.array([[70, 10, 20, 0]])  # f = .7 .1 .2 0; u = 2.8 .4 .8 0


def test_balanced_layer_is_one_everywhere():
    np.testing.assert_allclose(load.utilisation(BALANCED), [[1, 1, 1, 1]])
    assert load.load_max_over_mean(BALANCED)[0] == 1
    assert load.load_cv(BALANCED)[0] == 0
    assert load.dead_experts(BALANCED)[0] == 0
    assert load.expert_diversity(BALANCED)[0] == pytest.approx(1)


def test_skewed_layer_by_hand():
    np.testing.assert_allclose(load.load_fraction(SKEWED), [[0.7, 0.1, 0.2, 0]])
    np.testing.assert_allclose(load.utilisation(SKEWED), [[2.8, 0.4, 0.8, 0]])
    assert load.load_max_over_mean(SKEWED)[0] == pytest.approx(2.8)
    # deviations 45 -15 -5 -25: std = sqrt(2900 / 4), mean 25
    assert load.load_cv(SKEWED)[0] == pytest.approx(math.sqrt(725) / 25)
    assert load.dead_experts(SKEWED)[0] == 1
    entropy = -(0.7 * math.log(0.7) + 0.1 * math.log(0.1) + 0.2 * math.log(0.2))
    assert load.expert_diversity(SKEWED)[0] == pytest.approx(math.exp(entropy) / 4)


def test_collapsed_layer_reaches_the_ends_of_the_ranges():
    one = np.array([[0, 0, 0, 99]])
    assert load.load_max_over_mean(one)[0] == 4
    assert load.load_cv(one)[0] == pytest.approx(math.sqrt(3))
    assert load.expert_diversity(one)[0] == pytest.approx(1 / 4)
    assert load.dead_experts(one)[0] == 3


def test_experts_that_do_not_exist_never_count():
    count = np.array([[5, 5, 999], [4, 4, 4]])
    mask = np.array([[True, True, False], [True, True, True]])
    u = load.utilisation(count, mask)
    np.testing.assert_allclose(u, [[1, 1, np.nan], [1, 1, 1]])
    np.testing.assert_allclose(load.load_max_over_mean(count, mask), [1, 1])
    np.testing.assert_array_equal(load.dead_experts([[1, 0, 0], [1, 0, 0]], mask), [1, 2])


@pytest.mark.parametrize(
    "metric",
    [load.load_max_over_mean, load.load_cv, load.expert_diversity],
    ids=lambda f: f.__name__,
)
def test_layer_without_tokens_is_unknown(metric):
    assert np.isnan(metric(np.zeros((1, 4)))).all()
    assert np.isnan(metric(np.zeros((1, 0)))).all()
    assert np.isfinite(metric(np.array([[0, 0], [1, 2]]))).tolist() == [False, True]


def test_layer_without_tokens_has_no_dead_experts():
    assert load.dead_experts(np.zeros((1, 4)))[0] == 0


def test_drop_fraction():
    np.testing.assert_allclose(load.drop_fraction([100, 8], [75, 8]), [0.25, 0])
    assert np.isnan(load.drop_fraction(0, 0))


# ---- against slow oracles


def counts_of(rng):
    """Three layers of unequal numbers of experts, one expert dead, at two evaluations."""
    both = [tables.counts(*random_table(rng)) for _ in range(2)]
    return np.stack(both), random_table(rng)[1]


def by_layer(count, mask, function):
    return [[function(row[m].tolist()) for row, m in zip(at, mask, strict=True)] for at in count]


def test_metrics_of_many_evaluations_at_once_equal_their_definitions(rng):
    count, mask = counts_of(rng)

    def violation(n, pick):
        return pick(n) / (sum(n) / len(n)) - 1

    def gini(n):
        return sum(abs(a - b) for a in n for b in n) / (2 * len(n) * sum(n))

    def kl(n):
        return sum(c / sum(n) * math.log(c / sum(n) * len(n)) for c in n if c)

    def under(n):
        return sum(c < 0.5 * sum(n) / len(n) for c in n)

    for got, oracle in (
        (load.max_violation(count, mask), lambda n: violation(n, max)),
        (load.min_violation(count, mask), lambda n: violation(n, min)),
        (load.gini(count, mask), gini),
        (load.kl_to_uniform(count, mask), kl),
        (load.expert_diversity(count, mask), lambda n: math.exp(-kl(n))),
        (load.underused_experts(count, mask, below=0.5), under),
        (load.dead_fraction(count, mask), lambda n: n.count(0) / len(n)),
        (load.load_cv(count, mask), lambda n: np.std(n) / np.mean(n)),
    ):
        same(got, by_layer(count, mask, oracle))
    assert (load.min_violation(count, mask)[:, 1] == -1).all()  # the dead expert


@pytest.mark.parametrize(
    "metric, collapsed",
    [
        (load.max_violation, 3),
        (load.min_violation, -1),
        (load.gini, 3 / 4),
        (load.kl_to_uniform, math.log(4)),
        (load.dead_fraction, 3 / 4),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_new_metrics_at_balance_collapse_and_silence(metric, collapsed):
    same(metric(np.array([[7, 7, 7, 7], [0, 9, 0, 0]])), [0, collapsed])
    assert np.isnan(metric(np.zeros((1, 4)))).all()


def test_underused_counts_dead_experts_too_but_not_a_silent_layer():
    count = np.array([[1000, 90, 0], [0, 0, 0]])
    np.testing.assert_array_equal(load.underused_experts(count), [1, 0])
    np.testing.assert_array_equal(load.underused_experts(count, below=0.3), [2, 0])


def test_percentiles_over_layers_equal_numpys_without_nan(rng):
    value = rng.normal(size=(3, 7))
    value[1, 2] = value[2] = np.nan
    got = load.layer_percentiles(value)
    want = [np.percentile(row[~np.isnan(row)], [50, 75, 90, 95]) for row in value[:2]]
    same(got[:2], want)
    assert np.isnan(got[2]).all()
    assert np.isnan(load.layer_percentiles(np.zeros(0))).shape == (4,)


def test_drops_by_position(rng):
    position = rng.integers(0, 12, 50)
    requested, kept = np.full((2, 50), 3), rng.integers(0, 4, (2, 50))
    edges = np.array([0, 4, 8, 10])
    for asked in (requested, 3):
        got = load.drop_by_position(kept, asked, position, edges)
        want = [
            [
                1
                - sum(k for k, p in zip(row, position, strict=True) if a <= p < b)
                / (3 * sum(a <= p < b for p in position))
                for a, b in itertools.pairwise(edges)
            ]
            for row in kept
        ]
        same(got, want)
    assert np.isnan(load.drop_by_position(kept, 3, position, np.array([90, 99]))).all()


# ---- chance


def test_random_routing_reaches_the_chance_levels(rng):
    tokens, k, experts = 20, 3, 12
    count = np.zeros((2000, experts), np.int64)
    for row in count:
        for _ in range(tokens):
            row[rng.permutation(experts)[:k]] += 1
    cv = np.sqrt((load.load_cv(count) ** 2).mean())
    assert cv == pytest.approx(load.chance_load_cv(tokens * k, k, experts), rel=0.02)
    dead = load.dead_experts(count).mean()
    assert dead == pytest.approx(load.chance_dead_experts(tokens, k, experts), abs=0.01)
    kl = load.kl_to_uniform(count).mean()  # the docstring's (E - k) / 2N: an expansion
    assert kl == pytest.approx((experts - k) / (2 * tokens * k), rel=0.1)
