"""Loss against tokens, FLOPs and time, with seeds taken together as a mean and a band."""

from __future__ import annotations

import numpy as np

from moejax.analysis.charts.spec import Axis, Chart, Series, series, thinned
from moejax.analysis.compare import band
from moejax.analysis.evidence import Evidence
from moejax.analysis.figures.base import DRAWN, Figure, Row, missing, positive_axis

TITLE = "Loss, mean over seeds"
CAPTION = (
    "Validation loss of configurations that were trained with several seeds: the mean, and the "
    "95 % t interval of the mean as a band (two seeds give a very wide one). Where bands overlap, "
    "these seeds do not tell the configurations apart."
)
TABS = (
    ("tokens", "Tokens", "training tokens", 1.0),
    ("flops", "Active FLOPs", "measured active training FLOPs", 1.0),
    ("time", "Time", "training time (minutes)", 60.0),
)
POINTS = 100


def build(evidence: Evidence) -> Figure:
    """A tab per axis."""
    found = evidence.selection.treatments if evidence.selection else ()
    repeated = [one for one in found if len(one.members) > 1]
    if not repeated:
        why = "no configuration has two comparable finished runs of different seeds"
        return missing("seed-bands", TITLE, why)
    rows: list[Row] = [("configuration", "axis", "x", "runs", "mean_loss", "half_width_95")]
    tabs = []
    for axis, tab, label, scale in TABS:
        lines: list[Series] = []
        for one in repeated:
            means = band(one, axis)
            numbers = zip(means.x_N, means.mean_N, means.half_width_N, strict=True)
            rows += [(one.name, axis, x, means.runs, mean, half) for x, mean, half in numbers]
            if not means.x_N.size:
                continue
            keep, _ = thinned(np.arange(means.x_N.size), means.x_N, POINTS)
            x, mean, half = (v[keep] for v in (means.x_N, means.mean_N, means.half_width_N))
            look = evidence.look(one.members[0].name)
            ends = {"low": mean - half, "high": mean + half}
            lines.append(series(one.name, look, x / scale, mean, **ends))
        if lines:
            tabs.append((tab, (_chart(axis, label, lines[:DRAWN]),)))
    return Figure("seed-bands", TITLE, CAPTION, tuple(rows), tuple(tabs))


def _chart(axis: str, label: str, lines: list[Series]) -> Chart:
    low = min(float(line.x_N.min()) for line in lines)
    high = max(float(line.x_N.max()) for line in lines)
    # The first evaluations, far above the rest, would flatten all that is of interest.
    values = np.concatenate([line.y_N for line in lines])
    top = float(np.quantile(values, 0.9))
    return Chart(
        f"seed-bands-{axis}",
        "",
        f"Line chart of the mean validation loss over seeds against {label}.",
        positive_axis(low, high, label),
        Axis("validation loss (nats per token)", low=float(values.min()) * 0.99, high=top * 1.02),
        tuple(lines),
    )
