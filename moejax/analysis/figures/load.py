"""Layer x expert load heat maps, one per run on one colour scale, and the difference of two."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moejax.analysis import text
from moejax.analysis.charts.scales import LOAD, difference
from moejax.analysis.charts.spec import Grid, Maps
from moejax.analysis.evidence import Evidence
from moejax.analysis.figures.base import Figure, Row, missing
from moejax.analysis.routing import load
from moejax.analysis.runs import Routing
from moejax.analysis.view import View

LABELLED = 32  # more experts than this are numbered, not labelled by their width
TITLE = "Expert load"
CAPTION = (
    "Each cell is one expert: its share of the layer's assignments relative to a balanced share "
    "(u = f·E, so 1 is balanced). Orange experts are overloaded, blue ones under-used, purple "
    "ones got no token at all. Look for whole rows of strong colour: a layer that has collapsed "
    "onto few experts. The difference of two runs is u of the first minus u of the second, expert "
    "by expert; experts of different runs have nothing in common but their number, so look for "
    "layers that become more even, not for single experts."
)


def build(evidence: Evidence) -> Figure:
    """One heat map per MoE run."""
    runs = evidence.runs
    routed = [(v, v.run.routing) for v in runs if v.run.routing and v.run.routing.exists_LE.any()]
    if not routed:
        return missing("load", TITLE, "no MoE run has written its routing")
    experts = max(routing.width_LE.shape[1] for _, routing in routed)
    rows: list[Row] = [("run", "layer", "quantity", *(f"expert {e}" for e in range(experts)))]
    grids = []
    for view, routing in routed:
        u = load.utilisation(routing.count_LE, routing.exists_LE)
        rows.extend(_rows(view, routing, u, experts))
        grids.append(_grid(view, routing, u))
    maps = Maps(
        key="load",
        title="Load of every expert",
        alt=f"Heat maps of expert load for {text.count(len(grids), 'run')}.",
        x="expert (and its width, where widths differ)",
        y="layer",
        quantity="u",
        scale=LOAD,
        grids=tuple(grids),
        difference=difference(),
    )
    return Figure("load", TITLE, CAPTION, tuple(rows), (("", (maps,)),))


def _rows(view: View, routing: Routing, u: NDArray, experts: int) -> list[Row]:
    """Two rows per layer, experts as columns: what a spreadsheet colours into the same heat map."""
    rows: list[Row] = []
    uniform = routing.width_LE.shape[1] and (routing.width_LE == routing.width_LE[0, 0]).all()
    quantities = [("utilisation", np.round(u, 4)), ("assignments", routing.count_LE)]
    if not uniform:
        quantities.append(("width", routing.width_LE))
    for i, layer in enumerate(routing.layers_L.tolist()):
        exists = routing.exists_LE[i].tolist()
        for quantity, values in quantities:
            cells = [v if e else None for v, e in zip(values[i].tolist(), exists, strict=True)]
            rows.append((view.name, layer, quantity, *cells, *[None] * (experts - len(cells))))
    return rows


def _grid(view: View, routing: Routing, u: NDArray) -> Grid:
    layers, experts = u.shape
    worst = load.load_max_over_mean(routing.count_LE, routing.exists_LE)
    dead = int(load.dead_experts(routing.count_LE, routing.exists_LE).sum())
    alt = (
        f"Heat map of expert load for {view.name}: {text.count(layers, 'layer')} by up to "
        f"{text.count(experts, 'expert')}; busiest expert {np.nanmax(worst, initial=0):.1f}"
        f" times a balanced share; {text.count(dead, 'dead expert')}."
    )
    rows = tuple(str(layer) for layer in routing.layers_L.tolist())
    return Grid(view.name, u, rows, _columns(routing), alt)


def _columns(routing: Routing) -> tuple[str, ...]:
    """Experts by number, and by width where the widths of a layer differ alike in all layers."""
    experts = routing.width_LE.shape[1]
    plan = routing.width_LE[0]
    differ = len(set(plan[plan >= 0].tolist())) > 1
    if differ and experts <= LABELLED and (routing.width_LE == plan).all():
        return tuple(f"{e} ({w:,})" for e, w in enumerate(plan.tolist()))
    return tuple(map(str, range(experts)))
