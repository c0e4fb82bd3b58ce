"""Balanced clusters: known answers, equal sizes, and the best there is on tiny inputs."""

import itertools

import numpy as np
import pytest

from moejax.surgery import partition
from moejax.surgery.partition import balanced_clusters, cosines, dealt, numbered, unit_rows


def clusters(rows, experts, seed=0, **options):
    return balanced_clusters(rows @ rows.T, experts, seed, **options)


def spread(rows, label):
    """Mean squared distance to the mean of one's own cluster."""
    total = 0.0
    for cluster in set(label):
        own = rows[label == cluster]
        total += ((own - own.mean(0)) ** 2).sum()
    return total / len(rows)


def test_four_neurons_of_the_specification():
    rows = unit_rows(np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]]))
    np.testing.assert_array_equal(clusters(rows, 2).expert_F, [0, 0, 1, 1])


def test_planted_clusters_are_found_and_all_sizes_are_equal():
    random = np.random.default_rng(0)
    centre = 10 * random.normal(size=(4, 6))
    planted = random.permutation(np.repeat(np.arange(4), 8))
    rows = centre[planted] + random.normal(size=(32, 6))
    found = clusters(rows, 4)
    np.testing.assert_array_equal(found.expert_F, numbered(planted, 4))
    np.testing.assert_allclose(found.spread[-1], spread(rows, found.expert_F))


def test_a_cluster_that_is_too_large_is_cut():
    """Ten alike and two others, in two equal parts: k-means itself would take 10 and 2."""
    rows = np.concatenate([np.zeros((10, 2)), [[9.0, 0], [9, 0]]])
    found = clusters(rows + 1e-3 * np.random.default_rng(1).normal(size=rows.shape), 2)
    assert np.bincount(found.expert_F).tolist() == [6, 6]
    assert found.expert_F[10] == found.expert_F[11]


@pytest.mark.parametrize("seed", range(3))
def test_on_tiny_inputs_no_partition_is_better(seed):
    rows = np.random.default_rng(seed).normal(size=(6, 2))
    found = clusters(rows, 2, starts=20)
    best = min(
        spread(rows, np.isin(np.arange(6), half).astype(int))
        for half in itertools.combinations(range(6), 3)
    )
    np.testing.assert_allclose(found.spread[-1], best)


def test_the_spread_falls_in_every_round_and_is_that_of_the_result():
    rows = np.random.default_rng(2).normal(size=(60, 2))
    found = clusters(rows, 5, starts=1)
    assert len(found.spread) > 2 and (np.diff(found.spread) < 0).all()
    np.testing.assert_allclose(found.spread[-1], spread(rows, found.expert_F))
    assert np.bincount(found.expert_F).tolist() == [12] * 5
    assert clusters(rows, 5, starts=8).spread[-1] <= found.spread[-1]
    np.testing.assert_array_equal(clusters(rows, 5, starts=1).expert_F, found.expert_F)


def test_edges():
    same = np.ones((6, 6))
    assert np.bincount(balanced_clusters(same, 3).expert_F).tolist() == [2, 2, 2]
    assert np.unique(balanced_clusters(np.eye(6), 6).expert_F).size == 6
    assert not balanced_clusters(np.eye(6), 1).expert_F.any()
    with pytest.raises(ValueError, match="6 units in 4 equal parts"):
        balanced_clusters(np.eye(6), 4)


def test_the_controls():
    assert partition.contiguous(6, 3).expert_F.tolist() == [0, 0, 1, 1, 2, 2]
    one, other = dealt(40, 4, 0).expert_F, dealt(40, 4, 1).expert_F
    assert np.bincount(one).tolist() == [10] * 4 and not np.array_equal(one, other)
    assert partition.order_of(np.array([1, 0, 1, 0])).tolist() == [1, 3, 0, 2]
    assert numbered(np.array([2, 2, 0, 1]), 3).tolist() == [0, 0, 1, 2]


def test_cosines_of_a_gram_matrix():
    rows = np.array([[3.0, 4], [0, 2], [0, 0]])
    np.testing.assert_allclose(
        cosines(rows @ rows.T), [[1, 0.8, 0], [0.8, 1, 0], [0, 0, 0]], atol=1e-12
    )
    np.testing.assert_array_equal(unit_rows(rows)[2], 0)
