"""Loss against size at equal compute: the valleys of IsoFLOP, their parabolas and minima."""

from __future__ import annotations

import numpy as np

from moejax.analysis import text
from moejax.analysis.charts.spec import Axis, Chart, series
from moejax.analysis.evidence import Evidence
from moejax.analysis.figures.base import Figure, Row, missing
from moejax.analysis.scaling import IsoFlop, Points

TITLE = "IsoFLOP"
CAPTION = (
    "Each line is one compute budget: loss against model size at equal training FLOPs, and the "
    "parabola in ln N through it. Where the minimum lies inside the sizes, it is the best size for "
    "the budget. Parabolas are biased where sizes are spread widely or off centre (approach 2); "
    "compare the law."
)
LINES = 7


def build(evidence: Evidence) -> Figure:
    """A chart per group."""
    found = evidence.scaling
    if isinstance(found, str):
        return missing("isoflop", TITLE, found)
    rows: list[Row] = [("group", "budget", "N", "D", "loss", "best_N", "best_loss", "why_not")]
    charts = []
    for i, (group, valleys) in enumerate(found.valleys.items()):
        chart = _chart(i, group, valleys, found.power.dataset.points.in_group(group), rows)
        charts += [chart] if chart else []
    if not charts:
        return missing("isoflop", TITLE, "no budget has runs of three sizes or more")
    return Figure("isoflop", TITLE, CAPTION, tuple(rows), (("", tuple(charts)),))


def _chart(
    number: int, group: str, found: IsoFlop, points: Points, rows: list[Row]
) -> Chart | None:
    deep = [valley for valley in found.valleys if len(valley.rows) > 2]
    marks = []
    for look, valley in enumerate(deep[-LINES:]):
        own = points.take(np.asarray(valley.rows))
        name = f"{text.short(valley.budget)} FLOPs"
        for n, d, loss in zip(own.n_I, own.d_I, own.loss_I, strict=True):
            best = (valley.n, valley.loss, valley.why_not)
            rows.append((group, valley.budget, float(n), float(d), float(loss), *best))
        marks.append(series(name, look, own.n_I, own.loss_I, "points"))
        n = np.geomspace(own.n_I.min(), own.n_I.max(), 40)
        x = np.log(n)
        p0, p1, p2 = valley.parabola
        marks.append(series(name, look, n, p0 + p1 * x + p2 * x * x, "thin", hidden=True))
        if not valley.why_not:
            marks.append(
                series(f"{name}, best", look, [valley.n], [valley.loss], "points", hidden=True)
            )
    if not marks:
        return None
    return Chart(
        f"isoflop-{number}",
        group,
        f"Loss against model size at {len(deep)} compute budgets for {group}.",
        Axis("parameters N", log=True),
        Axis("validation loss (nats per token)"),
        tuple(marks),
        height=380,
    )
