"""Similarity of weights, and rank correlation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from routing_oracles import same
from scipy import stats

from moejax.analysis.routing import correlation, similarity

# ---- similarity


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def test_cosines_of_gates_equal_loops(rng):
    gate, mask = rng.normal(size=(2, 4, 3)), np.ones((2, 4), bool)
    mask[1, 2] = False
    gate[0, 3] = 0
    got = similarity.gate_similarity(gate, mask)
    for layer, i, j in itertools.product(range(2), range(4), range(4)):
        known = mask[layer, [i, j]].all() and not (layer == 0 and 3 in (i, j))
        same(got[layer, i, j], cosine(gate[layer, i], gate[layer, j]) if known else math.nan)


def test_random_directions_are_at_the_stated_chance(rng):
    got = similarity.cosine_matrix(rng.normal(size=(60, 400)))[np.triu_indices(60, 1)]
    assert abs(got.mean()) < 0.005
    assert got.std() == pytest.approx(1 / math.sqrt(400), rel=0.05)


def test_cosines_of_expert_weights_only_between_equal_shapes(rng):
    weights = [rng.normal(size=(2, 3)), rng.normal(size=(4, 3)), rng.normal(size=(2, 3))]
    got = similarity.expert_similarity(weights)
    same(got[0, 2], cosine(weights[0].ravel(), weights[2].ravel()))
    same(np.diag(got), 1)
    assert np.isnan(got[[0, 1], [1, 2]]).all()


def test_matched_units_ignore_order_and_width(rng):
    first, second = rng.normal(size=(3, 5)), rng.normal(size=(4, 5))
    best = max(
        sum(cosine(first[i], second[j]) for i, j in enumerate(p))
        for p in itertools.permutations(range(4), 3)
    )
    same(similarity.matched_unit_similarity(first, second), best / 3)
    same(similarity.matched_unit_similarity(second, first), best / 3)
    same(similarity.matched_unit_similarity(second, second[[2, 0, 3, 1]] * 3), 1)
    zeros = np.vstack([first[:2], np.zeros((1, 5))])
    same(similarity.matched_unit_similarity(zeros, zeros), 2 / 3)
    assert math.isnan(similarity.matched_unit_similarity(first[:0], second))
    with pytest.raises(ValueError, match="expected equal row lengths"):
        similarity.matched_unit_similarity(first, second[:, :3])


# ---- correlation


def test_spearman_equals_scipys_with_ties_and_gaps(rng):
    x = rng.integers(0, 5, (3, 80)).astype(float)
    y = rng.integers(0, 9, 80).astype(np.float32)
    x[1, ::7], y[3] = np.nan, np.nan
    got = correlation.spearman(x, y)
    for row, rho in zip(x, got, strict=True):
        good = np.isfinite(row) & np.isfinite(y)
        same(rho, stats.spearmanr(row[good], y[good]).statistic)


def test_width_follows_frequency_or_not():
    rank = np.array([0, 1, 2, 3, -1])
    width = np.array([[40, 30, 20, 10, 99], [10, 10, 30, 40, 0], [8, 8, 8, 8, 9]])
    got = correlation.width_frequency_correlation(width, rank)
    same(got, [1, -math.sqrt(0.9), np.nan])
    assert np.isnan(correlation.width_frequency_correlation(width[:, :1], rank[:1])).all()


def test_chance_of_rank_correlation_by_simulation(rng):
    rho = correlation.spearman(rng.normal(size=(1000, 50)), rng.normal(size=50))
    assert abs(rho.mean()) < 0.015
    assert rho.std() == pytest.approx(1 / math.sqrt(49), rel=0.06)
