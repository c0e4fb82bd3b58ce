"""Shared by the three figures that divide the trace's tokens: class, frequency and domain."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from moejax.analysis import text
from moejax.analysis.charts.spec import Axis, Chart, Series, series
from moejax.analysis.figures.base import DRAWN, Figure, Row, drawn_note, missing
from moejax.analysis.groups import QUANTITIES, Grouping
from moejax.analysis.view import View

LABELS = {
    "active": ("Active experts", "experts per token and layer"),
    "width": ("Active width", "hidden units of routed experts per token and layer"),
    "expert_width": ("Width of a chosen expert", "hidden units, mean over chosen experts"),
    "loss": ("Loss", "nats per token"),
}
INTERVALS = (
    " Bars are 95 % intervals of the mean over tokens, with sequences taken as the independent "
    "draws; n is the number of traced validation tokens."
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
    """Charts for active experts, width, expert width and loss; every run with a trace."""
    traced = [v for v in runs if v.groups is not None]
    header: Row = ("run", "quantity", kind.column, "n", "sequences", "mean", "ci95_half_width")
    rows = [row for view in traced for row in _rows(view, kind)]
    routed = [v for v in traced if v.groups is not None and v.groups.layers]
    drawn = routed[:DRAWN]
    found = [
        _chart(traced[:DRAWN] if quantity == "loss" else drawn, kind, quantity)
        for quantity in (QUANTITIES if drawn else ())
    ]
    charts = tuple(chart for chart in found if chart)
    if not charts:
        return missing(kind.key, kind.title, "no MoE run has an evaluation trace to divide")
    caption = kind.caption + INTERVALS + drawn_note(routed, drawn)
    return Figure(kind.key, kind.title, caption, (header, *rows), (("", charts),))


def _grouping(view: View, kind: Kind) -> Grouping:
    grouping: Grouping = getattr(view.groups, kind.attribute)
    return grouping


def _rows(view: View, kind: Kind) -> list[Row]:
    grouping = _grouping(view, kind)
    return [
        (view.name, quantity, label, int(n), int(sequences), float(mean), float(half))
        for quantity, means in grouping.means.items()
        for label, n, sequences, mean, half in zip(
            grouping.labels,
            means.tokens,
            means.sequences,
            means.mean,
            means.half_width,
            strict=True,
        )
        if n
    ]


def _chart(runs: Sequence[View], kind: Kind, quantity: str) -> Chart | None:
    having = [v for v in runs if quantity in _grouping(v, kind).means]
    labels, counts = _labels(having, kind, quantity)
    if not labels:
        return None
    title, unit = LABELS[quantity]
    reach = 0.26 if len(having) > 3 else 0.18
    offsets = np.linspace(-reach, reach, len(having)) if len(having) > 1 else np.zeros(1)
    lines = tuple(
        _series(view, kind, quantity, labels, offset)
        for view, offset in zip(having, offsets, strict=True)
    )
    named = [f"{text.shorten(label, 24)}, n={n}" for label, n in zip(labels, counts, strict=True)]
    groups = Axis(
        "" if not kind.ordered else "frequency rank in the training text (1 = most common)",
        low=-0.5,
        high=len(labels) - 0.5,
        ticks=tuple((float(i), name) for i, name in enumerate(labels if kind.ordered else named)),
        reverse=not kind.ordered,
    )
    alt = (
        f"{title} ({unit}) by {kind.column.replace('_', ' ')} for "
        f"{text.count(len(having), 'run')}, with 95 percent intervals. "
        "The numbers are in the table below the figure."
    )
    key = f"{kind.key}-{quantity.replace('_', '-')}"
    if kind.ordered:
        return Chart(key, title, alt, groups, Axis(unit), lines)
    height = int(np.clip(74 + 34 * len(labels), 150, 640))
    return Chart(key, title, alt, Axis(unit), groups, lines, height=height, striped=True)


def _series(view: View, kind: Kind, quantity: str, labels: Sequence[str], offset: float) -> Series:
    grouping = _grouping(view, kind)
    means = grouping.means[quantity]
    where = {label: i for i, label in enumerate(grouping.labels)}
    own = [(place, where[label]) for place, label in enumerate(labels) if label in where]
    own = [(place, i) for place, i in own if means.tokens[i]]
    index = [i for _, i in own]
    mean, half = means.mean[index], np.nan_to_num(means.half_width[index])
    place = np.array([place for place, _ in own], float)
    if kind.ordered:
        return series(view.name, view.index, place, mean, low=mean - half, high=mean + half)
    ends: dict[str, Any] = {"low": mean - half, "high": mean + half}
    return series(view.name, view.index, mean, place + offset, "points", **ends, sideways=True)


def _labels(runs: Sequence[View], kind: Kind, quantity: str) -> tuple[list[str], list[str]]:
    """Groups with tokens in any run, in the runs' order, and their n (a range if it differs)."""
    found: dict[str, set[int]] = {}
    for view in runs:
        grouping = _grouping(view, kind)
        for label, n in zip(grouping.labels, grouping.means[quantity].tokens, strict=True):
            if n:
                found.setdefault(label, set()).add(int(n))
    if kind.ordered:
        order = {label: i for v in runs for i, label in enumerate(_grouping(v, kind).labels)}
        found = dict(sorted(found.items(), key=lambda item: order[item[0]]))
    counts = [
        "–".join(text.short(n, 2) for n in sorted({min(ns), max(ns)})) for ns in found.values()
    ]
    return list(found), counts
