"""What a chart is: marks, axes and words, without a plotting library.

A chart holds numbers and names as they are; each renderer escapes them for where they go. Colours
are looks (`theme.style(look)`: colour, dash and marker) or roles of `theme.INK`, never values.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moejax.analysis.charts.scales import Scale

Floats = NDArray[np.float64]
Kind = Literal["line", "thin", "points", "bars"]


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis. `low` and `high` are NaN where the data decide; `ticks` are (place, label).

    `reverse` puts small values at the top, as in a table. `whole` allows whole numbers only.
    """

    label: str
    log: bool = False
    low: float = math.nan
    high: float = math.nan
    ticks: tuple[tuple[float, str], ...] = ()
    reverse: bool = False
    whole: bool = False


@dataclasses.dataclass(frozen=True)
class Series:
    """Marks of one name: N points, with an interval where `low_N` and `high_N` are given.

    `kind`: "line" (with markers), "thin" (a faint line), "points" or "bars". The interval is a
    band around a line and bars elsewhere; it lies along y, or along x with `sideways`. `notes`
    are told under the pointer, one a point; with `written` they stand beside the points.
    `look` is an index for `theme.style`; `hidden` leaves the series out of the legend.
    """

    name: str
    look: int
    x_N: Floats
    y_N: Floats
    kind: Kind = "line"
    low_N: Floats | None = None
    high_N: Floats | None = None
    sideways: bool = False
    notes: tuple[str, ...] = ()
    written: bool = False
    hidden: bool = False


@dataclasses.dataclass(frozen=True)
class Rule:
    """A dashed line across the chart at a value of the y axis (or of x): chance, a baseline."""

    value: float
    label: str
    along: Literal["x", "y"] = "y"


@dataclasses.dataclass(frozen=True)
class Chart:
    """Series over two axes. `key` names files, `alt` describes it for who cannot see it."""

    key: str
    title: str
    alt: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    rules: tuple[Rule, ...] = ()
    height: int = 330
    striped: bool = False


@dataclasses.dataclass(frozen=True)
class Grid:
    """One matrix of a heat map, R rows by C columns; NaN where there is no cell."""

    name: str
    value_RC: Floats
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    alt: str
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Maps:
    """Heat maps on one colour scale: two are picked and shown with their difference.

    Grids of different shape have no difference. With `difference` None there is none at all.
    """

    key: str
    title: str
    alt: str
    x: str
    y: str
    quantity: str
    scale: Scale
    grids: tuple[Grid, ...]
    difference: Scale | None = None


@dataclasses.dataclass(frozen=True)
class Node:
    """A box of a flow: in which column it stands, its name, its look, what it weighs."""

    column: int
    name: str
    look: int


@dataclasses.dataclass(frozen=True)
class Flow:
    """Bands between boxes of neighbouring columns (a Sankey diagram)."""

    key: str
    title: str
    alt: str
    columns: tuple[str, ...]
    nodes: tuple[Node, ...]
    links: tuple[tuple[int, int, float], ...]
    height: int = 420


@dataclasses.dataclass(frozen=True)
class Shade:
    """One way to colour the tokens of a text: value per token, and what to say of each."""

    name: str
    value_T: Floats
    scale: Scale
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Words:
    """A stretch of text, its tokens coloured by one of several quantities per run."""

    key: str
    title: str
    alt: str
    pieces: tuple[str, ...]
    shades: tuple[Shade, ...]


Drawable = Chart | Maps | Flow | Words


def series(
    name: str,
    look: int,
    x: ArrayLike,
    y: ArrayLike,
    kind: Kind = "line",
    *,
    low: ArrayLike | None = None,
    high: ArrayLike | None = None,
    sideways: bool = False,
    notes: Sequence[str] = (),
    written: bool = False,
    hidden: bool = False,
) -> Series:
    """A `Series` from anything array-like, without the points that have no finite x and y.

    Raises:
      ValueError: lengths differ.
    """
    x_N, y_N = (np.asarray(v, np.float64).reshape(-1) for v in (x, y))
    ends = [None if v is None else np.asarray(v, np.float64).reshape(-1) for v in (low, high)]
    lengths = {v.size for v in (x_N, y_N, *ends) if v is not None}
    if len(lengths) > 1 or (notes and len(notes) != x_N.size):
        raise ValueError(f"series {name!r}: lengths {sorted(lengths)} and {len(notes)} notes")
    keep = np.isfinite(x_N) & np.isfinite(y_N)
    low_N, high_N = (None if v is None else v[keep] for v in ends)
    told = tuple(note for note, kept in zip(notes, keep, strict=True) if kept) if notes else ()
    return Series(
        name, look, x_N[keep], y_N[keep], kind, low_N, high_N, sideways, told, written, hidden
    )


def legend(drawables: Sequence[Drawable]) -> list[tuple[str, int]] | None:
    """(name, look) of every series in order of appearance; None where one name has two looks."""
    found: dict[str, int] = {}
    for drawable in drawables:
        for one in drawable.series if isinstance(drawable, Chart) else ():
            if not one.hidden and found.setdefault(one.name, one.look) != one.look:
                return None
    return list(found.items())


def thinned(x: NDArray, y: NDArray, most: int) -> tuple[NDArray, NDArray]:
    """At most `most` of the points, evenly picked by index, the first and the last included."""
    if x.size <= most:
        return x, y
    keep = np.unique(np.linspace(0, x.size - 1, most).round().astype(int))
    return x[keep], y[keep]
