"""Loss against training compute: runs, a power law per group with its band, and residuals."""

from __future__ import annotations

import math

import numpy as np

from moejax.analysis import text
from moejax.analysis.charts.spec import Axis, Chart, Rule, Series, series
from moejax.analysis.evidence import Evidence, Scaling
from moejax.analysis.figures.base import Figure, Row, missing
from moejax.analysis.scaling import Estimate, Fit, make_points

TITLE = "Scaling with compute"
BEYOND = 3.0  # how far past the largest run the law is drawn
POINTS = 60
HEADER: Row = ("group", "run", "seed", "C", "N", "D", "loss", "predicted", "residual_ln")


def build(evidence: Evidence) -> Figure:
    """Points and laws; residuals in a second tab."""
    found = evidence.scaling
    if isinstance(found, str):
        return missing("scaling", TITLE, found)
    if found.power.refused:
        return missing("scaling", TITLE, found.power.refused)
    fits = {group: part.fit for group, part in found.power.parts.items() if part.fit is not None}
    laws, residuals, rows = [], [], [HEADER]
    for look, group in enumerate(found.power.dataset.points.groups):
        points = found.power.dataset.points.in_group(group)
        fit = fits.get(group)
        named = [
            f"{run}: loss {loss:.4f}" for run, loss in zip(points.run_I, points.loss_I, strict=True)
        ]
        laws.append(series(group, look, points.c_I, points.loss_I, "points", notes=named))
        predicted = fit.predict(points)[0] if fit else np.full(len(points), np.nan)
        left = np.log(points.loss_I / predicted)
        columns = (points.c_I, points.n_I, points.d_I, points.loss_I, predicted, left)
        for i, run in enumerate(points.run_I):
            rows.append((group, run, points.seed_I[i], *(float(c[i]) for c in columns)))
        if fit:
            laws.append(_law(group, look, fit))
            residuals.append(series(group, look, points.c_I, 100 * left, "points", notes=named))
    compute = Axis("training compute (FLOPs)", log=True)
    law = Chart(
        "scaling-law",
        "",
        f"Validation loss against training compute with power laws of {len(fits)} groups.",
        compute,
        Axis("validation loss (nats per token)"),
        tuple(laws),
        height=400,
    )
    rest = Chart(
        "scaling-residuals",
        "",
        "Measured over predicted loss against training compute.",
        compute,
        Axis("measured over predicted loss, %"),
        tuple(residuals),
        (Rule(0.0, "as predicted"),),
    )
    tabs = (("Law", (law,)), ("Residuals", (rest,)))
    return Figure("scaling", TITLE, _caption(found, fits), tuple(rows), tabs)


def _caption(found: Scaling, fits: dict[str, Fit]) -> str:
    shown = [
        f"{group}: " + ", ".join(f"{name} {estimate(at)}" for name, at in fit.estimates.items())
        for group, fit in fits.items()
    ]
    why = [f"{g}: {p.refused}" for g, p in found.power.parts.items() if p.refused]
    told = (
        "Finished runs, and L = L∞ + A·C^-α of each group with a 95 % band from a bootstrap over "
        f"configurations, drawn to {BEYOND:g} times the largest run. Constants with 95 % "
        f"intervals: {'; '.join(shown)}."
    )
    told += f" Not fitted: {'; '.join(why)}." if why else ""
    remarks = " ".join(f"{remark[:1].upper()}{remark[1:]}." for remark in found.power.remarks[:3])
    return f"{told} {remarks}".strip()


def estimate(at: Estimate) -> str:
    """A constant with its interval, if it has one."""
    if not (math.isfinite(at.low) and math.isfinite(at.high)):
        return text.short(at.value)
    return f"{text.short(at.value)} ({text.short(at.low)} to {text.short(at.high)})"


def _law(group: str, look: int, fit: Fit) -> Series:
    low, high = float(fit.points.c_I.min()), float(fit.points.c_I.max()) * BEYOND
    c = np.geomspace(low, high, POINTS)
    here, draws = fit.predict(make_points(c=c))
    if not len(draws):
        return series(group, look, c, here, "thin", hidden=True)
    ends = np.nanquantile(draws, (0.025, 0.975), axis=0)
    return series(f"{group}, law", look, c, here, low=ends[0], high=ends[1], hidden=True)
