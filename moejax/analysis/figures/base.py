"""What a figure is, and the few helpers that figures share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure as MplFigure
from matplotlib.layout_engine import TightLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from moejax.analysis import svg, text, theme
from moejax.analysis.view import View

Row = Sequence[object]
DRAWN = 12  # runs in figures whose marks would hide each other; the CSV has all


@dataclasses.dataclass(frozen=True)
class Panel:
    """One picture: `key` names its PNG, `title` stands above it."""

    key: str
    title: str
    svg: str
    png: bytes


@dataclasses.dataclass(frozen=True)
class Figure:
    """A section of the report: pictures in tabs, a caption on what to look for, the numbers.

    `tabs` are (label, panels); one tab has no tab bar. `empty` says why there is nothing to draw.
    `legend` is "runs", "load" or "". `rows` is the CSV, header first.
    """

    key: str
    title: str
    caption: str
    rows: tuple[Row, ...]
    tabs: tuple[tuple[str, tuple[Panel, ...]], ...] = ()
    legend: str = "runs"
    drawn: tuple[View, ...] = ()
    empty: str = ""


def canvas(width: int, height: int) -> tuple[MplFigure, Axes]:
    """A figure of `width` x `height` SVG units with one axes; text is 11 units high."""
    # With one axes, "tight" places as well as "constrained" does, in half the time.
    layout = TightLayoutEngine(pad=0.5)
    figure = MplFigure(figsize=(width / 72, height / 72), dpi=72, layout=layout)
    return figure, figure.add_subplot()


def finish(
    figure: MplFigure,
    key: str,
    title: str,
    alt: str,
    runs: Sequence[View] = (),
    *,
    heading: str,
    legend: Sequence[tuple[Artist, str]] = (),
    hover: Mapping[str, str] | None = None,
) -> Panel:
    """Renders. `alt` is for who cannot see it; `heading` (the figure's title) is for the PNG."""
    shown = legend or [(handle(v), text.shorten(v.name, 34)) for v in runs[:DRAWN]]
    whole = f"{heading}: {title[:1].lower()}{title[1:]}" if runs else f"{heading}: {title}"
    picture, png = svg.render(figure, key, alt, title=whole, legend=shown, hover=hover)
    return Panel(key, title, picture, png)


def handle(view: View) -> Line2D:
    """The legend entry of a run."""
    look = theme.style(view.index)
    return Line2D([], [], color=look.color, ls=look.dash, marker=look.marker, **EDGE)


EDGE: dict[str, Any] = {"markeredgecolor": theme.INK["halo"][0], "markeredgewidth": 0.8}


def positive_axis(axes: Axes, low: float, high: float, label: str) -> bool:
    """Labels the x axis with SI numbers; log where the data spans more than a factor of 20."""
    log = low > 0 and high / low > 20
    if log:
        axes.set_xscale("log")
        subs = (1.0, 3.0) if high / low < 1000 else (1.0,)
        axes.xaxis.set_major_locator(LogLocator(subs=subs))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: text.short(v)))
    axes.set_xlabel(label + (" (log scale)" if log else ""))
    return log


def plain_y(axes: Axes, label: str) -> None:
    """A y axis with short numbers and its name above it, readable without turning the head."""
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: text.short(v)))
    axes.set_title(label, loc="left", fontsize=11, color=theme.INK["muted"][0], pad=8)


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Positions near `values`, in the same order, at least `gap` apart: for labels at line ends."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    placed = [float(values[i]) for i in order]
    for _ in range(50):
        for a in range(len(placed) - 1):
            short = gap - (placed[a + 1] - placed[a])
            if short > 1e-12:
                placed[a] -= short / 2
                placed[a + 1] += short / 2
    result = [math.nan] * len(values)
    for position, i in zip(placed, order, strict=True):
        result[i] = position
    return result


def drawn_note(all_runs: Sequence[View], drawn: Sequence[View]) -> str:
    """Says so where a picture does not show every run."""
    if len(all_runs) == len(drawn):
        return ""
    return f" The picture shows the first {len(drawn)} of {len(all_runs)} runs; the CSV has all."
