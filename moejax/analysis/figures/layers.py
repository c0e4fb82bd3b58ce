"""Active experts and active width, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator

from moejax.analysis import text, theme
from moejax.analysis.figures.base import EDGE, Figure, Panel, Row, canvas, finish, plain_y
from moejax.analysis.view import View

TITLE = "Compute by layer"
CAPTION = (
    "Mean per validation token. Left: how many routed experts a token uses in each MoE layer; "
    "flat for a router with a fixed number, shaped by the model where the router decides. "
    "Right: how many hidden units of feed-forward work that is (chosen and shared experts, or "
    "the dense block): the part of the compute that routing changes. Look for layers that spend "
    "much more than others."
)


def build(runs: Sequence[View]) -> Figure:
    """One line per run in each panel; dense layers appear only in the width panel."""
    rows: list[Row] = [
        ("run", "layer", "kind", "experts", "active_experts", "active_ffn_width", "drop_fraction")
    ]
    for view in runs:
        rows.extend(_rows(view))
    if len(rows) == 1:
        return Figure("layers", TITLE, CAPTION, tuple(rows), empty="No run describes its layers.")
    experts = _panel(rows, runs, "layers-experts", "Active experts", "experts per token", 4)
    width = _panel(rows, runs, "layers-width", "Active width", "hidden units per token", 5)
    panels = tuple(p for p in (experts, width) if p)
    empty = "" if panels else "No run has measured its layers yet."
    return Figure(
        "layers",
        TITLE,
        CAPTION,
        tuple(rows),
        (("", panels),) if panels else (),
        drawn=tuple(runs),
        empty=empty,
    )


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


def _panel(
    rows: Sequence[Row], runs: Sequence[View], key: str, title: str, label: str, column: int
) -> Panel | None:
    figure, axes = canvas(480, 320)
    drawn: list[View] = []
    for view in runs:
        own = [row for row in rows[1:] if row[0] == view.name and math.isfinite(row[column])]  # type: ignore[arg-type]
        if not own:
            continue
        drawn.append(view)
        look = theme.style(view.index)
        x = np.array([row[1] for row in own], float)
        y = np.array([row[column] for row in own], float)
        marks = max(1, x.size // 12)
        axes.plot(x, y, color=look.color, ls=look.dash, marker=look.marker, markevery=marks, **EDGE)
    if not drawn:
        return None
    plain_y(axes, label)
    axes.set_xlabel("layer (0 is next to the input)")
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
    axes.set_ylim(0, axes.get_ylim()[1] * 1.05)
    alt = f"Line chart of {label} in every layer for {text.count(len(drawn), 'run')}."
    return finish(figure, key, title, alt, drawn, heading=TITLE)
