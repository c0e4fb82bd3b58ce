"""Layer x expert load heat maps, one per run, all on the same colour scale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from moejax.analysis import metrics, svg, text, theme
from moejax.analysis.figures.base import Figure, Panel, Row, canvas, finish
from moejax.analysis.runs import Routing
from moejax.analysis.view import View

CELLS_DRAWN = 640  # above this, a heat map is an image: no tooltips, but a bounded size
TITLE = "Expert load"
CAPTION = (
    "Each cell is one expert: its share of the layer's assignments relative to a balanced share "
    "(u = f·E, so 1 is balanced). Orange experts are overloaded, blue ones under-used, purple "
    "ones got no token at all. Look for whole rows of strong colour: a layer that has collapsed "
    "onto few experts. Experts of different widths are labelled by their width in hidden units."
)
_DEAD_LEVEL = len(theme.HEAT)


def build(runs: Sequence[View]) -> Figure:
    """One panel per MoE run."""
    routed = [(v, v.run.routing) for v in runs if v.run.routing and v.run.routing.exists_LE.any()]
    experts = max((routing.width_LE.shape[1] for _, routing in routed), default=0)
    rows: list[Row] = [("run", "layer", "quantity", *(f"expert {e}" for e in range(experts)))]
    panels = []
    for view, routing in routed:
        u = metrics.utilisation(routing.count_LE, routing.exists_LE)
        rows.extend(_rows(view, routing, u, experts))
        panels.append(_panel(view, routing, u))
    empty = "" if panels else "No MoE run has written its routing: there is no load to show."
    tabs = (("", tuple(panels)),) if panels else ()
    return Figure("load", TITLE, CAPTION, tuple(rows), tabs, "load" if panels else "", empty=empty)


def level(u: NDArray) -> NDArray[np.int64]:
    """Colour level of a utilisation: 0..8 by `theme.HEAT_EDGES`, 9 dead, -1 no such expert."""
    levels = np.searchsorted(theme.HEAT_EDGES, np.nan_to_num(u), "right")
    return np.where(np.isnan(u), -1, np.where(u == 0, _DEAD_LEVEL, levels)).astype(np.int64)


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


def _panel(view: View, routing: Routing, u: NDArray) -> Panel:
    layers, experts = u.shape
    height = int(np.clip(78 + 26 * layers, 120, 420))
    figure, axes = canvas(480, height)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set(xlim=(0, experts), ylim=(layers, 0), xlabel=_x_labels(axes, routing), ylabel="layer")
    hover = {}
    if u.size <= CELLS_DRAWN:
        hover = _cells(axes, routing, u)
    else:
        _image(axes, level(u))
    _y_ticks(axes, routing.layers_L)
    worst = metrics.load_max_over_mean(routing.count_LE, routing.exists_LE)
    dead = int(metrics.dead_experts(routing.count_LE, routing.exists_LE).sum())
    alt = (
        f"Heat map of expert load for {view.name}: {text.count(layers, 'layer')} by up to "
        f"{text.count(experts, 'expert')}; busiest expert {np.nanmax(worst, initial=0):.1f}"
        f" times a balanced share; {text.count(dead, 'dead expert')}."
    )
    patches = [
        (Patch(color=light), label)
        for (light, _), label in zip(
            (*theme.HEAT, theme.DEAD), (*theme.HEAT_LABELS, "no token"), strict=True
        )
    ]
    name = text.shorten(view.name, 60)
    key = f"load-{view.index}"
    return finish(figure, key, name, alt, heading=TITLE, hover=hover, legend=patches)


def _cells(axes: Axes, routing: Routing, u: NDArray) -> dict[str, str]:
    """Rectangles that follow the theme and tell their numbers under the pointer."""
    colors = [light for light, _ in (*theme.HEAT, theme.DEAD)]
    levels = level(u)
    hover = {}
    for i, e in zip(*np.nonzero(routing.exists_LE & (levels >= 0)), strict=True):
        gid = f"{svg.TITLED}{i}-{e}"
        cell = Rectangle(
            (e + 0.03, i + 0.04), 0.94, 0.92, color=colors[levels[i, e]], lw=0, gid=gid
        )
        axes.add_patch(cell)
        if levels[i, e] == _DEAD_LEVEL:
            axes.text(
                e + 0.5,
                i + 0.5,
                "×",
                ha="center",
                va="center",
                color=theme.INK["halo"][0],
                fontsize=10,
            )
        hover[gid] = (
            f"layer {routing.layers_L[i]}, expert {e}, width {routing.width_LE[i, e]:,}: "
            f"{u[i, e]:.2f} x balanced, {int(routing.count_LE[i, e]):,} assignments"
        )
    return hover


def _image(axes: Axes, levels: NDArray[np.int64]) -> None:
    """One pixel per expert, once per theme: an image cannot follow CSS variables."""
    for which, gid in enumerate((svg.LIGHT_ONLY, svg.DARK_ONLY)):
        table = [to_rgb(pair[which]) for pair in (*theme.HEAT, theme.DEAD)]
        palette = np.array([*((*rgb, 1.0) for rgb in table), (0.0, 0.0, 0.0, 0.0)])
        pixels = np.round(palette[levels] * 255).astype(np.uint8)
        image = axes.imshow(
            pixels,
            interpolation="none",
            aspect="auto",
            extent=(0, levels.shape[1], levels.shape[0], 0),
        )
        image.set_gid(gid)


def _x_labels(axes: Axes, routing: Routing) -> str:
    """Ticks below the experts; by width where a layer's experts differ. Returns the axis label."""
    experts = routing.width_LE.shape[1]
    per_layer = [row[row >= 0] for row in routing.width_LE]
    same_plan = all(np.array_equal(routing.width_LE[0], row) for row in routing.width_LE)
    if same_plan and len(set(per_layer[0].tolist())) > 1 and experts <= 32:
        axes.set_xticks(np.arange(experts) + 0.5, [f"{w:,}" for w in routing.width_LE[0]])
        if experts > 8:
            axes.tick_params("x", rotation=90)
        return "expert, labelled by its width (hidden units)"
    step = max(1, -(-experts // 16))
    step = next((s for s in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512) if s >= step), step)
    ticks = np.arange(0, experts, step)
    axes.set_xticks(ticks + 0.5, [str(t) for t in ticks])
    differ = any(len(set(widths.tolist())) > 1 for widths in per_layer)
    low, high = min(w.min() for w in per_layer if w.size), max(w.max() for w in per_layer if w.size)
    return f"expert (widths {low:,} to {high:,} hidden units: see the CSV)" if differ else "expert"


def _y_ticks(axes: Axes, layers_L: NDArray) -> None:
    step = -(-len(layers_L) // 12)
    ticks = np.arange(0, len(layers_L), step)
    axes.set_yticks(ticks + 0.5, [str(layers_L[t]) for t in ticks])
    axes.tick_params(length=0)
