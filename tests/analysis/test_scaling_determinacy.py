"""Data that cannot answer are refused, doubtful ones are flagged, each in one line."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scaling_planted import HOFFMANN, chinchilla, mesh

from moejax.analysis.scaling import (
    Chinchilla,
    Clark,
    Granularity,
    Joint,
    Leverage,
    Options,
    Power,
    Question,
    fit,
    make_law,
    make_points,
    study,
)
from moejax.analysis.scaling.determinacy import decades, flags, identifies, ray, refusal
from moejax.analysis.scaling.fitting import distinct
from moejax.analysis.scaling.points import Dataset
from moejax.config.knobs import ConfigError

QUICK = Options(replicates=50)
SQUARE = {"n": [1, 2, 4] * 3, "d": [1] * 3 + [2] * 3 + [4] * 3}


def grid(width_n=2.0, width_d=2.0, count=4, noise=0.0, rng=None):
    n, d = mesh(
        np.geomspace(1e8, 1e8 * 10**width_n, count), 1e9 * np.geomspace(1, 10**width_d, count)
    )
    loss = chinchilla(n, d)
    if noise:
        loss = loss * (1 + noise * rng.standard_normal(n.size))
    return make_points(n=n, d=d, c=6 * n * d, loss=loss)


def on_a_ray(ratio=20.0, slope=1.0, width=0.0, sizes=6):
    n, off = mesh(np.geomspace(1e7, 1e9, sizes), np.linspace(-width / 2, width / 2, 3))
    d = ratio * n**slope * 1e7 ** (1 - slope) * 10**off
    return make_points(n=n, d=d, c=6 * n * d, loss=chinchilla(n, d))


def test_good_data_pass_without_a_word():
    points = grid()
    assert refusal(Chinchilla(), points) == ""
    assert flags(fit(Chinchilla(), points, QUICK)) == ()
    assert identifies(points) == ()


@pytest.mark.parametrize("slope", [1.0, 0.7, 1.4])
def test_one_ray_is_refused_and_told_whatever_its_slope(slope):
    points = on_a_ray(slope=slope)
    why = refusal(Chinchilla(), points)
    assert "one ray" in why and f"D ~ N^{slope:.2f}" in why and "--law=power" in why
    assert "\n" not in why
    told = " ".join(identifies(points))
    assert "cannot tell: A N^-alpha from B D^-beta" in told and "--law=power --by=group" in told
    assert f"along it C ~ N^{1 + slope:.2f}" in told
    assert refusal(Power(), points) == ""


def test_a_ray_is_found_inside_groups_that_differ_in_size():
    """Architectures differ in N at equal D; pooled, that looks like a second direction."""
    one, two = on_a_ray(), on_a_ray()
    n = np.concatenate([one.n_I, 2.2 * two.n_I])
    d = np.concatenate([one.d_I, two.d_I])
    both = make_points(n=n, d=d, c=6 * n * d, loss=chinchilla(n, d), group=["a"] * 18 + ["b"] * 18)
    assert "one ray" in refusal(Chinchilla(), both)
    pooled = dataclasses.replace(both, group_I=("",) * 36)
    assert ray(pooled).decades == pytest.approx(np.log10(2.2), rel=0.2)
    # Groups of one size each say nothing by themselves: all points are looked at.
    sizes = dataclasses.replace(one, group_I=tuple(f"{n:.3g}" for n in one.n_I))
    assert ray(sizes).decades == pytest.approx(0, abs=1e-9)
    # One size, measured a little differently by every seed, is no direction.
    jitter = dataclasses.replace(one, n_I=1e8 * np.linspace(1, 1.02, 18), d_I=one.d_I)
    assert ray(jitter) is None and identifies(jitter) == ()


def test_off_a_ray_by_a_little_is_flagged_and_by_more_is_not():
    narrow, wide = on_a_ray(width=0.2), on_a_ray(width=0.8)
    assert ray(narrow).decades == pytest.approx(0.2, rel=0.1)  # across the line, which leans
    assert ray(narrow).ratio == pytest.approx(20, rel=1e-6)
    for points, told in ((narrow, True), (wide, False)):
        assert refusal(Chinchilla(), points) == ""
        found = flags(fit(Chinchilla(), points, QUICK))
        assert any("nearly lie on one ray" in line for line in found) is told


def test_what_a_ray_refuses_is_truly_not_to_be_told():
    """Another law, with the two terms' roles exchanged, has the same losses on the ray."""
    points = on_a_ray(ratio=20.0)
    k = HOFFMANN
    swapped = {"E": k["E"], "A": k["B"] / 20 ** k["beta"], "alpha": k["beta"],
               "B": k["A"] * 20 ** k["alpha"], "beta": k["alpha"]}  # fmt: skip
    np.testing.assert_allclose(chinchilla(points.n_I, points.d_I, swapped), points.loss_I)
    off = chinchilla(points.n_I, 2000 * points.n_I, swapped)
    assert np.abs(off / chinchilla(points.n_I, 2000 * points.n_I) - 1).max() > 0.05


