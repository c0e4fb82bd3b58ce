"""Intervals, the noise floor and ratios against scipy, by hand, and by drawing at random."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, stats

from moejax.analysis.compare.equal_loss import PowerLaw
from moejax.analysis.compare.noise import (
    BEYOND,
    BY_FLOOR,
    BY_PAIRS,
    UNKNOWN,
    WITHIN,
    Noise,
    difference_of,
    paired,
    pooled,
)
from moejax.analysis.compare.ratios import ratio_of
from moejax.config.knobs import ConfigError

NAN = math.nan
NONE = Noise(NAN, 0)


def seeds(values):
    return {str(i): float(v) for i, v in enumerate(values)}


# ---- the floor


def slow_pooled(groups):
    total, degrees = 0.0, 0
    for group in groups:
        if len(group) > 1:
            total += np.var(group, ddof=1) * (len(group) - 1)
            degrees += len(group) - 1
    return (math.sqrt(total / degrees), degrees) if degrees else (NAN, 0)


def test_the_pooled_deviation_is_that_of_the_slow_way(rng):
    for _ in range(50):
        sizes = rng.integers(0, 6, rng.integers(0, 5))
        groups = [rng.normal(rng.normal(), 0.3, n).tolist() for n in sizes]
        sd, degrees = slow_pooled(groups)
        found = pooled(groups)
        assert found.sd == pytest.approx(sd, nan_ok=True) and found.degrees == degrees


def test_the_floor_by_hand():
    # Squares 2 * 0.1^2 and 2 * 0.2^2 over 2 degrees: sqrt(0.05).
    found = pooled([[2.9, 3.1], [3.8, 4.2], [7.0]])
    assert found == Noise(pytest.approx(math.sqrt(0.05)), 2)
    # t(0.975, 2) = 4.3027; two single runs: sd * sqrt(2).
    assert found.least_difference(1, 1) == pytest.approx(4.30265 * math.sqrt(0.1), rel=1e-5)
    assert math.isnan(NONE.least_difference(1, 1)) and math.isnan(found.least_difference(0, 1))


def test_the_least_difference_is_that_of_scipy(rng):
    for degrees in (1, 2, 7, 40):
        for n, m in ((1, 1), (3, 3), (2, 5)):
            expected = stats.t.ppf(0.975, degrees) * 0.2 * math.sqrt(1 / n + 1 / m)
            assert Noise(0.2, degrees).least_difference(n, m) == pytest.approx(expected)


def test_equal_treatments_are_beyond_noise_as_rarely_as_it_says(rng):
    beyond = 0
    for draw in rng.normal(3.0, 0.1, (2000, 4, 2)):
        noise = pooled(draw.tolist())
        found = difference_of(seeds(draw[0]), seeds(draw[1]), (), noise)
        beyond += found.verdict == BEYOND
        assert found.rule == BY_FLOOR
    # Binomial(2000, 0.05): a standard deviation is 0.0049.
    assert beyond / 2000 == pytest.approx(0.05, abs=0.02)


# ---- paired differences


def test_pairs_are_by_key_in_order_and_no_others():
    assert paired({"2": 5.0, "0": 1.0, "9": 1.0}, {"0": 3.0, "2": 1.0, "7": 0.0}) == {
        "2": 4.0,
        "0": -2.0,
    }


def test_the_interval_of_a_paired_difference_is_that_of_scipy(rng):
    for n in (2, 3, 5, 12):
        a, b = rng.normal(3, 0.2, (2, n))
        found = difference_of(seeds(a), seeds(b), (), NONE)
        low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
        assert found.mean.mean == pytest.approx((low + high) / 2)
        assert found.mean.half_width == pytest.approx((high - low) / 2)
        assert dict(found.pairs) == pytest.approx(dict(seeds(a - b)))


def test_three_pairs_are_judged_by_their_interval_whatever_the_floor():
    a, b = [3.0, 3.5, 4.0], [2.9, 3.41, 3.89]  # seeds differ a lot, pairs by 0.1 throughout
    noise = pooled([a, b])
    found = difference_of(seeds(a), seeds(b), (), noise)
    assert (found.verdict, found.rule) == (BEYOND, BY_PAIRS)
    assert found.least > found.mean.mean > found.mean.half_width
    mixed = difference_of(seeds([3.0, 3.5, 4.0]), seeds([2.9, 3.6, 4.0]), (), noise)
    assert (mixed.verdict, mixed.rule) == (WITHIN, BY_PAIRS)


@pytest.mark.parametrize(
    "mine, noise, verdict, rule",
    [
        ([3.0], NONE, UNKNOWN, ""),
        ([3.0], Noise(0.01, 4), BEYOND, BY_FLOOR),
        ([3.0], Noise(0.2, 4), WITHIN, BY_FLOOR),
        ([3.0, 3.2], NONE, UNKNOWN, ""),
        ([3.0, 3.2], Noise(0.01, 4), BEYOND, BY_FLOOR),
        ([], Noise(0.01, 4), UNKNOWN, ""),
    ],
)
def test_fewer_pairs_are_judged_by_the_floor_if_there_is_one(mine, noise, verdict, rule):
    found = difference_of(seeds(mine), seeds([2.9, 3.1]), ("lonely",), noise)
    assert (found.verdict, found.rule, found.unpaired) == (verdict, rule, ("lonely",))
    assert found.mean.n == len(mine)


# ---- ratios


def test_a_mean_ratio_is_that_of_the_logarithms(rng):
    for n in (2, 3, 8):
        ratios = np.exp(rng.normal(0.1, 0.3, n))
        low, high = stats.ttest_1samp(np.log(ratios), 0).confidence_interval(0.95)
        found, inverse = ratio_of(ratios.tolist()), ratio_of((1 / ratios).tolist())
        assert found.mean == pytest.approx(stats.gmean(ratios))
        assert (found.low, found.high) == pytest.approx((math.exp(low), math.exp(high)))
        assert inverse.mean == pytest.approx(1 / found.mean)
        assert inverse.low == pytest.approx(1 / found.high)


def test_one_unknown_pair_makes_the_ratio_unknown():
    for bad in (NAN, 0.0, -1.0, math.inf):
        found = ratio_of([2.0, bad])
        assert found.n == 2 and math.isnan(found.mean) and math.isnan(found.low)
    assert ratio_of([]).n == 0 and math.isnan(ratio_of([]).mean)
    assert ratio_of([2.0]).mean == pytest.approx(2.0) and math.isnan(ratio_of([2.0]).low)
    assert ratio_of([1e-90, 1e90]).high == math.inf


# ---- the pinned law


def test_the_law_is_inverted_as_a_root_finder_does(rng):
    for _ in range(20):
        floor, exponent = rng.uniform(0, 2), rng.uniform(0.05, 0.5)
        flops, loss = 10 ** rng.uniform(12, 20), floor + rng.uniform(0.5, 3)
        target = floor + (loss - floor) * rng.uniform(0.8, 1.2)
        scale = (loss - floor) * flops**exponent  # A, through the point

        def above(log_flops, a=scale, e=exponent, gap=target - floor):
            return a * math.exp(-e * log_flops) - gap

        root = math.exp(optimize.brentq(above, 0, 100, xtol=1e-13))
        assert PowerLaw(floor, exponent).needed(flops, loss, target) == pytest.approx(root)


def test_the_published_example_of_effective_speedup():
    """Marin's d512: 3.5422 at 3.82e17 FLOPs; A is about 87.7 there."""
    law = PowerLaw(1.6, 0.0941)
    assert pytest.approx(87.7, abs=0.4) == (3.5422 - 1.6) * 3.82e17**0.0941
    needed = law.needed(3.82e17, 3.5422, 3.52)
    assert needed > 3.82e17
    assert 1.6 + (3.5422 - 1.6) * (needed / 3.82e17) ** -0.0941 == pytest.approx(3.52)


