"""The grouped reducer: loops over sequences, coverage of its intervals, bins."""

from __future__ import annotations

import math

import numpy as np
import pytest
from routing_oracles import same
from scipy import stats

from moejax.analysis.routing import grouped


def slow(value, group, groups, sequence, quantiles):
    for g in range(groups):
        tokens = [t for t in range(len(value)) if group[t] == g and math.isfinite(float(value[t]))]
        n = len(tokens)
        if not n:
            yield 0, 0, math.nan, math.nan, [math.nan] * len(quantiles)
            continue
        m = sum(float(value[t]) for t in tokens) / n
        names = sorted({sequence[t] for t in tokens})
        residual = [sum(float(value[t]) - m for t in tokens if sequence[t] == s) for s in names]
        half = math.nan
        if len(names) > 1:
            variance = len(names) / (len(names) - 1) * sum(r * r for r in residual) / n**2
            half = stats.t.ppf(0.975, len(names) - 1) * math.sqrt(variance)
        q = np.quantile([float(value[t]) for t in tokens], quantiles)
        yield n, len(names), m, half, q


@pytest.mark.parametrize("dtype", ["float64", "float16", "int64"])
def test_equals_a_loop_over_sequences(rng, dtype):
    value = (rng.normal(size=(2, 3, 80)) * 4).astype(dtype)
    if dtype != "int64":
        value[0, 1, ::3] = np.nan
        value[1, 2, 4] = np.inf
    group, sequence = rng.integers(-1, 5, 80), rng.integers(100, 109, 80)
    group[group == 3] = 0  # group 3 stays empty
    group[group == 4] = 255  # such a label, too, is left out
    sequence[group == 2] = 101  # a group within one sequence
    got = grouped.reduce_groups(value, group, 4, sequence, (0.1, 0.5, 0.95))
    assert got.mean.shape == (2, 3, 4)
    assert got.quantile.shape == (2, 3, 4, 3)
    for i in np.ndindex(2, 3):
        rows = list(slow(value[i], group, 4, sequence, got.quantiles))
        for g, (n, s, m, half, q) in enumerate(rows):
            assert (got.tokens[i][g], got.sequences[i][g]) == (n, s)
            same(got.mean[i][g], m)
            same(got.half_width[i][g], half)
            same(got.quantile[i][g], q)


def test_means_weigh_tokens_alike(rng):
    value, group = rng.normal(size=50), rng.integers(0, 3, 50)
    got = grouped.reduce_groups(value, group, 3, np.arange(50) // 5, ())
    same(got.mean, [value[group == g].mean() for g in range(3)])
    assert got.quantile.shape == (3, 0)


def test_one_token_no_token_and_wrong_lengths():
    one = grouped.reduce_all(np.array([[4.0]]), np.array([7]))
    assert (one.mean, one.tokens, one.sequences) == (4, 1, 1)
    assert np.isnan(one.half_width)
    same(one.quantile, [[[4, 4]]])
    none = grouped.reduce_all(np.zeros((2, 0)), np.zeros(0))
    assert np.isnan(none.mean).all() and none.tokens.tolist() == [[0], [0]]
    with pytest.raises(ValueError, match=r"sequence_T \(2,\) is not of 3 tokens"):
        grouped.reduce_groups(np.zeros(3), np.zeros(3), 1, np.zeros(2))
    with pytest.raises(ValueError, match="not within 0"):
        grouped.reduce_all(np.zeros(3), np.zeros(3), (95.0,))


def test_interval_covers_where_the_token_wise_one_does_not(rng):
    """600 corpora of 20 sequences of unequal length, whose tokens share half of their variance."""
    covered, naive = [], []
    for _ in range(600):
        length = rng.integers(5, 40, 20)
        sequence = np.repeat(np.arange(20), length)
        value = rng.normal(size=20)[sequence] + rng.normal(size=sequence.size)
        got = grouped.reduce_all(value, sequence, ())
        covered.append(abs(got.mean[0]) <= got.half_width[0])
        naive.append(abs(value.mean()) <= 1.96 * value.std(ddof=1) / value.size**0.5)
    assert 0.92 <= np.mean(covered) <= 0.97  # a little below 0.95 with few sequences, as stated
    assert np.mean(naive) < 0.6


def test_sequences_from_positions():
    position = [3, 4, 5, 0, 1, 0, 0, 7, 8]
    assert grouped.sequences_of(np.array(position)).tolist() == [0, 0, 0, 1, 1, 2, 3, 4, 4]
    assert grouped.sequences_of(np.zeros(0, int)).tolist() == []


def test_bins_of_equal_numbers(rng):
    value = rng.normal(size=1000).astype(np.float32)
    value[:10] = np.nan
    edges = grouped.quantile_edges(value, 10)
    group = grouped.bin_of(value, edges)
    assert (group[:10] == -1).all()
    assert np.bincount(group[10:]).tolist() == [99] * 10
    inside = (edges[group[10:]] <= value[10:]) & (value[10:] <= edges[group[10:] + 1])
    assert inside.all()


def test_bins_of_few_values():
    assert grouped.bin_of([1, 1, 2, np.nan], grouped.quantile_edges([1, 1, 2], 4)).tolist() == [
        *(0, 0, 1),
        -1,
    ]
    edges = grouped.quantile_edges(np.array([5.0, 5.0]), 4)
    assert grouped.bin_of(np.array([5.0, 4.0]), edges).tolist() == [0, -1]
    assert grouped.quantile_edges(np.array([np.nan]), 4).size == 0
    assert grouped.bin_of(np.array([5.0]), np.zeros(0)).tolist() == [-1]


def test_distribution_counts_tokens():
    got = grouped.distribution(np.array([[0, 1, 1, 3.0], [np.nan, 9, 2, 2]]), np.arange(5))
    assert got.tolist() == [[1, 2, 0, 1], [0, 0, 2, 0]]
