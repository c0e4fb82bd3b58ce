"""Loss against what a token costs: which configurations no other beats on both."""

from __future__ import annotations

import math

import numpy as np

from moejax.analysis.charts.spec import Axis, Chart, Series, series
from moejax.analysis.compare import Comparison
from moejax.analysis.compare import Row as Treated
from moejax.analysis.compare.curves import amount
from moejax.analysis.evidence import Evidence
from moejax.analysis.figures.base import Figure, Row, missing, positive_axis

TITLE = "Loss against cost"
CAPTION = (
    "Validation loss at equal tokens against what a model costs: measured training FLOPs per token "
    "(of the experts that tokens really used), active parameters, and all parameters. One point is "
    "a configuration, its bar half of the 95 % interval over seeds. The line joins those that no "
    "other beats on both axes; a point above it is beaten. The three costs rank models "
    "differently: none alone decides."
)
COSTS = (
    ("measured_flops_per_token", "FLOPs per token", "measured training FLOPs per token"),
    ("measured_active_parameters", "Active parameters", "active parameters, measured"),
    ("total_parameters", "All parameters", "parameters"),
)


def build(evidence: Evidence) -> Figure:
    """A tab per cost, a chart per training length."""
    compared = [
        (one, read)
        for one in evidence.comparisons
        if one.at == "tokens" and len(read := [row for row in one.rows if row.loss.n]) > 1
    ]
    if not compared:
        return missing("pareto", TITLE, "it takes two finished configurations on the same text")
    rows: list[Row] = [("configuration", "kind", "cost", "value", "seeds", "loss", "half_width_95")]
    tabs = []
    for cost, tab, label in COSTS:
        charts: list[Chart] = []
        for comparison, read in compared:
            known = [one for one in read if getattr(one.size, cost) > 0]
            rows += [_row(one, cost) for one in known]
            if len(known) > 1:
                charts.append(_chart(evidence, comparison, known, cost, label, len(charts)))
        if charts:
            tabs.append((tab, tuple(charts)))
    if not tabs:
        return missing("pareto", TITLE, "the runs do not say what a token costs")
    return Figure("pareto", TITLE, CAPTION, tuple(rows), tuple(tabs))


def _row(one: Treated, cost: str) -> Row:
    mean = one.loss
    return (one.name, one.kind, cost, getattr(one.size, cost), mean.n, mean.mean, mean.half_width)


def _chart(
    evidence: Evidence,
    comparison: Comparison,
    known: list[Treated],
    cost: str,
    label: str,
    at: int,
) -> Chart:
    x = np.array([getattr(one.size, cost) for one in known], float)
    y = np.array([one.loss.mean for one in known], float)
    marks: list[Series] = [_frontier(x, y)]
    spread = float(y.max() - y.min())
    for one, cost_of, loss in zip(known, x, y, strict=True):
        half = one.loss.half_width
        # Of two seeds the interval is far longer than the chart is high: left to the CSV.
        drawn = half if math.isfinite(half) and half < 2 * spread else 0.0
        marks.append(
            series(
                one.name,
                evidence.look(one.runs[0]),
                [cost_of],
                [loss],
                "points",
                low=[loss - drawn],
                high=[loss + drawn],
                notes=[f"{one.name}: {cost_of:.4g}, loss {loss:.4f}"],
            )
        )
    return Chart(
        f"pareto-{cost.split('_')[0]}-{cost.split('_')[1]}" + (f"-{at + 1}" if at else ""),
        f"After {amount(comparison.at, comparison.budget)}",
        f"Scatter plot of validation loss against {label} for {len(known)} configurations.",
        positive_axis(float(x.min()), float(x.max()), label),
        Axis(f"validation loss at equal {comparison.at} (nats per token)"),
        tuple(marks),
        height=380,
    )


def _frontier(x: np.ndarray, y: np.ndarray) -> Series:
    """The points that no other is left of and below, joined."""
    best = math.inf
    kept = []
    for i in np.lexsort((y, x)):
        if y[i] < best:
            best = float(y[i])
            kept.append(i)
    return series("not beaten on both", 6, x[kept], y[kept], "thin", hidden=True)
