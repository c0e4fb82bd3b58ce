"""What data can and cannot tell: refusals before a fit, flags after it, one line each."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from moejax.analysis import text
from moejax.analysis.scaling.fitting import Fit, distinct
from moejax.analysis.scaling.laws import Additive, Law
from moejax.analysis.scaling.points import COLUMNS, Points

RAY_DECADES = 0.1
ONE_VALUE_DECADES = 0.03
"""A measured N differs between seeds: by less than this it is one N."""
NARROW_DECADES = 0.5
FEW_CELLS = 5
ILL_CONDITIONED = 1500.0
SCALES = ("n", "d", "c")


@dataclasses.dataclass(frozen=True)
class Ray:
    """How far N and D leave their common line ln D = slope ln N + const.

    `decades` is the full width of log10 D around the line, `length` the extent along it; `ratio`
    the geometric mean of D / N.
    """

    slope: float
    decades: float
    length: float
    ratio: float


def ray(points: Points) -> Ray | None:
    """The line through ln N and ln D that the data leave furthest, looked at in each group alone.

    Groups differ in N at equal D because their architectures do; that tells nothing about N. None
    where no group has several N and several D (then all points are taken together), or none has
    both columns.
    """
    if not (points.has("n") and points.has("d")):
        return None
    found = [line for g in points.groups if (line := _ray(points.in_group(g))) is not None]
    if not found:
        return _ray(points)
    return max(found, key=lambda line: line.decades)


def _ray(points: Points) -> Ray | None:
    n_I, d_I = np.log10(points.n_I), np.log10(points.d_I)
    if min(np.ptp(n_I), np.ptp(d_I)) < ONE_VALUE_DECADES:
        return None
    centred = np.stack([n_I - n_I.mean(), d_I - d_I.mean()], 1)
    along = np.linalg.svd(centred, full_matrices=False)[2][0]
    # The distance from the line, as a factor in D at equal N where the slope is 1.
    off_I = (centred[:, 0] * along[1] - centred[:, 1] * along[0]) * math.sqrt(2)
    slope = float(along[1] / along[0]) if along[0] else math.inf
    length = float(np.ptp(centred @ along))
    return Ray(slope, float(np.ptp(off_I)), length, float(10 ** (d_I - n_I).mean()))


def decades(values: np.ndarray) -> float:
    """log10 of largest over smallest."""
    return float(np.ptp(np.log10(values))) if values.size else 0.0


def refusal(law: Law, points: Points) -> str:
    """Why the law cannot be fitted to these points, in one line; "" if it can."""
    reads = (*law.needs, law.response)
    for name in reads:
        if not points.has(name):
            return f"the {law.name} law needs {name}= ({COLUMNS[name]}), which the data lacks"
    for name in reads:
        column = points.column(name)
        if (column <= 0).any():
            return f"{name}={column.min():g}: must be above 0 for the {law.name} law"
    if isinstance(law, Additive) and law.pinned is not None and law.pinned >= points.loss_I.min():
        best = float(points.loss_I.min())
        return (
            f"the irreducible loss is pinned at {law.pinned:g}, not below the least loss {best:.4g}"
        )
    for name, least in law.needs.items():
        found = distinct(points.column(name))
        if found < least:
            return (
                f"{text.count(found, 'value')} of {name.upper()} ({COLUMNS[name]}); the "
                f"{law.name} law needs {least}{_instead(law, points)}"
            )
    if {"n", "d"} <= set(law.needs):
        line = ray(points)
        if line is not None and line.decades < RAY_DECADES:
            return (
                f"N and D lie on one ray ({described(line)}): A and alpha cannot be told from B "
                f"and beta, nor a compute-optimal N{_instead(law, points)}"
            )
    cells = len(points.cells)
    if cells < law.parameters:
        return (
            f"{text.count(cells, 'treatment')} for {law.parameters} constants of the {law.name} "
            f"law{_instead(law, points)}"
        )
    return ""


def described(line: Ray) -> str:
    """A ray in words."""
    return (
        f"D = {line.ratio:.3g} N, D ~ N^{line.slope:.2f} within a factor "
        f"{10 ** (line.decades / 2):.2f}"
    )


def identifies(points: Points) -> tuple[str, ...]:
    """What data with N and D on one ray can and cannot tell; () for other data."""
    line = ray(points)
    if line is None or line.decades >= RAY_DECADES:
        return ()
    found = [
        f"N and D lie on one ray ({described(line)}): only the loss along it is known",
        "cannot tell: A N^-alpha from B D^-beta; the compute-optimal N and D; what more tokens at "
        "one size, or a larger model on as many tokens, would give",
        "can tell: L_inf + A C^-alpha of each group (--law=power --by=group), with L_inf free, "
        "shared or pinned; differences of alpha; compute needed for equal loss along the ray",
        "to tell more: train each size also on 4 and 1/4 times the tokens, or sizes at equal FLOPs",
    ]
    if points.has("c") and distinct(points.n_I) > 1:
        slope = float(np.polyfit(np.log(points.n_I), np.log(points.c_I), 1)[0])
        found.insert(
            1, f"along it C ~ N^{slope:.2f}: an exponent alpha in C is {slope:.2f} alpha in N"
        )
    return tuple(found)


def _instead(law: Law, points: Points) -> str:
    """What could be fitted instead."""
    if law.name == "power":
        enough = all(distinct(points.column(name)) >= 2 for name in law.needs)
        pin = "; nearest valid: pin the irreducible loss (--pin=VALUE)"
        return pin if _free(law) and enough and len(points.cells) >= 2 else ""
    if distinct(points.column("c")) >= 3:
        return "; nearest valid: --law=power, the loss along C"
    if distinct(points.column("n")) >= 3:
        return "; nearest valid: --law=power --x=n, the loss along N"
    return ""


def _free(law: Law) -> bool:
    return isinstance(law, Additive) and law.pinned is None


def flags(fit: Fit) -> tuple[str, ...]:
    """What a reader must know before believing a fit."""
    law, points = fit.law, fit.points
    found = []
    cells = len(points.cells)
    if cells < FEW_CELLS:
        found.append(f"few treatments: {cells} for {law.parameters} constants")
    for name in law.needs:
        span = decades(points.column(name))
        if name in SCALES and span < 1:
            found.append(
                f"{name.upper()} spans {span:.2f} decades, less than 1: exponents are weak"
            )
    if {"n", "d"} <= set(law.needs):
        line = ray(points)
        if line is not None and line.decades < NARROW_DECADES and 2 * line.decades < line.length:
            found.append(
                f"N and D nearly lie on one ray ({described(line)}): A and B are hard to tell"
            )
    if not fit.condition < ILL_CONDITIONED:
        found.append(
            f"ill-conditioned ({fit.condition:.2g}): some constants change together and the loss "
            "hardly at all; believe predictions inside the data, not single constants"
        )
    found += _at_the_edge(fit)
    if fit.why_no_interval and fit.options.replicates:
        found.append(f"no intervals: {fit.why_no_interval}")
    elif 0 < fit.freedom <= 2 and fit.options.replicates:
        found.append(
            f"{text.count(fit.freedom, 'degree')} of freedom for the error: intervals are wide, "
            "as they must be"
        )
    if fit.reached < 2 and fit.starts > 1:
        found.append(f"1 of {fit.starts} starts came to the optimum: it may not be the best one")
    if fit.unusable:
        found.append(f"{fit.unusable} draws of cells could not be fitted and are left out")
    return tuple(found)


def _at_the_edge(fit: Fit) -> list[str]:
    """Coefficients of 0, exponents at a bound, exponents whose interval says nothing."""
    law, found = fit.law, []
    for name, value in zip(law.coefficients, fit.coefficient_Q, strict=True):
        if law.nonnegative and value == 0:
            found.append(f"{name} = 0: the data ask for no such term, nor for its exponent")
    bounds = zip(law.exponents, fit.exponent_P, law.low_P, law.high_P, strict=True)
    for name, value, low, high in bounds:
        if value <= low or value >= high:
            found.append(f"{name} is at the bound of its search ({value:.3g}): not determined")
    for name, estimate in fit.estimates.items():
        if name.split("[")[0] not in ("alpha", "beta") or not estimate.known:
            continue
        if not (estimate.high - estimate.low) / 2 < 0.5 * abs(estimate.value):
            found.append(
                f"{name} is not determined: 95 % interval {estimate.low:.3g} to {estimate.high:.3g}"
            )
    return found
