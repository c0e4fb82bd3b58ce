"""Shared by the three figures that divide the trace's tokens: class, frequency and domain."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from moejax.analysis import text, theme
from moejax.analysis.figures.base import (
    DRAWN,
    EDGE,
    Figure,
    Panel,
    Row,
    canvas,
    drawn_note,
    finish,
    plain_y,
)
from moejax.analysis.groups import QUANTITIES, Grouping
from moejax.analysis.view import View

LABELS = {
    "active": ("Active experts", "experts per token and layer"),
    "width": ("Active width", "hidden units of routed experts per token and layer"),
    "expert_width": ("Width of a chosen expert", "hidden units, mean over chosen experts"),
    "loss": ("Loss", "nats per token"),
}
INTERVALS = (
    " Bars are 95 % intervals of the mean over tokens (1.96·s/√n, tokens taken as independent, so "
    "the true uncertainty is larger); n is the number of traced validation tokens."
)


@dataclasses.dataclass(frozen=True)
class Kind:
    """One way to divide tokens: `key` of files, attribute of `TraceGroups`, words of the page."""

    key: str
    attribute: str
    title: str
    caption: str
    column: str
    ordered: bool  # groups have an order: a line over x; otherwise rows of dots


def build(runs: Sequence[View], kind: Kind) -> Figure:
    """Panels for active experts, width, expert width and loss; every run with a trace."""
    traced = [v for v in runs if v.groups is not None]
    header: Row = ("run", "quantity", kind.column, "n", "mean", "ci95_half_width")
    rows: list[Row] = [header]
    for view in traced:
        rows.extend(_rows(view, kind))
    routed = [v for v in traced if v.groups is not None and v.groups.layers][:DRAWN]
    panels: list[Panel] = []
    if routed:
        for quantity in QUANTITIES:
            shown = traced[:DRAWN] if quantity == "loss" else routed
            if panel := _panel(shown, kind, quantity):
                panels.append(panel)
    empty = "" if panels else "No MoE run has an evaluation trace: nothing to divide by group yet."
    drawn = [v for v in traced if v.groups and v.groups.layers]
    return Figure(
        kind.key,
        kind.title,
        kind.caption + INTERVALS + drawn_note(drawn, routed),
        tuple(rows),
        (("", tuple(panels)),) if panels else (),
        drawn=tuple(traced[:DRAWN]),
        empty=empty,
    )


def _grouping(view: View, kind: Kind) -> Grouping:
    grouping: Grouping = getattr(view.groups, kind.attribute)
    return grouping


def _rows(view: View, kind: Kind) -> list[Row]:
    grouping = _grouping(view, kind)
    return [
        (view.name, quantity, label, int(n), float(mean), float(half))
        for quantity, means in grouping.means.items()
        for label, n, mean, half in zip(
            grouping.labels, means.count, means.mean, means.half_width, strict=True
        )
        if n
    ]


def _panel(runs: Sequence[View], kind: Kind, quantity: str) -> Panel | None:
    having = [v for v in runs if quantity in _grouping(v, kind).means]
    labels, counts = _labels(having, kind, quantity)
    if not labels:
        return None
    title, unit = LABELS[quantity]
    height = 320 if kind.ordered else int(np.clip(74 + 34 * len(labels), 150, 640))
    figure, axes = canvas(480, height)
    reach = 0.26 if len(having) > 3 else 0.18
    offsets = np.linspace(-reach, reach, len(having)) if len(having) > 1 else np.zeros(1)
    for view, offset in zip(having, offsets, strict=True):
        place, mean, half = _series(view, kind, quantity, labels)
        look = theme.style(view.index)
        shown: dict[str, Any] = {
            "color": look.color,
            "marker": look.marker,
            **EDGE,
            "elinewidth": 1.4,
        }
        if kind.ordered:
            axes.errorbar(place + 0.3 * offset, mean, half, ls=look.dash, lw=1.4, **shown)
        else:
            axes.errorbar(mean, place + offset, xerr=half, ls="none", **shown)
    _tick_labels(axes, labels, counts, kind.ordered)
    if kind.ordered:
        label = "frequency rank in the training text (1 = most common)"
        axes.set_xlabel(label, labelpad=27)
        axes.grid(False, axis="x")
        plain_y(axes, unit)
    else:
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.grid(False, axis="y")
        for row in range(0, len(labels), 2):
            axes.axhspan(row - 0.5, row + 0.5, color=theme.INK["band"][0], lw=0, zorder=0)
        axes.set_xlabel(unit)
    alt = (
        f"{title} ({unit}) by {kind.column.replace('_', ' ')} for "
        f"{text.count(len(having), 'run')}, with 95 percent intervals. "
        "The numbers are in the table below the figure."
    )
    key = f"{kind.key}-{quantity.replace('_', '-')}"
    return finish(figure, key, title, alt, having, heading=kind.title)


def _tick_labels(axes: Axes, labels: Sequence[str], counts: Sequence[str], below: bool) -> None:
    """Name and n of every group, on two lines.

    Two texts instead of one with a line break: single lines are anchored at their end (or middle)
    in the SVG, so they stay in place when the page enlarges text on a phone.
    """
    size = 8.5 if below and len(labels) > 7 else 9.5
    axis = axes.xaxis if below else axes.yaxis
    axis.set_ticks(range(len(labels)), [""] * len(labels))
    where = axes.get_xaxis_transform() if below else axes.get_yaxis_transform()
    for i, (label, n) in enumerate(zip(labels, counts, strict=True)):
        for line, shown in enumerate((text.shorten(label, 24), f"n={n}")):
            axes.annotate(
                shown,
                (i, 0) if below else (0, i),
                xycoords=where,
                xytext=(0, -7 - 11 * line) if below else (-5, 1 - 2 * line),
                textcoords="offset points",
                ha="center" if below else "right",
                va="top" if below or line else "bottom",
                fontsize=size,
                color=theme.INK["muted"][0],
                annotation_clip=False,
            )


def _labels(runs: Sequence[View], kind: Kind, quantity: str) -> tuple[list[str], list[str]]:
    """Groups with tokens in any run, in the runs' order, and their n (a range if it differs)."""
    found: dict[str, set[int]] = {}
    for view in runs:
        grouping = _grouping(view, kind)
        for label, n in zip(grouping.labels, grouping.means[quantity].count, strict=True):
            if n:
                found.setdefault(label, set()).add(int(n))
    if kind.ordered:
        order = {label: i for v in runs for i, label in enumerate(_grouping(v, kind).labels)}
        found = dict(sorted(found.items(), key=lambda item: order[item[0]]))
    counts = [
        "–".join(text.short(n, 2) for n in sorted({min(ns), max(ns)})) for ns in found.values()
    ]
    return list(found), counts


def _series(
    view: View, kind: Kind, quantity: str, labels: Sequence[str]
) -> tuple[NDArray, NDArray, NDArray]:
    grouping = _grouping(view, kind)
    means = grouping.means[quantity]
    where = {label: i for i, label in enumerate(grouping.labels)}
    own = [(place, where[label]) for place, label in enumerate(labels) if label in where]
    own = [(place, i) for place, i in own if means.count[i]]
    index = [i for _, i in own]
    half = np.nan_to_num(means.half_width[index])
    return np.array([place for place, _ in own], float), means.mean[index], half
