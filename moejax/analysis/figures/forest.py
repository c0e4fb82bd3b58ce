"""Differences from the baseline with their intervals, at equal tokens, FLOPs and time."""

from __future__ import annotations

import math

import numpy as np

from moejax.analysis.charts.spec import Axis, Chart, Rule, series
from moejax.analysis.compare import Comparison
from moejax.analysis.compare import Row as Treated
from moejax.analysis.evidence import Evidence
from moejax.analysis.figures.base import Figure, Row, missing

TITLE = "Difference from the baseline"
CAPTION = (
    "Validation loss minus the baseline's, in pairs of equal seed: left of the line is better. "
    "Runs whose training lengths are far apart have a baseline each. "
    "Bars are the 95 % t interval of the mean difference; of one pair or two that says nothing, "
    "and the bar is the noise between the seeds of all configurations; none where nothing tells "
    "how much a seed matters. A bar that crosses the line: no difference can be told."
)
TABS = {"tokens": "Equal tokens", "flops": "Equal FLOPs", "time": "Equal time"}
MOST = 60  # rows of the picture; the CSV has all
HEADER: Row = (
    "at", "budget", "baseline", "configuration", "pairs", "difference", "half_width_95",
    "least_beyond_noise", "verdict",
)  # fmt: skip


def build(evidence: Evidence) -> Figure:
    """A tab per axis, a chart per baseline, a row per configuration."""
    rows: list[Row] = [HEADER]
    tabs: dict[str, tuple[Chart, ...]] = {}
    for comparison in evidence.comparisons:
        others = [one for one in comparison.rows if one.difference and one.difference.mean.n]
        rows += [_row(comparison, one) for one in others]
        if others:
            before = tabs.get(TABS[comparison.at], ())
            chart = _chart(evidence, comparison, others[:MOST], len(before))
            tabs[TABS[comparison.at]] = (*before, chart)
    if not tabs:
        why = "it takes two finished configurations on the same text with a seed in common"
        return missing("forest", TITLE, why)
    return Figure("forest", TITLE, CAPTION, tuple(rows), tuple(tabs.items()))


def _row(comparison: Comparison, one: Treated) -> Row:
    found = one.difference
    assert found is not None
    return (
        comparison.at, comparison.budget, comparison.baseline, one.name, found.mean.n,
        found.mean.mean, found.mean.half_width, found.least, found.verdict,
    )  # fmt: skip


def _chart(evidence: Evidence, comparison: Comparison, others: list[Treated], at: int) -> Chart:
    mean, half, notes = [], [], []
    for one in others:
        found = one.difference
        assert found is not None
        known = found.bound
        mean.append(found.mean.mean)
        half.append(known)
        shown = f" ± {known:.4f}" if math.isfinite(known) else ", interval unknown"
        notes.append(f"{one.name}: {found.mean.mean:+.4f}{shown} ({found.verdict})")
    middle, arm = np.array(mean), np.nan_to_num(np.array(half))
    dots = tuple(
        series(
            one.name,
            evidence.look(one.runs[0]),
            [middle[i]],
            [float(i)],
            "points",
            low=[middle[i] - arm[i]],
            high=[middle[i] + arm[i]],
            sideways=True,
            notes=[notes[i]],
            hidden=True,
        )
        for i, one in enumerate(others)
    )
    # The interval of two pairs may be many times the differences: what is off the chart is told.
    reach = max(float(np.abs(middle).max()) * 2.5, 1e-3)
    far = float(np.abs(np.concatenate([middle - arm, middle + arm])).max())
    end = min(far * 1.08, reach)
    ticks = tuple((float(i), one.name) for i, one in enumerate(others))
    return Chart(
        f"forest-{comparison.at}" + (f"-{at + 1}" if at else ""),
        f"Against {comparison.baseline}",
        f"Forest plot: loss minus that of {comparison.baseline} at equal {comparison.at} for "
        f"{len(others)} configurations. The numbers are in the table below the figure.",
        Axis("difference in validation loss (nats per token)", low=-end, high=end),
        Axis("", low=-0.5, high=len(others) - 0.5, ticks=ticks, reverse=True),
        dots,
        (Rule(0.0, "baseline", "x"),),
        height=int(np.clip(90 + 30 * len(others), 150, 1200)),
        striped=True,
    )