def test_losses_at_or_below_the_floor_have_no_compute():
    law = PowerLaw(1.6, 0.1)
    assert math.isnan(law.needed(1e18, 3.0, 1.6)) and math.isnan(law.needed(1e18, 1.5, 1.4))
    assert math.isnan(law.needed(1e18, 3.0, 1.6 + 1e-15)) and math.isnan(law.needed(NAN, 3, 2))


@pytest.mark.parametrize("floor, exponent", [(-1, 0.1), (NAN, 0.1), (1.6, 0), (1.6, NAN)])
def test_a_law_out_of_range_is_refused(floor, exponent):
    with pytest.raises(ConfigError, match=r"floor=|exponent="):
        PowerLaw(floor, exponent)


def test_the_bound_is_what_judged():
    noise = pooled([[1.0, 1.1], [2.0, 2.1]])
    few = difference_of({"0": 1.0, "1": 1.2}, {"0": 1.5, "1": 1.5}, (), noise)
    assert (few.rule, few.bound) == (BY_FLOOR, few.least) and few.bound < few.mean.half_width
    many = difference_of({"0": 1.0, "1": 1.2, "2": 1.1}, {"0": 1.5, "1": 1.5, "2": 1.4}, (), noise)
    assert (many.rule, many.bound) == (BY_PAIRS, many.mean.half_width)
    one = difference_of({"0": 1.0}, {"0": 1.5}, (), pooled([[1.0], [2.0]]))
    assert one.rule == "" and math.isnan(one.bound)
