"""Chinchilla's other approaches and the compute-optimal allocation, on planted laws."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scaling_planted import HOFFMANN, chinchilla, isoflop_grid, mesh
from scipy import optimize

from moejax.analysis.scaling import (
    Chinchilla,
    Curve,
    Granularity,
    Joint,
    Options,
    allocate,
    envelope,
    fit,
    isoflop,
    make_points,
)
from moejax.analysis.scaling.allocation import compute_model, exponents, optimum
from moejax.analysis.scaling.isoflop import bias, budgets

BUDGETS = (1e18, 1e19, 1e20, 1e21)
EXACT = HOFFMANN["beta"] / (HOFFMANN["alpha"] + HOFFMANN["beta"])
SYMMETRIC = HOFFMANN | {"beta": 0.34}


def isoflop_points(k=HOFFMANN, **options):
    n, d, c = isoflop_grid(BUDGETS, k=k, **options)
    return make_points(n=n, d=d, c=c, loss=chinchilla(n, d, k))


def curves(k=HOFFMANN, sizes=12, steps=80):
    found = []
    for i, n in enumerate(np.geomspace(3e7, 3e10, sizes)):
        d = np.geomspace(0.3 * n, 500 * n, steps)
        found.append(Curve(f"run {i}", "", f"cell {i}", n, 6 * n * d, d, chinchilla(n, d, k)))
    return found


# ---- approach 2


def test_parabolas_are_exact_where_alpha_is_beta_and_sizes_are_centred():
    found = isoflop(isoflop_points(SYMMETRIC))
    assert len(found.valleys) == len(BUDGETS) and not found.why_not
    assert found.n_exponent.value == pytest.approx(0.5, abs=1e-9)
    assert found.d_exponent.value == pytest.approx(0.5, abs=1e-9)
    ratio = (SYMMETRIC["A"] / SYMMETRIC["B"]) ** (1 / 0.68)
    for valley in found.valleys:
        assert valley.n == pytest.approx(ratio * (valley.budget / 6) ** 0.5, rel=1e-9)
        assert valley.n * valley.d * 6 == pytest.approx(valley.budget, rel=1e-9)


def test_parabolas_recover_a_planted_exponent_within_one_percent():
    found = isoflop(isoflop_points(spread=0.3))
    assert found.n_exponent.value == pytest.approx(EXACT, rel=0.01)
    assert found.d_exponent.value == pytest.approx(1 - EXACT, rel=0.01)
    assert found.n_exponent.low <= found.n_exponent.value <= found.n_exponent.high


def test_the_bias_of_parabolas_is_in_the_level_and_grows_with_the_width():
    def off(spread, centre=1.0):
        valley = isoflop(isoflop_points(spread=spread, centre=centre)).valleys[0]
        n, _, c = isoflop_grid(BUDGETS[:1])
        best = optimize.minimize_scalar(
            lambda x: chinchilla(np.exp(x), c[0] / 6 / np.exp(x)),
            bounds=np.log([n.min(), n.max()]), method="bounded", options={"xatol": 1e-10},
        ).x  # fmt: skip
        return np.log(valley.n) - best

    assert abs(off(0.2)) < 0.01 < abs(off(0.6)) < abs(off(1.0))
    assert abs(off(0.6, centre=1 / 3)) > 2 * abs(off(0.6))


def test_the_measured_bias_is_that_of_the_exponent_on_the_fits_own_losses():
    # Off-centre more and more with the budget: this bends the exponent, not only the level.
    rows = [isoflop_grid([c], centre=10 ** (0.3 - 0.3 * i)) for i, c in enumerate(BUDGETS)]
    n, d, c = np.concatenate(rows, axis=1)
    loss = chinchilla(n, d)
    points = make_points(n=n, d=d, c=c, loss=loss)
    found = isoflop(points).n_exponent.value - EXACT
    assert found < -0.01
    noisy = dataclasses.replace(points, loss_I=loss * (1 + 0.02 * np.sin(np.arange(n.size))))
    assert isoflop(noisy).n_exponent.value != pytest.approx(isoflop(points).n_exponent.value)
    assert bias(noisy, loss, EXACT) == pytest.approx(found, abs=1e-12)


def test_budgets_are_told_apart_by_gaps():
    c = np.array([1e18, 3e18, 1.03e18, 0.98e18, 3.1e18, 1e19])
    assert [sorted(rows.tolist()) for rows in budgets(c)] == [[0, 2, 3], [1, 4], [5]]


def test_valleys_without_a_bottom_say_so():
    n, d, c = isoflop_grid([1e18, 1e19], centre=40.0)
    outside = isoflop(make_points(n=n, d=d, c=c, loss=chinchilla(n, d)))
    assert {v.why_not for v in outside.valleys} == {"the minimum lies outside of the sizes"}
    assert "it takes 2" in outside.why_not and np.isnan(outside.n_exponent.value)
    two = isoflop(make_points(n=n[:2], d=d[:2], c=c[:2], loss=[3.0, 3.1]))
    assert two.why_not == "no budget with runs of 3 sizes or more"
    hill = isoflop(make_points(n=n, d=d, c=c, loss=5 - chinchilla(n, d) / 10))
    assert {v.why_not for v in hill.valleys} == {"the loss has no minimum over N"}


# ---- approach 1


def test_the_envelope_recovers_a_planted_exponent_within_one_percent():
    found = envelope(curves(sizes=24, steps=200), replicates=0)
    assert found.n_exponent.value == pytest.approx(EXACT, rel=0.01)
    assert found.d_exponent.value == pytest.approx(1 - EXACT, rel=0.01)
    assert np.diff(found.n_G).min() >= 0  # larger and larger models win


def test_the_envelope_is_the_lowest_loss_and_knows_no_run_beyond_its_end():
    runs = curves()
    found = envelope(runs, replicates=20)
    for i in range(0, len(found.c_G), 150):
        c = found.c_G[i]
        inside = [r for r in runs if r.c_S[0] <= c <= r.c_S[-1]]
        least = min(np.interp(np.log(c), np.log(r.c_S), r.loss_S) for r in inside)
        assert found.loss_G[i] == pytest.approx(least, rel=1e-9)
    np.testing.assert_allclose(6 * found.n_G * found.d_G, found.c_G, rtol=1e-6)
    assert found.n_exponent.low <= found.n_exponent.value <= found.n_exponent.high


def test_an_envelope_of_few_sizes_is_refused():
    assert "it takes 3" in envelope(curves(sizes=2)).why_not
    assert envelope([]).why_not == "training curves of 0 sizes; it takes 3"
    assert "fewer than 3 sizes" in envelope(curves(sizes=4)).why_not
    flat = [dataclasses.replace(c, loss_S=c.loss_S * 0 + 1 + i) for i, c in enumerate(curves())]
    assert "fewer than 3 sizes" in envelope(flat).why_not
    # Each run ends at 20 tokens per parameter: where one ends the next takes over, uncrossed.
    ended = []
    for curve in curves():
        rows = curve.d_S <= 20 * curve.n
        parts = {f"{x}_S": getattr(curve, f"{x}_S")[rows] for x in ("c", "d", "loss")}
        ended.append(dataclasses.replace(curve, **parts))
    assert "fewer than 3 sizes" in envelope(ended).why_not


# ---- allocation


def planted_fit(c=None, **options):
    n, d = mesh(np.geomspace(1e7, 1e9, 4), np.geomspace(1e8, 1e10, 4))
    flops = 6 * n * d if c is None else c(n, d)
    points = make_points(n=n, d=d, c=flops, loss=chinchilla(n, d))
    return fit(Chinchilla(), points, Options(**{"replicates": 20} | options), hold_out=False)


def test_the_optimum_is_where_no_other_size_does_better():
    # FLOPs of small models: embeddings and head make C / D grow slower than N.
    one = planted_fit(c=lambda n, d: 40 * n**0.9 * d)
    found = allocate(one, [1e17, 1e19])
    assert found.compute.power == pytest.approx(0.9) and found.compute.factor == pytest.approx(40)
    for best in found.optima:
        here = optimize.minimize_scalar(
            lambda x, c=best.budget: chinchilla(np.exp(x), c / (40 * np.exp(0.9 * x))),
            bounds=(np.log(1e4), np.log(1e14)), method="bounded", options={"xatol": 1e-9},
        )  # fmt: skip
        assert best.n.value == pytest.approx(np.exp(here.x), rel=1e-4)
        assert best.loss.value == pytest.approx(here.fun, rel=1e-9)
        assert 40 * best.n.value**0.9 * best.d.value == pytest.approx(best.budget, rel=1e-9)
    slope = np.log(found.optima[1].n.value / found.optima[0].n.value) / np.log(100)
    assert found.n_exponent.value == pytest.approx(slope, rel=1e-9)
    assert found.d_exponent.value == pytest.approx(1 - 0.9 * slope, rel=1e-9)


BESIROGLU = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}


@pytest.mark.parametrize("k, n, d", [(HOFFMANN, 3.22e10, 2.98e12), (BESIROGLU, 7.22e10, 1.33e12)])
def test_published_constants_give_the_published_frontier(k, n, d):
    law = Chinchilla()
    one = law.slices(*law.search(k), np.nan, np.nan)
    compute = compute_model(make_points(n=[1e9, 1e10], d=1.0, c=[6e9, 6e10]))
    found_n, found_d = optimum(one, compute, 5.76e23)
    assert found_n[0] == pytest.approx(n, rel=0.005) and found_d[0] == pytest.approx(d, rel=0.005)
    a, b = exponents(one, compute)
    assert a[0] == pytest.approx(k["beta"] / (k["alpha"] + k["beta"]))
    assert a[0] + b[0] == pytest.approx(1)


def test_default_budgets_and_what_lies_beyond_the_data():
    found = allocate(planted_fit())
    assert [best.beyond for best in found.optima][1:] == pytest.approx([1, 10, 100])
    assert found.compute.worst < 1e-12 and found.compute.power == pytest.approx(1)
    assert found.n_exponent.value == pytest.approx(EXACT, rel=1e-6)
    assert found.n_exponent.known


def test_deviations_from_a_power_of_n_are_told():
    model = compute_model(make_points(n=[1e6, 1e7, 1e8], d=1.0, c=[6.6e6, 6e7, 6e8]))
    assert 0.02 < model.worst < 0.1
    assert compute_model(make_points(n=1e6, d=[1.0, 2.0], c=[5e6, 1e7])).power == 1


def test_laws_with_more_variables_are_cut_at_their_values():
    n, d = mesh(np.geomspace(1e8, 1e10, 3), np.geomspace(1e9, 1e11, 3))
    k = {"c": 0.47, "a": 18.1, "g": 2.1, "b": 30.8, "alpha": 0.115, "beta": 0.147, "gamma": 0.58}
    law = Granularity()
    cut = law.slices(*law.search(k), np.nan, 4.0)
    direct = law.predict(*law.search(k), make_points(n=n, d=d, g=4.0))[0]
    np.testing.assert_allclose(cut.loss(n, d), direct, rtol=1e-12)
    joint = Joint()
    k = {"c": 1.6, "a": 40.0, "b": 60.0, "alpha": -0.25, "beta": -0.27, "gamma": 0.006,
         "zeta": -0.008, "delta": -0.15, "omega": 0.08, "E_start": 1.8, "E_max": 60.0}  # fmt: skip
    cut = joint.slices(*joint.search(k), 8.0, np.nan)
    direct = joint.predict(*joint.search(k), make_points(n=n, d=d, e=8.0))[0]
    np.testing.assert_allclose(cut.loss(n, d), direct, rtol=1e-12)
