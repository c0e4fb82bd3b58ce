"""The searches find what SciPy and brute force find: non-negative least squares, Huber, bounds."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scaling_planted import HOFFMANN, chinchilla, mesh
from scipy import optimize

from moejax.analysis.scaling import Chinchilla, Options, Power, fit, make_points
from moejax.analysis.scaling.descent import Local, descend
from moejax.analysis.scaling.huber import huber
from moejax.analysis.scaling.separable import project

QUICK = Options(replicates=0)


def noisy(rng, noise=0.01):
    n, d = mesh(np.geomspace(1e7, 1e9, 4), np.geomspace(2e8, 1e10, 4))
    loss = chinchilla(n, d) * np.exp(noise * rng.standard_normal(n.size))
    return make_points(n=n, d=d, c=6 * n * d, loss=loss)


@pytest.mark.parametrize("columns", [1, 2, 3, 4])
def test_projection_is_scipys_nonnegative_least_squares(columns, rng):
    phi = rng.standard_normal((40, 9, columns))
    target = rng.standard_normal((40, 9))
    found = project(phi, target, nonnegative=True)
    zeros = 0
    for r in range(40):
        expected, distance = optimize.nnls(phi[r], target[r])
        np.testing.assert_allclose(found.coefficient_RQ[r], expected, atol=1e-10)
        np.testing.assert_allclose(np.linalg.norm(found.residual_RI[r]), distance, rtol=1e-10)
        zeros += int((expected == 0).any())
    assert zeros > 5  # the constraint was at work


def test_projection_without_constraint_is_least_squares(rng):
    phi, target = rng.standard_normal((5, 8, 3)), rng.standard_normal((5, 8))
    found = project(phi, target, nonnegative=False)
    for r in range(5):
        expected = np.linalg.lstsq(phi[r], target[r])[0]
        np.testing.assert_allclose(found.coefficient_RQ[r], expected, atol=1e-12)


def test_a_column_that_repeats_another_gets_nothing(rng):
    phi = rng.random((1, 6, 2))
    phi = np.concatenate([phi, phi[:, :, :1]], 2)
    found = project(phi, rng.random((1, 6)), nonnegative=False)
    assert np.isfinite(found.coefficient_RQ).all() and (found.coefficient_RQ == 0).sum() == 1


def test_descent_stops_at_bounds_and_elsewhere_at_the_minimum(rng):
    centre = rng.uniform(-2, 2, (30, 3))

    def bowl(at, rows):
        off = at - centre[rows]
        curve = np.broadcast_to(np.diag([2.0, 20.0, 200.0]), (len(at), 3, 3))
        return Local((off**2 * [1, 10, 100]).sum(1), 2 * off * [1, 10, 100], curve, curve)

    at, value = descend(bowl, np.zeros((30, 3)), np.full(3, -1.0), np.full(3, 1.0))
    expected = np.clip(centre, -1, 1)
    np.testing.assert_allclose(at, expected, atol=1e-6)
    np.testing.assert_allclose(value, ((expected - centre) ** 2 * [1, 10, 100]).sum(1), atol=1e-9)


def test_variable_projection_is_scipys_least_squares_of_relative_errors(rng):
    points = noisy(rng)
    found = fit(Chinchilla(), points, QUICK, hold_out=False)

    def residual(x):
        k = dict(zip(HOFFMANN, [x[0], *np.exp(x[1:3]), *x[3:]], strict=True))
        return (chinchilla(points.n_I, points.d_I, k) - points.loss_I) / found.predicted_I

    start = [1.5, 6.0, 6.0, 0.3, 0.3]
    expected = optimize.least_squares(residual, start, xtol=1e-15, ftol=1e-15, gtol=1e-15)
    mine = [found.values[name] for name in HOFFMANN]
    np.testing.assert_allclose(mine[0], expected.x[0], rtol=1e-5)
    np.testing.assert_allclose(mine[3:], expected.x[3:], rtol=1e-5)
    # Errors are relative to the loss as fitted one pass earlier, which is the last one's to 1e-6.
    np.testing.assert_allclose(found.objective, expected.cost, rtol=1e-4)
    np.testing.assert_allclose(found.residual_I, np.log(points.loss_I / found.predicted_I))
    assert found.reached == found.starts == 64


@pytest.mark.parametrize("delta", [1e-3, 0.1])
def test_huber_is_scipys_sum_of_hubers_loss_on_ln_loss(delta, rng):
    points = noisy(rng)
    options = Options(method="huber", delta=delta, replicates=0)
    found = fit(Chinchilla(), points, options, hold_out=False)
    log_n, log_d, log_l = (np.log(x) for x in (points.n_I, points.d_I, points.loss_I))

    def objective(x):
        e, a, b, alpha, beta = x
        terms = np.stack([np.full_like(log_n, e), a - alpha * log_n, b - beta * log_d])
        r = np.logaddexp.reduce(terms, axis=0) - log_l
        return np.where(abs(r) <= delta, r**2 / 2, delta * (abs(r) - delta / 2)).sum()

    k = found.values
    mine = [np.log(k["E"]), np.log(k["A"]), np.log(k["B"]), k["alpha"], k["beta"]]
    np.testing.assert_allclose(found.objective, objective(mine), rtol=1e-9)  # the sum, not the mean
    starts = [0.5, 5, 5, 0.3, 0.3], [0.0, 10, 10, 0.5, 0.5]
    best = min(optimize.minimize(objective, start, method="BFGS").fun for start in starts)
    assert found.objective <= best * (1 + 1e-6)


def test_hubers_loss_joins_smoothly():
    assert huber(np.array([0.5, 1.0, 3.0]), 1.0).tolist() == [0.125, 0.5, 2.5]
    assert huber(np.array([-3.0]), 1.0).tolist() == [2.5]


def test_one_outlier_moves_least_squares_and_not_huber(rng):
    n, d = mesh(np.geomspace(1e7, 1e9, 4), np.geomspace(2e8, 1e10, 4))
    loss = chinchilla(n, d)
    loss[7] *= 1.3
    points = make_points(n=n, d=d, loss=loss)
    robust = fit(Chinchilla(), points, Options(method="huber", replicates=0), hold_out=False)
    square = fit(Chinchilla(), points, QUICK, hold_out=False)
    assert abs(robust.values["alpha"] - 0.34) < 0.002 < abs(square.values["alpha"] - 0.34)


def test_terms_that_the_data_do_not_want_are_zero_and_named():
    # The loss rises with D: no beta can say so, and B must not become negative.
    n, d = mesh(np.geomspace(1e7, 1e9, 4), np.geomspace(2e8, 1e10, 4))
    points = make_points(n=n, d=d, loss=2 + 40 * n**-0.3 + 1e-11 * d)
    found = fit(Chinchilla(), points, QUICK, hold_out=False)
    assert found.values["B"] == 0 and found.values["A"] > 0
    assert found.rank == 3


def test_conditioning_tells_the_two_searches_apart():
    n, d = mesh(np.geomspace(1e7, 1e9, 5), np.geomspace(1e8, 1e10, 5))
    points = make_points(n=n, d=d, loss=chinchilla(n, d))
    found = fit(Chinchilla(), points, QUICK, hold_out=False)
    k = found.values
    columns = (
        np.stack(
            [
                np.ones(25),
                n ** -k["alpha"],
                d ** -k["beta"],
                n ** -k["alpha"] * np.log(n),
                d ** -k["beta"] * np.log(d),
            ],
            1,
        )
        / chinchilla(n, d)[:, None]
    )
    unit = columns / np.linalg.norm(columns, axis=0)
    np.testing.assert_allclose(found.condition, np.linalg.cond(unit), rtol=1e-4)
    assert found.condition > 50 > 3 > found.condition_searched


def test_the_fit_does_not_depend_on_units_or_on_the_order_of_rows(rng):
    points = noisy(rng)
    order = rng.permutation(len(points))
    base = fit(Chinchilla(), points, QUICK, hold_out=False).values
    shuffled = fit(Chinchilla(), points.take(order), QUICK, hold_out=False).values
    scaled = dataclasses.replace(points, n_I=points.n_I / 1e6, d_I=points.d_I / 1e9)
    other = fit(Chinchilla(), scaled, QUICK, hold_out=False).values
    for name in ("E", "alpha", "beta"):
        assert shuffled[name] == pytest.approx(base[name], rel=1e-7)
        assert other[name] == pytest.approx(base[name], rel=1e-7)
    assert other["A"] == pytest.approx(base["A"] * 1e6 ** -base["alpha"], rel=1e-6)


def test_a_pinned_constant_stays_where_it_is(rng):
    c = np.geomspace(1e12, 1e15, 6)
    points = make_points(c=c, loss=1.3 + 60 * c**-0.14)
    for method in ("vp", "huber"):
        found = fit(Power(pinned=1.3), points, Options(method=method, replicates=0))
        assert found.values["L_inf"] == 1.3
        assert found.values["alpha"] == pytest.approx(0.14, rel=1e-6)
        off = fit(Power(pinned=0.0), points, Options(method=method, replicates=0))
        slope = np.polyfit(np.log(c), np.log(points.loss_I), 1)[0]
        assert off.values["alpha"] == pytest.approx(-slope, rel=0.03)
