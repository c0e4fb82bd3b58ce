"""Fits one law to points: many starts, conditioning, bootstrap, and the largest held out."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

from moejax.analysis.scaling import resampling
from moejax.analysis.scaling.descent import Floats, Ints
from moejax.analysis.scaling.laws import Additive, Law
from moejax.analysis.scaling.points import Points
from moejax.analysis.scaling.search import (
    Options,
    huber,
    law_coefficients,
    least_squares,
    search,
)
from moejax.analysis.scaling.separable import Solved

REPLICATE_TOLERANCE = 1e-7
"""Of the exponents of replicates, whose spread is thousands of times that."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; NaN bounds where there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return math.isfinite(self.low) or math.isfinite(self.high)


@dataclasses.dataclass(frozen=True, eq=False)
class Held:
    """Prediction of the largest runs by a fit to all others.

    `error_I` is predicted over measured minus 1, for the runs of `run_I`; empty with a reason in
    `why_not` where the rest cannot be fitted.
    """

    run_I: tuple[str, ...] = ()
    predicted_I: Floats = dataclasses.field(default_factory=lambda: np.zeros(0))
    error_I: Floats = dataclasses.field(default_factory=lambda: np.zeros(0))
    column: str = ""
    why_not: str = ""

    @property
    def worst(self) -> float:
        """The error of largest size, with its sign; NaN if there is none."""
        return float(self.error_I[np.abs(self.error_I).argmax()]) if self.error_I.size else math.nan


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
    """A fitted law.

    `residual_I` is ln measured minus ln predicted. `objective`: half the sum of squared relative
    errors (vp) or the sum of Huber's loss (huber). `condition` is that of the derivatives by all
    parameters, columns scaled to length 1; `condition_searched` that of what the method searches.
    `freedom`: clusters minus parameters in use. `coefficient_RQ`, `exponent_RP`: the bootstrap.
    """

    law: Law
    options: Options
    points: Points
    coefficient_Q: Floats
    exponent_P: Floats
    predicted_I: Floats
    residual_I: Floats
    objective: float
    starts: int
    reached: int
    condition: float
    condition_searched: float
    clusters: int
    rank: int
    coefficient_RQ: Floats
    exponent_RP: Floats
    unusable: int
    why_no_interval: str
    held: Held

    @property
    def freedom(self) -> int:
        """Degrees of freedom left for estimating the error."""
        return self.clusters - self.rank

    @property
    def rmse(self) -> float:
        """Root mean square of `residual_I`: about the relative error of the loss."""
        return float(np.sqrt(np.mean(self.residual_I**2)))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the constants."""
        return tuple(self.values)

    @functools.cached_property
    def values(self) -> dict[str, float]:
        """The constants as published."""
        found = self.law.constants(self.coefficient_Q[None], self.exponent_P[None])
        return {name: float(value[0]) for name, value in found.items()}

    @functools.cached_property
    def draws(self) -> dict[str, Floats]:
        """The bootstrap's constants, `[R]` each."""
        return self.law.constants(self.coefficient_RQ, self.exponent_RP)

    @functools.cached_property
    def estimates(self) -> dict[str, Estimate]:
        """The constants with their intervals."""
        found = {
            name: Estimate(value, *resampling.interval(self.draws[name]))
            for name, value in self.values.items()
        }
        if isinstance(self.law, Additive) and self.law.pinned is not None:
            found[self.law.every_coefficient[0]] = Estimate(self.law.pinned)
        return found

    def predict(self, points: Points) -> tuple[Floats, Floats]:
        """The response at the points' numbers `[I]`, and for each bootstrap replicate `[R, I]`."""
        with np.errstate(over="ignore", invalid="ignore"):
            here = self.law.predict(self.coefficient_Q[None], self.exponent_P[None], points)[0]
            return here, self.law.predict(self.coefficient_RQ, self.exponent_RP, points)


def fit(law: Law, points: Points, options: Options, *, hold_out: bool = True) -> Fit:
    """Fits `law` and says how sure it is. The data must have passed `determinacy.refusal`.

    Raises:
      ConfigError: the law has no Huber fit.
    """
    best, starts, reached = search(law, points, options)
    target_I, made = law.target(points), law.design(points)(best.exponent_RP)
    fitted_I = made.value(best.coefficient_RQ)[0]
    scale_I = law.scale(fitted_I)
    jacobian_IQ = made.phi_RIQ[0] * scale_I[:, None]
    change_IP = made.change(best.coefficient_RQ)[0] * scale_I[:, None]
    used_Q = best.coefficient_RQ[0] != 0
    inside = np.linalg.qr(jacobian_IQ[:, used_Q])[0]
    reduced_IP = change_IP - inside @ (inside.T @ change_IP)
    full = np.concatenate([jacobian_IQ[:, used_Q], change_IP], 1)
    condition, basis_IP = _condition(full)
    cell_I = points.cell_index() if options.cluster == "cell" else np.arange(len(points))
    clusters = int(cell_I.max()) + 1
    work = _Work(law, points, options, best, fitted_I, scale_I, target_I)
    replicates, why_not = work.replicates(basis_IP, cell_I)
    draws = work.refit(replicates) if replicates is not None else None
    predicted_I = law.untarget(fitted_I)
    columns, exponents = len(law.coefficients), len(law.exponents)
    return Fit(
        law=law,
        options=options,
        points=points,
        coefficient_Q=law_coefficients(best)[0],
        exponent_P=best.exponent_RP[0],
        predicted_I=predicted_I,
        residual_I=np.log(points.column(law.response)) - np.log(predicted_I),
        objective=float(best.value_R[0]),
        starts=starts,
        reached=reached,
        condition=condition,
        condition_searched=(_condition(reduced_IP)[0] if options.method == "vp" else condition),
        clusters=clusters,
        rank=basis_IP.shape[1],
        coefficient_RQ=np.zeros((0, columns)) if draws is None else law_coefficients(draws),
        exponent_RP=np.zeros((0, exponents)) if draws is None else draws.exponent_RP,
        unusable=0 if replicates is None else replicates.unusable,
        why_no_interval=why_not,
        held=_held(law, points, options) if hold_out else Held(why_not="not asked for"),
    )


