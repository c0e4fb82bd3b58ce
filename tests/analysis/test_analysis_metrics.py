"""Known answers for losses in other units, bins and curves."""

from __future__ import annotations

import math

import numpy as np
import pytest

from moejax.analysis import metrics as m


def test_loss_in_other_units():
    assert m.perplexity(math.log(7)) == pytest.approx(7)
    assert m.perplexity(1e9) == math.inf
    assert m.bits_per_byte(math.log(2) * 3, 1.5) == pytest.approx(2)
    assert math.isnan(m.bits_per_byte(1.0, 0.0))
    assert m.reduction(1.5, 2.0) == 0.25
    assert math.isnan(m.reduction(1.0, math.nan))


def test_rank_bins_are_log_spaced_and_hold_every_rank():
    np.testing.assert_array_equal(m.rank_edges(7), [1, 2, 4, 8, 16])
    edges = m.rank_edges(31999)
    np.testing.assert_array_equal(edges[:4], [1, 4, 16, 64])
    ranks = np.array([0, 2, 3, 31999])
    bins = m.rank_bin(ranks, edges)
    np.testing.assert_array_equal(bins, [0, 0, 1, len(edges) - 2])
    assert (edges[bins] <= ranks + 1).all()
    assert (ranks + 1 < edges[bins + 1]).all()


def test_bin_curve_keeps_short_curves_and_averages_long_ones():
    x, y = m.bin_curve(np.array([3.0, 1.0, np.nan]), np.array([30.0, 10.0, 5.0]), 10)
    np.testing.assert_array_equal((x, y), ([1, 3], [10, 30]))
    x, y = m.bin_curve(np.arange(1, 101), np.arange(1, 101), 4)
    np.testing.assert_allclose(x, y)
    assert x.size == 4
    x, _ = m.bin_curve(np.array([0.0, 1.0]), np.array([1.0, 1.0]), 10, log=True)
    np.testing.assert_array_equal(x, [1.0])


def test_value_at_interpolates_and_never_extrapolates():
    x, y = np.array([10.0, 0.0, 20.0]), np.array([1.0, 0.0, np.nan])
    assert m.value_at(x, y, 5.0) == 0.5
    assert math.isnan(m.value_at(x, y, 15.0))
    assert math.isnan(m.value_at(np.zeros(0), np.zeros(0), 1.0))
