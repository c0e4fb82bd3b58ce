"""Compute-optimal N and D: the least loss that a budget of FLOPs buys, with intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from moejax.analysis.scaling.descent import Floats
from moejax.analysis.scaling.fitting import Estimate, Fit, distinct
from moejax.analysis.scaling.laws import Slice
from moejax.analysis.scaling.points import Points
from moejax.analysis.scaling.resampling import interval


@dataclasses.dataclass(frozen=True)
class ComputeModel:
    """Training FLOPs per token as the data has them: C / D = factor * N^power.

    `worst` is the largest relative deviation of a point from it. 6 N exactly where C is 6 N D;
    counted FLOPs have embeddings, attention and the head in them as well.
    """

    factor: float
    power: float
    worst: float

    def flops(self, n: Floats, d: Floats) -> Floats:
        """Training FLOPs of `d` tokens at `n` parameters."""
        return np.asarray(self.factor * n**self.power * d)


@dataclasses.dataclass(frozen=True)
class Optimum:
    """The best use of `budget` FLOPs, and how far the budget lies beyond the largest of the data.

    `beyond` is budget over the largest C of the data: 1 or less is interpolation.
    """

    budget: float
    n: Estimate
    d: Estimate
    loss: Estimate
    beyond: float


@dataclasses.dataclass(frozen=True)
class Allocation:
    """N* ~ C^n_exponent and D* ~ C^d_exponent, the constants' consequence, at `e` and `g`."""

    compute: ComputeModel
    e: float
    g: float
    n_exponent: Estimate
    d_exponent: Estimate
    optima: tuple[Optimum, ...]


def compute_model(points: Points) -> ComputeModel:
    """Least squares of ln(C / D) on ln N; power 1 where there is one N only."""
    per_token_I = np.log(points.c_I / points.d_I)
    n_I = np.log(points.n_I)
    if distinct(points.n_I) < 2:
        power = 1.0
    else:
        centred_I = n_I - n_I.mean()
        power = float(centred_I @ per_token_I / (centred_I @ centred_I))
    level = float((per_token_I - power * n_I).mean())
    worst = float(np.abs(np.expm1(per_token_I - power * n_I - level)).max())
    return ComputeModel(float(np.exp(level)), power, worst)


def exponents(law: Slice, compute: ComputeModel) -> tuple[Floats, Floats]:
    """Exponents of C in N* and D* `[R]`: beta / (alpha + m beta), where C = k N^m D."""
    n_R = law.beta_R / (law.alpha_R + compute.power * law.beta_R)
    return n_R, 1.0 - compute.power * n_R


def optimum(law: Slice, compute: ComputeModel, budget: float) -> tuple[Floats, Floats]:
    """N* and D* `[R]` where alpha A N^-alpha = m beta B D^-beta on C = k N^m D.

    With k = 6 and m = 1 these are G (C / 6)^(beta / (alpha + beta)) and its complement (Hoffmann et
    al. 2022, eq. 4). NaN where A or B is 0: then one of the two should be as large as possible.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio_R = law.alpha_R * law.a_R / (compute.power * law.beta_R * law.b_R)
        log_R = np.log(ratio_R) + law.beta_R * np.log(budget / compute.factor)
        n_R = np.exp(log_R / (law.alpha_R + compute.power * law.beta_R))
        n_R = np.where(np.isfinite(log_R), n_R, np.nan)
        return n_R, budget / compute.factor * n_R**-compute.power


def allocate(
    fit: Fit, budgets: Sequence[float] = (), e: float = np.nan, g: float = np.nan
) -> Allocation | None:
    """The compute-optimal N and D of a fitted law; None for a law without N and D.

    Args:
      fit: of a law with slices: chinchilla, granularity, joint.
      budgets: FLOPs; by default the least and largest C of the data and 10, 100 times the latter.
      e: number of experts at which to allocate, where the law reads it (default: the data's most).
      g: granularity, likewise.
    """
    points = fit.points
    if not (points.has("c") and points.has("d")):
        return None
    e = float(points.e_I.max()) if np.isnan(e) and "e" in fit.law.needs else e
    g = float(points.g_I.max()) if np.isnan(g) and "g" in fit.law.needs else g
    here = fit.law.slices(fit.coefficient_Q[None], fit.exponent_P[None], e, g)
    if here is None:
        return None
    draws = fit.law.slices(fit.coefficient_RQ, fit.exponent_RP, e, g)
    assert draws is not None
    compute = compute_model(_at(points, fit, e, g))
    largest = float(points.c_I.max())
    budgets = budgets or (float(points.c_I.min()), largest, 10 * largest, 100 * largest)
    a, b = exponents(here, compute), exponents(draws, compute)
    optima = []
    for budget in budgets:
        n, d = optimum(here, compute, budget)
        n_R, d_R = optimum(draws, compute, budget)
        loss = Estimate(float(here.loss(n, d)[0]), *interval(draws.loss(n_R, d_R)))
        optima.append(
            Optimum(
                budget,
                Estimate(float(n[0]), *interval(n_R)),
                Estimate(float(d[0]), *interval(d_R)),
                loss,
                budget / largest,
            )
        )
    return Allocation(
        compute,
        e,
        g,
        Estimate(float(a[0][0]), *interval(b[0])),
        Estimate(float(a[1][0]), *interval(b[1])),
        tuple(optima),
    )


def _at(points: Points, fit: Fit, e: float, g: float) -> Points:
    """The points whose FLOPs per token belong to `e` experts and granularity `g`, if there are."""
    keep_I = np.ones(len(points), bool)
    for name, value in (("e", e), ("g", g)):
        if name in fit.law.needs:
            keep_I &= np.abs(np.log(points.column(name) / value)) < 0.02
    return points.take(keep_I) if keep_I.any() else points
