"""Active experts and active width, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

from moejax.analysis import text
from moejax.analysis.charts.spec import Axis, Chart, series
from moejax.analysis.evidence import Evidence
from moejax.analysis.figures.base import Figure, Row, missing
from moejax.analysis.view import View

TITLE = "Compute by layer"
CAPTION = (
    "Mean per validation token. Left: how many routed experts a token uses in each MoE layer; "
    "flat for a router with a fixed number, shaped by the model where the router decides. "
    "Right: how many hidden units of feed-forward work that is (chosen and shared experts, or "
    "the dense block): the part of the compute that routing changes. Look for layers that spend "
    "much more than others."
)
HEADER: Row = (
    "run", "layer", "kind", "experts", "active_experts", "active_ffn_width", "drop_fraction",
)  # fmt: skip


def build(evidence: Evidence) -> Figure:
    """One line per run in each chart; dense layers appear only in the one of the width."""
    runs = evidence.runs
    rows = [row for view in runs for row in _rows(view)]
    if not rows:
        return missing("layers", TITLE, "no run describes its layers")
    found = [
        _chart(rows, runs, "layers-experts", "Active experts", "experts per token", 4),
        _chart(rows, runs, "layers-width", "Active width", "hidden units per token", 5),
    ]
    charts = tuple(chart for chart in found if chart)
    if not charts:
        return missing("layers", TITLE, "no run has measured its layers yet")
    return Figure("layers", TITLE, CAPTION, (HEADER, *rows), (("", charts),))


def _rows(view: View) -> list[Row]:
    """Measured MoE layers, and dense ones as the model describes them."""
    rows: list[Row] = []
    described = {
        int(r.number("index")): r
        for r in view.run.model.records("layers")
        if _is_index(r.number("index"))
    }
    measured: dict[int, Row] = {}
    routing = view.run.routing
    if routing is not None:
        for i, layer in enumerate(routing.layers_L.tolist()):
            shared = described[layer].number("shared_width") if layer in described else 0.0
            requested = float(routing.requested_L[i])
            measured[layer] = (
                view.name,
                layer,
                "moe",
                int(routing.exists_LE[i].sum()),
                float(routing.active_L[i]),
                float(routing.active_width_L[i]) + (shared if math.isfinite(shared) else 0.0),
                1 - float(routing.kept_L[i]) / requested if requested else math.nan,
            )
    for layer in sorted({*described, *measured}):
        if layer in measured:
            rows.append(measured[layer])
        elif described[layer].string("kind") == "dense":
            width = described[layer].number("dense_width")
            rows.append((view.name, layer, "dense", 0, math.nan, width, math.nan))
    return rows


def _is_index(value: float) -> bool:
    return math.isfinite(value) and 0 <= value < 1e6


def _chart(
    rows: Sequence[Row], runs: Sequence[View], key: str, title: str, label: str, column: int
) -> Chart | None:
    of_run: dict[object, list[Row]] = {}
    for row in rows:
        of_run.setdefault(row[0], []).append(row)
    lines = []
    for view in runs:
        own = of_run.get(view.name, [])
        line = series(view.name, view.index, [r[1] for r in own], [r[column] for r in own])  # type: ignore[arg-type]
        if line.x_N.size:
            lines.append(line)
    if not lines:
        return None
    high = 1.08 * max(float(line.y_N.max()) for line in lines)
    return Chart(
        key,
        title,
        f"Line chart of {label} in every layer for {text.count(len(lines), 'run')}.",
        Axis("layer (0 is next to the input)", whole=True),
        Axis(label, low=0.0, high=high or 1.0),
        tuple(lines),
    )
