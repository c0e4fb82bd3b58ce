"""Architectures side by side on a planted ladder, where N and D are proportional."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scaling_planted import FLOOR, KINDS, LADDER, ladder_runs

from moejax.analysis.scaling import (
    Chinchilla,
    Options,
    Power,
    Question,
    Shared,
    fit,
    from_runs,
    line_of,
    make_points,
    study,
)
from moejax.analysis.scaling.architectures import baseline_of, groups_of
from moejax.analysis.scaling.points import Dataset
from moejax.analysis.scaling.resampling import interval
from moejax.analysis.scaling.table import page
from moejax.config.knobs import ConfigError

POWER = Question(Power(), Options(replicates=100), by_group=True)
QUICK = dataclasses.replace(POWER, options=Options(replicates=20))


def planted(noise, seed=0):
    """The ladder as points: 4 kinds x 4 sizes x 2 seeds, C from 1e12 to 1e14."""
    rng = np.random.default_rng(seed)
    c = np.repeat(np.geomspace(1e12, 1e14, 4), 2)
    rows = []
    for i, kind in enumerate(KINDS):
        a, alpha = LADDER[kind]
        flops = c * (1 + 0.1 * i)
        cell = noise * np.repeat(rng.standard_normal(4), 2)
        error = 1 + cell + noise * rng.standard_normal(8)
        rows.append((flops, (FLOOR + a * flops**-alpha) * error))
    flops, loss = np.concatenate(rows, axis=1)
    return make_points(c=flops, loss=loss, group=np.repeat(KINDS, 8).tolist())


@pytest.fixture(scope="module")
def noisy():
    return study(Dataset(planted(0.002)), POWER)


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
    return ladder_runs(tmp_path_factory.mktemp("ladder") / "runs")


def test_without_noise_every_exponent_is_found_alone_and_together():
    answer = study(Dataset(planted(0.0)), QUICK)
    shared = answer.comparison.shared.values
    assert shared["L_inf"] == pytest.approx(FLOOR, rel=1e-6)
    for kind, (a, alpha) in LADDER.items():
        assert answer.parts[kind].fit.values["alpha"] == pytest.approx(alpha, rel=0.01)
        assert shared[f"alpha[{kind}]"] == pytest.approx(alpha, rel=0.01)
        assert shared[f"A[{kind}]"] == pytest.approx(a, rel=0.01)
    for one in answer.comparison.differences:
        expected = LADDER[one.group][1] - LADDER["dense"][1]
        assert one.estimate.value == pytest.approx(expected, abs=1e-4)
    for one in answer.comparison.leverage:
        a, alpha = LADDER["dense"]
        needed = ((one.loss - FLOOR) / a) ** (-1 / alpha)
        assert one.estimate.value == pytest.approx(needed / one.c, rel=1e-3)


def test_a_shared_floor_sees_what_free_floors_cannot(noisy):
    found = {(d.group, d.floor): d for d in noisy.comparison.differences}
    for group in ("top_p", "hetero_top_p"):
        assert found[group, "shared"].verdict == "above"
        assert found[group, "own"].verdict == "cannot tell"
    assert found["top_k", "shared"].verdict == "cannot tell"
    shared, own = found["top_p", "shared"].estimate, found["top_p", "own"].estimate
    assert shared.high - shared.low < 0.2 * (own.high - own.low)
    assert noisy.comparison.shared.freedom == 16 - 9
    assert [part.fit.freedom for part in noisy.parts.values()] == [1, 1, 1, 1]


@pytest.mark.slow
def test_intervals_of_differences_cover_95_percent():
    draws = 200
    options = Options(replicates=199)
    hits = dict.fromkeys(KINDS[1:], 0)
    for draw in range(draws):
        points = planted(0.002, seed=draw)
        law = Shared(base=Power(), groups=KINDS)
        shared = fit(law, points, dataclasses.replace(options, seed=draw), hold_out=False)
        for kind in hits:
            low, high = interval(shared.draws[f"alpha[{kind}]"] - shared.draws["alpha[dense]"])
            hits[kind] += low <= LADDER[kind][1] - LADDER["dense"][1] <= high
    slack = 3 * math.sqrt(0.95 * 0.05 / draws)
    for kind, count in hits.items():
        assert 0.95 - slack <= count / draws <= 0.95 + slack, (kind, count / draws)


def test_pinning_the_floor_moves_every_exponent_and_the_misfit_tells_where(noisy):
    pins = noisy.comparison.pins
    floors = [pin.floor for pin in pins]
    assert floors == sorted(floors) and floors[0] == 0
    for kind in KINDS:
        values = [pin.exponents["alpha"][kind] for pin in pins]
        assert values == sorted(values) and values[-1] > 1.5 * values[0]
    best = min(pins, key=lambda pin: pin.rmse)
    assert best.floor == pytest.approx(noisy.comparison.shared.values["L_inf"], rel=1e-9)
    assert max(pin.rmse for pin in pins) > 2 * best.rmse


def test_leverage_says_where_it_extrapolates(noisy):
    found = [one for one in noisy.comparison.leverage if one.floor == "shared"]
    assert {one.group for one in found} == set(KINDS) - {"dense"}
    assert any(one.inside for one in found) and not all(one.inside for one in found)
    largest = max(planted(0.0).in_group("dense").c_I)
    for one in found:
        # The baseline's data end at its largest C; beyond it the law is asked, not the data.
        assert one.inside == (1e12 <= one.c * one.estimate.value <= largest)


def test_bands_of_a_figure_hold_their_line(noisy):
    c = np.geomspace(1e12, 1e15, 7)
    for one, group in ((noisy.parts["top_p"].fit, ""), (noisy.comparison.shared, "top_p")):
        line, low, high = line_of(one, group, c)
        assert (low <= line).all() and (line <= high).all()
        assert (high - low)[-1] > (high - low)[2]
    assert groups_of(noisy.comparison.shared) == tuple(sorted(KINDS))


def test_a_pin_is_the_floor_of_all():
    answer = study(Dataset(planted(0.002)), dataclasses.replace(QUICK, law=Power(pinned=1.1)))
    assert answer.comparison.shared is None and not answer.comparison.pins
    assert {d.floor for d in answer.comparison.differences} == {"pinned"}
    for kind, part in answer.parts.items():
        assert part.fit.estimates["L_inf"].value == 1.1 and not part.fit.estimates["L_inf"].known
        assert part.fit.estimates["alpha"].value == pytest.approx(LADDER[kind][1], abs=0.01)


def test_the_baseline_is_dense_or_what_is_asked():
    points = planted(0.0)
    assert baseline_of(points) == "dense" and baseline_of(points, "top_k") == "top_k"
    assert baseline_of(points.take(points.c_I != 0).in_group("top_p")) == "top_p"
    with pytest.raises(ConfigError, match="did you mean 'top_k'"):
        baseline_of(points, "topk")


def test_groups_that_cannot_be_fitted_are_named_and_the_others_go_on():
    points = planted(0.001)
    keep = np.array([g != "top_p" or i % 8 < 4 for i, g in enumerate(points.group_I)])
    answer = study(Dataset(points.take(keep)), QUICK)
    assert "needs 3" in answer.parts["top_p"].refused and answer.parts["top_p"].fit is None
    assert "top_p" in groups_of(answer.comparison.shared)  # with the floor of all it takes two
    assert not answer.refused
    assert "refused   top_p: 2 values of C" in page(answer)


def test_ladder_directories_say_what_they_can_and_cannot_tell(ladder):
    dataset = from_runs([ladder], by="moe")
    refused = study(dataset, Question(Chinchilla(), Options(replicates=0), by_group=True))
    assert refused.refused.startswith("dense: N and D lie on one ray (D = 20 N")
    assert page(refused).splitlines()[-1].startswith("refused")
    assert all(part.fit is None for part in refused.parts.values())
    shown = page(refused)
    assert "cannot tell: A N^-alpha from B D^-beta" in shown
    assert "can tell: L_inf + A C^-alpha of each group" in shown
    answer = study(dataset, QUICK)
    shown = page(answer)
    assert not answer.refused and set(answer.parts) == set(KINDS)
    for words in ("one floor for all", "exponents with the floor pinned", "minus dense",
                  "efficiency leverage", "few treatments: 4 for 3 constants"):  # fmt: skip
        assert words in shown
    shared = answer.comparison.shared.estimates["L_inf"]
    assert shared.low < FLOOR < shared.high