@pytest.mark.parametrize(
    "law, columns, why",
    [
        (Chinchilla(), {"n": [1e8, 1e9]}, "needs d= (training tokens)"),
        (Chinchilla(), {"n": [1e8] * 9, "d": np.geomspace(1e8, 1e9, 9)}, "1 value of N"),
        (Chinchilla(), {"n": [1e8, 1e9] * 4, "d": np.arange(1e8, 9e8, 1e8)}, "2 values of N"),
        (Power(), {"c": [1e18, 1e19]}, "the power law needs 3; nearest valid: pin the irreducible"),
        (Power(), {"n": [1e8, 1e9, 1e10]}, "needs c="),
        (Granularity(), {**SQUARE, "g": [1, 2, 1] * 3}, "2 values of G"),
        (Joint(), {**SQUARE, "e": [1, 8, 1] * 3}, "2 values of E"),
        (Clark(), {"n": [1.0, 2, 3, 4], "e": [1.0, 2, 4, 8]}, "4 treatments for 6 constants"),
        (Clark(), {"n": [1.0, 2], "e": [0.0, 2]}, "e=0: must be above 0"),
    ],
)  # fmt: skip
def test_too_little_is_refused_in_one_line(law, columns, why):
    points = make_points(**columns, loss=2.0)
    found = refusal(law, points)
    assert why in found and "\n" not in found and len(found) < 200
    assert (
        "loss" in refusal(law, dataclasses.replace(points, loss_I=points.loss_I * np.nan)) or found
    )


def test_a_law_without_its_response_is_refused():
    points = make_points(a=[0.1, 0.2], g=[1, 2], c=[1, 2])
    assert "needs leverage=" in refusal(Leverage(), points)


def test_a_pin_at_or_above_the_least_loss_is_refused():
    points = make_points(c=np.geomspace(1, 100, 5), loss=np.linspace(3, 2, 5))
    assert "not below the least loss 2" in refusal(Power(pinned=2.0), points)
    assert refusal(Power(pinned=1.9), points) == ""


def test_narrow_ranges_are_flagged_and_ill_conditioned(rng):
    points = grid(0.25, 0.25, noise=0.003, rng=rng)
    narrow = fit(Chinchilla(), points, Options(replicates=10), hold_out=False)
    found = " ".join(flags(narrow))
    assert "N spans 0.25 decades" in found and "D spans 0.25 decades" in found
    assert "ill-conditioned" in found and "not determined" in found
    assert narrow.condition > 10 * fit(Chinchilla(), grid(), Options(replicates=0)).condition


def test_few_treatments_are_flagged():
    c = np.repeat(np.geomspace(1e12, 1e14, 4), 2)
    rng = np.random.default_rng(0)
    loss = (1.2 + 60 * c**-0.14) * (1 + 0.002 * rng.standard_normal(8))
    found = " ".join(flags(fit(Power(), make_points(c=c, loss=loss), QUICK)))
    assert "few treatments: 4 for 3 constants" in found and "1 degree of freedom" in found
    exact = fit(Power(), make_points(c=c[:6], loss=loss[:6]), QUICK)
    assert "no intervals: the fit leaves no degree of freedom" in " ".join(flags(exact))
    assert not any(e.known for e in exact.estimates.values())


def test_a_falling_line_without_a_floor_is_told_apart_from_one_with():
    c = np.geomspace(1e12, 1e15, 6)
    found = " ".join(flags(fit(Power(), make_points(c=c, loss=60 * c**-0.1 - 0.3), QUICK)))
    assert "L_inf = 0: the data ask for no such term" in found


def test_equal_within_two_percent_is_one_value():
    assert distinct(np.array([1.0, 1.01, 1.02, 1.5])) == 2
    assert distinct(np.array([np.nan])) == 0
    assert decades(np.array([1.0, 1000.0])) == pytest.approx(3)


def test_a_study_of_refused_data_is_an_answer():
    answer = study(Dataset(on_a_ray()), Question(Chinchilla(), QUICK))
    assert "one ray" in answer.refused and answer.parts[""].fit is None
    assert any(line.startswith("can tell") for line in answer.remarks)


@pytest.mark.parametrize(
    "arguments, why",
    [
        (("chinchila",), "did you mean 'chinchilla'"),
        (("power", "q"), "must be c, n or d"),
        (("chinchilla", "n"), "--law=power"),
        (("clark", "c", 1.0), "no irreducible loss"),
        (("power", "c", -1.0), "must be in [0, 1e6)"),
        (("power", "c", float("nan")), "must be in [0, 1e6)"),
    ],
)
def test_wrong_questions_are_told(arguments, why):
    with pytest.raises(ConfigError) as error:
        make_law(*arguments)
    assert why in str(error.value)


@pytest.mark.parametrize(
    "options, why",
    [
        ({"method": "lasso"}, "--method=lasso: must be vp or huber"),
        ({"bootstrap": "x"}, "residuals or cells"),
        ({"cluster": "x"}, "cell or run"),
        ({"delta": 0.0}, "above 0"),
        ({"replicates": -1}, "[0, 100000]"),
        ({"seed": -1}, "at least 0"),
    ],
)
def test_wrong_options_are_told(options, why):
    with pytest.raises(ConfigError) as error:
        Options(**options)
    assert why in str(error.value)
