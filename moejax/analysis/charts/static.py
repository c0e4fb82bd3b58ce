"""Charts by matplotlib: an SVG for the page without scripts, PNG and PDF for slides and papers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure as MplFigure
from matplotlib.layout_engine import TightLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from moejax.analysis import text
from moejax.analysis.charts import theme
from moejax.analysis.charts.pictures import draw_flow, draw_grid, draw_words
from moejax.analysis.charts.spec import Axis, Chart, Drawable, Flow, Grid, Maps, Series, legend
from moejax.analysis.charts.svg import Drawing, render

WIDTH = 480
NAMED = 14  # entries of a legend inside a picture; the page's own has all
EDGE: dict[str, Any] = {"markeredgecolor": theme.INK["halo"][0], "markeredgewidth": 0.8}


def draw(drawable: Drawable, heading: str) -> list[tuple[str, str, Drawing]]:
    """(key, title, picture) of each picture that a chart makes: one, or one per heat map."""
    with theme.drawing():
        if isinstance(drawable, Maps):
            return [_map(drawable, i, grid, heading) for i, grid in enumerate(drawable.grids)]
        figure, axes = canvas(WIDTH, getattr(drawable, "height", 300))
        handles: list[tuple[Artist, str]] = []
        if isinstance(drawable, Chart):
            _chart(axes, drawable)
            handles = [(_handle(look), text.shorten(n, 34)) for n, look in legend([drawable]) or ()]
            handles = handles[:NAMED] if len(handles) > 1 else []
        elif isinstance(drawable, Flow):
            draw_flow(axes, drawable)
        else:
            draw_words(figure, axes, drawable)
        title = f"{heading}: {drawable.title}" if drawable.title else heading
        drawing = render(figure, drawable.key, drawable.alt, title=title, legend=handles)
    return [(drawable.key, drawable.title, drawing)]


def canvas(width: float, height: float) -> tuple[MplFigure, Axes]:
    """A figure of `width` x `height` SVG units with one axes; text is 11 units high."""
    # With one axes, "tight" places as well as "constrained" does, in half the time.
    layout = TightLayoutEngine(pad=0.5)
    figure = MplFigure(figsize=(width / 72, height / 72), dpi=72, layout=layout)
    return figure, figure.add_subplot()


def _map(maps: Maps, index: int, grid: Grid, heading: str) -> tuple[str, str, Drawing]:
    key = f"{maps.key}-{index}"
    figure, axes = canvas(WIDTH, float(np.clip(78 + 26 * len(grid.rows), 120, 420)))
    patches = draw_grid(axes, maps, grid)
    title = f"{heading}: {text.shorten(grid.name, 60)}"
    return key, grid.name, render(figure, key, grid.alt, title=title, legend=patches)


def _handle(look: int) -> Line2D:
    style = theme.style(look)
    return Line2D([], [], color=style.color, ls=style.dash, marker=style.marker, **EDGE)


def _chart(axes: Axes, chart: Chart) -> None:
    bars = [s for s in chart.series if s.kind == "bars"]
    for one in chart.series:
        if one.kind == "bars":
            _bars(axes, one, bars.index(one), len(bars))
        elif one.kind == "points":
            _points(axes, one)
        else:
            _line(axes, one)
    for rule in chart.rules:
        _rule(axes, rule.value, rule.label, rule.along)
    _axis(axes, chart.x, "x")
    _axis(axes, chart.y, "y")
    if chart.striped:
        axes.grid(False, axis="y")
        for row in range(0, len(chart.y.ticks), 2):
            axes.axhspan(row - 0.5, row + 0.5, color=theme.INK["band"][0], lw=0, zorder=0)


def _line(axes: Axes, one: Series) -> None:
    style = theme.style(one.look)
    if one.kind == "thin":
        axes.plot(one.x_N, one.y_N, color=style.color, lw=0.9, alpha=0.55)
        return
    if one.low_N is not None and one.high_N is not None:
        axes.fill_between(one.x_N, one.low_N, one.high_N, color=style.color, alpha=0.16, lw=0)
    every = max(1, one.x_N.size // 12)
    # Markers count back from the end, so that the final value always has one.
    marks = list(range(one.x_N.size - 1, -1, -every))
    look = {"color": style.color, "ls": style.dash, "marker": style.marker} | EDGE
    axes.plot(one.x_N, one.y_N, markevery=marks, **look)


def _points(axes: Axes, one: Series) -> None:
    style = theme.style(one.look)
    look = {"color": style.color, "marker": style.marker, "ls": "none"} | EDGE
    if one.low_N is None or one.high_N is None:
        axes.plot(one.x_N, one.y_N, **look)
    else:
        middle = one.x_N if one.sideways else one.y_N
        arms = np.nan_to_num(np.stack([middle - one.low_N, one.high_N - middle])).clip(0)
        interval: dict[str, Any] = {"xerr": arms} if one.sideways else {"yerr": arms}
        axes.errorbar(one.x_N, one.y_N, **interval, elinewidth=1.4, **look)
    if one.written:
        for x, y, note in zip(one.x_N, one.y_N, one.notes, strict=True):
            axes.annotate(
                text.shorten(note, 28),
                (x, y),
                xytext=(6, 4),
                textcoords="offset points",
                fontsize=8.5,
                color=theme.INK["muted"][0],
            )


def _bars(axes: Axes, one: Series, index: int, count: int) -> None:
    width = 0.84 / count
    place = one.x_N + (index - (count - 1) / 2) * width
    color = theme.style(one.look).color
    axes.bar(place, one.y_N, 0.92 * width, color=color, lw=0)
    if one.low_N is not None and one.high_N is not None:
        arms = np.nan_to_num(np.stack([one.y_N - one.low_N, one.high_N - one.y_N])).clip(0)
        axes.errorbar(place, one.y_N, arms, ls="none", color=theme.INK["fg"][0], elinewidth=1.0)


def _rule(axes: Axes, value: float, label: str, along: str) -> None:
    dash: dict[str, Any] = {
        "color": theme.INK["base"][0],
        "lw": 1.1,
        "ls": (0, (2, 2)),
        "zorder": 1.5,
    }
    upright = along == "x"
    (axes.axvline if upright else axes.axhline)(value, **dash)
    axes.annotate(
        label,
        (value, 1) if upright else (1, value),
        xycoords=("data", "axes fraction") if upright else ("axes fraction", "data"),
        xytext=(4, -4) if upright else (-4, 3),
        textcoords="offset points",
        ha="left" if upright else "right",
        va="top" if upright else "bottom",
        fontsize=9.5,
        color=theme.INK["muted"][0],
    )


def _axis(axes: Axes, axis: Axis, which: str) -> None:
    limits = getattr(axes, f"set_{which}lim")
    handle = getattr(axes, f"{which}axis")
    if axis.log:
        getattr(axes, f"set_{which}scale")("log")
    ends = {
        name: value
        for name, value in zip(
            ("left", "right") if which == "x" else ("bottom", "top"),
            (axis.low, axis.high),
            strict=True,
        )
        if math.isfinite(value)
    }
    limits(**ends)
    if axis.reverse:
        limits(*reversed(limits()))
    if axis.ticks:
        _ticks(axes, axis.ticks, which)
    elif axis.log:
        low, high = limits()
        handle.set_major_locator(LogLocator(subs=(1.0, 3.0) if high < 1000 * low else (1.0,)))
        handle.set_major_formatter(FuncFormatter(lambda v, _: text.short(v)))
        handle.set_minor_locator(NullLocator())
        handle.set_minor_formatter(NullFormatter())
    else:
        steps = [1, 2, 5, 10] if axis.whole else [1, 2, 2.5, 5, 10]
        handle.set_major_locator(MaxNLocator(7, steps=steps, integer=axis.whole, min_n_ticks=1))
        handle.set_major_formatter(FuncFormatter(lambda v, _: text.short(v)))
    label = axis.label + (" (log scale)" if axis.log else "")
    if which == "x":
        axes.set_xlabel(label)
    elif not axis.ticks:
        # Above the axis, readable without turning the head.
        axes.set_title(label, loc="left", fontsize=11, color=theme.INK["muted"][0], pad=8)


def _ticks(axes: Axes, ticks: Sequence[tuple[float, str]], which: str) -> None:
    places, labels = zip(*ticks, strict=True)
    shown = [text.shorten(label, 26) for label in labels]
    crowded = which == "x" and sum(map(len, shown)) > 60
    handle = axes.xaxis if which == "x" else axes.yaxis
    size = 8.5 if crowded else 9.5
    turn: dict[str, Any] = {"rotation": 30, "ha": "right"} if crowded else {}
    handle.set_ticks(places, shown, fontsize=size, **turn)
