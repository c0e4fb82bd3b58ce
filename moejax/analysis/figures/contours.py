"""Loss over size and tokens: lines of equal loss of the fitted law, and the runs under it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from moejax.analysis import text
from moejax.analysis.charts.spec import Axis, Chart, series
from moejax.analysis.evidence import Evidence
from moejax.analysis.figures.base import Figure, Row, missing
from moejax.analysis.figures.scaling_law import estimate
from moejax.analysis.scaling import Fit, make_points

TITLE = "Loss over size and tokens"
CAPTION = (
    "Lines of equal loss of L = E + A·N^-α + B·D^-β as fitted to the finished runs (dots), inside "
    "the sizes and token counts that were trained. Where a line is steep, more tokens would not "
    "help; where it is flat, more parameters would not. "
)
LEVELS = 6
SIZES, TOKENS = 40, 160
RUNS_LOOK = LEVELS  # after the looks of the lines


def build(evidence: Evidence) -> Figure:
    """A chart per group of runs whose N and D leave one ray."""
    found = evidence.scaling
    if isinstance(found, str):
        return missing("contours", TITLE, found)
    rows: list[Row] = [("group", "kind", "run", "loss", "N", "D")]
    charts, told = [], []
    refused: dict[str, list[str]] = {}
    for number, (group, one) in enumerate(found.surfaces.items()):
        if isinstance(one, str):
            refused.setdefault(one, []).append(group)
            continue
        charts.append(_chart(number, group, one, rows))
        constants = ", ".join(f"{name} {estimate(at)}" for name, at in one.estimates.items())
        told.append(f"{group}: {constants}")
    why = "; ".join(f"{', '.join(groups)}: {reason}" for reason, groups in refused.items())
    if not charts:
        return missing("contours", TITLE, why or "no group of finished runs to fit")
    caption = f"{CAPTION}Constants with 95 % intervals: {'; '.join(told)}."
    caption += f" Not fitted: {why}." if why else ""
    return Figure("contours", TITLE, caption, tuple(rows), (("", tuple(charts)),))


def _chart(number: int, group: str, one: Fit, rows: list[Row]) -> Chart:
    points = one.points
    marks = []
    for look, (level, n, d) in enumerate(contours(one)):
        marks.append(series(f"loss {text.short(level, 4)}", look, n, d))
        lines = zip(n.tolist(), d.tolist(), strict=True)
        rows += [(group, "contour", "", level, a, b) for a, b in lines if math.isfinite(b)]
    measured = list(zip(points.run_I, points.loss_I, points.n_I, points.d_I, strict=True))
    rows += [(group, "run", run, float(x), float(n), float(d)) for run, x, n, d in measured]
    notes = [f"{run}: loss {loss:.4f}" for run, loss, *_ in measured]
    marks.append(series("runs", RUNS_LOOK, points.n_I, points.d_I, "points", notes=notes))
    return Chart(
        f"contours-{number}",
        group,
        f"Contour lines of the fitted loss over parameters and tokens for {group}, with "
        f"{text.count(len(points), 'run')}.",
        Axis("parameters N", log=True),
        Axis("training tokens D", log=True),
        tuple(marks),
        height=400,
    )


def contours(one: Fit) -> list[tuple[float, NDArray[np.float64], NDArray[np.float64]]]:
    """(loss, N, D) of `LEVELS` lines of equal loss over the data's range.

    Between two of them lies equally much of the plane of ln N and ln D. D is NaN
    where a line leaves the range of D. The law falls with D, so each N has at most one D.
    """
    points = one.points
    n = np.geomspace(points.n_I.min(), points.n_I.max(), SIZES)
    d = np.geomspace(points.d_I.min(), points.d_I.max(), TOKENS)
    wide_n, wide_d = (grid.reshape(-1) for grid in np.meshgrid(n, d, indexing="ij"))
    # Not `Fit.predict`, which would also evaluate every bootstrap replicate on the whole grid.
    grid = make_points(n=wide_n, d=wide_d)
    loss_I = one.law.predict(one.coefficient_Q[None], one.exponent_P[None], grid)[0]
    loss_ND = loss_I.reshape(SIZES, TOKENS)
    levels = np.quantile(loss_ND, np.linspace(0, 1, LEVELS + 2)[1:-1])
    return [
        (float(level), n, np.array([_crossing(row, np.log(d), level) for row in loss_ND]))
        for level in levels
    ]


def _crossing(loss_D: NDArray[np.float64], log_d: NDArray[np.float64], level: float) -> float:
    if not loss_D[-1] <= level <= loss_D[0] or loss_D[0] == loss_D[-1]:
        return math.nan
    return float(np.exp(np.interp(level, loss_D[::-1], log_d[::-1])))
