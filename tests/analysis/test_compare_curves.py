"""Curves are read between evaluations and never beyond them; spikes and schedules as defined."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from run_factory import make_curve

from moejax.analysis.compare.curves import EARLIER, NOT_REACHED, first_reach, read_curve, value_at
from moejax.analysis.compare.schedule import Phase, phase_at, same_phase
from moejax.analysis.compare.spikes import spike_score
from moejax.analysis.runs import find_runs, load_runs

NAN = math.nan


def run_of(path):
    return load_runs(find_runs([path]))[0][0]


# ---- reading a curve


def slow_value(x, y, at):
    """The straight line over log x, by hand, point after point."""
    points = [(a, b) for a, b in zip(x, y, strict=True) if a > 0 and b == b and a == a]
    for a, b in points:
        if a == at:
            return b
    for (a, b), (c, d) in itertools.pairwise(points):
        if a < at < c:
            share = math.log(at / a) / math.log(c / a)
            return b + share * (d - b)
    return NAN


def test_values_are_those_of_the_slow_way(rng):
    for _ in range(200):
        n = int(rng.integers(1, 9))
        x = np.cumsum(rng.uniform(0.1, 5, n)) - rng.choice([0, 0.1])
        y = rng.normal(3, 1, n)
        y[rng.random(n) < 0.2] = NAN
        for at in (*x, *rng.uniform(0.01, x[-1] * 1.2, 5)):
            assert value_at(x, y, at) == pytest.approx(slow_value(x, y, at), nan_ok=True)


def test_a_value_by_hand():
    # Half-way from 100 to 400 in the logarithm is 200.
    assert value_at([100, 400], [4.0, 3.0], 200) == pytest.approx(3.5)
    assert value_at([100, 400], [4.0, 3.0], 400) == 3.0


@pytest.mark.parametrize("at", [0, -1, 99.999, 400.001, 1e9, NAN, math.inf])
def test_nothing_is_read_outside_of_the_measured_range(at):
    assert math.isnan(value_at([100, 400], [4.0, 3.0], at))


def test_an_evaluation_before_the_first_step_is_no_place_to_start_from():
    assert math.isnan(value_at([0, 100, 400], [9.0, 4.0, 3.0], 50))


# ---- reaching a loss


def slow_reach(x, y, target):
    """Tries x after x, from the first point to the last."""
    places = np.exp(np.linspace(math.log(x[0]), math.log(x[-1]), 1001))
    return next((at for at in places if slow_value(x, y, at) <= target), NAN)


def test_the_first_crossing_is_that_of_the_slow_way(rng):
    for _ in range(12):
        x = np.cumsum(rng.uniform(1, 5, 5))
        y = np.array([5, *rng.normal(3, 0.5, 4)])
        for target in rng.uniform(2, 4, 2):
            reach = first_reach(x, y, target)
            assert reach.x == pytest.approx(slow_reach(x, y, target), rel=4e-3, nan_ok=True)
            if math.isfinite(reach.x):
                assert value_at(x, y, reach.x) == pytest.approx(target)


def test_the_first_crossing_counts_although_the_curve_rises_again():
    assert first_reach([1, 2, 4, 8], [4.0, 3.0, 5.0, 2.0], 3.5).x == pytest.approx(math.sqrt(2))
    assert first_reach([1, 2, 4, 8], [4.0, 3.0, 5.0, 2.0], 3.0) == (2.0, "")


def test_what_is_not_reached_says_so():
    assert first_reach([1, 2], [4.0, 3.0], 2.9) == (pytest.approx(NAN, nan_ok=True), NOT_REACHED)
    assert first_reach([1, 2], [4.0, 3.0], 4.5).why == EARLIER
    assert first_reach([1, 2], [4.0, 3.0], 4.0) == (1.0, "")
    for nothing in ([], [NAN, NAN]):
        assert first_reach(nothing, nothing, 3.0).why == "not recorded"


def test_a_counter_that_does_not_grow_is_no_counter(tmp_path):
    path = make_curve(tmp_path, "a", [4.0, 3.0]) / "metrics.jsonl"
    rows = path.read_text().replace('"time/elapsed": 20.0', '"time/elapsed": 10.0')
    path.write_text(rows.replace('"compute/flops": 4000000000.0', '"compute/flops": 1e200'))
    curve = read_curve(run_of(path.parent))
    assert np.isnan(curve.seconds_N).all() and np.isnan(curve.flops_N).all()
    assert curve.tokens_N.tolist() == [1000, 2000] and curve.loss_N.tolist() == [4, 3]


# ---- schedules


def test_a_phase_is_the_fraction_of_the_planned_steps(tmp_path):
    run = run_of(make_curve(tmp_path, "a", [4, 3, 2], total_steps=60, rates=[0.5, 1.0, 1.0]))
    assert phase_at(run, 15) == Phase(0.25, False)  # warming up
    assert phase_at(run, 30) == Phase(0.5, True)
    falling = run_of(make_curve(tmp_path, "b", [4, 3, 2], rates=[1.0, 1.0, 0.5]))
    assert phase_at(falling, 20).at_peak and not phase_at(falling, 30).at_peak
    assert phase_at(falling, 30).fraction == 1.0


def test_a_rate_that_fell_and_rose_again_is_not_at_its_peak(tmp_path):
    run = run_of(make_curve(tmp_path, "a", [4, 3, 2], rates=[1.0, 0.1, 1.0]))
    assert not phase_at(run, 30).at_peak


@pytest.mark.parametrize(
    "a, b, same",
    [
        (Phase(1.0, False), Phase(0.995, False), True),
        (Phase(1.0, False), Phase(0.8, False), False),
        (Phase(1.0, False), Phase(0.8, True), False),
        (Phase(0.3, True), Phase(0.8, True), True),
        (Phase(NAN, False), Phase(1.0, False), False),
    ],
)
def test_phases_compare_at_one_fraction_or_before_any_decay(a, b, same):
    assert same_phase(a, b, 0.01) is same and same_phase(b, a, 0.01) is same


# ---- spikes


def slow_spikes(values, window, threshold):
    values = [v for v in values if math.isfinite(v)]
    judged = spikes = 0
    for i in range(window, len(values)):
        past = values[i - window : i]
        mean = sum(past) / window
        sd = math.sqrt(sum((v - mean) ** 2 for v in past) / window)
        judged += 1
        spikes += sd > 1e-10 and values[i] > mean + threshold * sd
    return spikes / judged if judged else NAN


def test_spikes_are_those_of_the_slow_way(rng):
    for n in (3, 40, 400):
        loss = rng.normal(3, 0.1, n) + 2 * (rng.random(n) < 0.03)
        loss[rng.random(n) < 0.02] = NAN
        for window, threshold in ((8, 2.0), (32, 6.0)):
            expected = slow_spikes(loss, window, threshold)
            assert spike_score(loss, window, threshold) == pytest.approx(expected, nan_ok=True)


def test_spikes_by_hand():
    calm = [3.0, 3.2] * 4
    assert spike_score([*calm, 3.8], window=8) == 1.0  # 7 standard deviations of 0.1 above 3.1
    assert spike_score([*calm, 3.6], window=8) == 0.0
    assert spike_score([*calm, 2.0], window=8) == 0.0  # a fall is no spike
    assert spike_score([0.1] * 9 + [5.0], window=8) == 0.0  # a past without spread
    assert math.isnan(spike_score(calm, window=8)) and math.isnan(spike_score([]))
    with pytest.raises(ValueError, match="window=1"):
        spike_score(calm, window=1)


def test_a_long_run_is_judged_in_pieces(rng):
    loss = rng.normal(3, 0.1, 5000)
    loss[[200, 4500]] = 9.0
    assert spike_score(loss) == pytest.approx(2 / (5000 - 128))