def _condition(jacobian_IP: Floats) -> tuple[float, Floats]:
    """Condition number with columns of length 1, and a basis of what they span.

    Columns that are 0 belong to parameters that do not matter here, and do not count.
    """
    length_P = np.linalg.norm(jacobian_IP, axis=0)
    live = length_P > 1e-12 * length_P.max(initial=1e-300)
    basis, size, _ = np.linalg.svd(jacobian_IP[:, live] / length_P[live], full_matrices=False)
    if not size.size:
        return math.nan, basis
    kept = size > 1e-10 * size[0]
    short = jacobian_IP.shape[0] < int(live.sum()) or not kept.all()
    return (math.inf if short else float(size[0] / size[-1])), basis[:, kept]


@dataclasses.dataclass(frozen=True, eq=False)
class _Work:
    """A finished fit and what its replicates need."""

    law: Law
    points: Points
    options: Options
    best: Solved
    fitted_I: Floats
    scale_I: Floats
    target_I: Floats

    def replicates(
        self, basis_IP: Floats, cell_I: Ints
    ) -> tuple[resampling.Replicates | None, str]:
        """New targets (for huber: their ln) and weights, or why there are none."""
        options = self.options
        if not options.replicates:
            return None, "not asked for"
        rng = np.random.default_rng([options.seed, len(self.points)])
        fitted_I, target_I, unit_I = self.fitted_I, self.target_I, 1 / self.scale_I
        if options.method == "huber":
            fitted_I = np.log(self.law.untarget(fitted_I))
            target_I = np.log(self.law.untarget(target_I))
            unit_I = np.ones_like(fitted_I)
        try:
            if options.bootstrap == "cells":
                needed = basis_IP.shape[1]
                made = resampling.cell_replicates(target_I, cell_I, needed, options.replicates, rng)
            else:
                residual_I = (target_I - fitted_I) / unit_I
                made = resampling.residual_replicates(
                    fitted_I, residual_I, unit_I, basis_IP, cell_I, options.replicates, rng
                )
        except ValueError as error:
            return None, str(error)
        return made, ""

    def refit(self, made: resampling.Replicates) -> Solved:
        """Fits every replicate, from the optimum of the data themselves."""
        count = len(made.target_RI)
        begin = Solved(
            *(np.repeat(getattr(self.best, f.name), count, 0) for f in dataclasses.fields(Solved))
        )
        if self.options.method == "huber":
            return huber(self.law, self.points, self.options, made.target_RI, begin, made.weight_RI)
        scale_RI = self.scale_I * np.sqrt(made.weight_RI)
        return least_squares(
            self.law, self.points, made.target_RI, scale_RI, begin.exponent_RP, REPLICATE_TOLERANCE
        )


def _held(law: Law, points: Points, options: Options) -> Held:
    """Leaves the largest runs out: those of most compute, else of the largest first column."""
    column = next((name for name in ("c", *law.needs) if points.has(name)), next(iter(law.needs)))
    size_I = points.column(column)
    largest_I = size_I >= size_I.max() / 1.05
    rest = points.take(~largest_I)
    too_few = len(rest.cells) < law.parameters
    few_values = any(distinct(rest.column(name)) < least for name, least in law.needs.items())
    if too_few or few_values:
        return Held(why_not=f"without the largest {column.upper()} the law cannot be fitted")
    best, _, _ = search(law, rest, options)
    out = points.take(largest_I)
    predicted_I = law.predict(law_coefficients(best), best.exponent_RP, out)[0]
    return Held(out.run_I, predicted_I, predicted_I / out.column(law.response) - 1, column)


def distinct(values: Floats, tolerance: float = 0.02) -> int:
    """How many different values there are, those within 2 % of their neighbour being one."""
    ordered = np.sort(values[np.isfinite(values)])
    if not ordered.size:
        return 0
    return 1 + int((ordered[1:] > ordered[:-1] * (1 + tolerance)).sum())
