"""Shared by the figures that divide tokens by a label: position, loss, difficulty, language, ..."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moejax.analysis.charts.spec import Axis, Chart, Series, series
from moejax.analysis.evidence import Evidence, Traced
from moejax.analysis.figures.base import Figure, Row, missing
from moejax.analysis.figures.traced.common import about
from moejax.analysis.routing.grouped import Grouped, reduce_groups

INTERVALS = (
    " Bars and bands are 95 % intervals of the mean over tokens, with sequences taken as the "
    "independent draws."
)
QUANTITIES = (
    ("active", "Active experts", "experts per token and layer"),
    ("width", "Active width", "hidden units of routed experts per token and layer"),
    ("loss", "Loss", "nats per token"),
)
Groups = tuple[NDArray[np.int64], tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Division:
    """A way to divide tokens. `groups` gives each token's group (-1: none) and the groups' names.

    `lacks` completes "not drawn, because": what no trace has. `ordered` groups are joined.
    """

    key: str
    title: str
    caption: str
    column: str
    axis: str
    lacks: str
    has: Callable[[Traced], bool]
    groups: Callable[[Traced], Groups]
    ordered: bool = True
    loss: bool = True


def build_divided(evidence: Evidence, division: Division) -> Figure:
    """Charts of active experts, active width and loss by group."""
    found = evidence.traced(division.has)
    if not found:
        return missing(division.key, division.title, division.lacks)
    rows: list[Row] = [
        ("run", "quantity", division.column, "tokens", "sequences", "mean", "half_width_95")
    ]
    lines: dict[str, list[Series]] = {key: [] for key, *_ in QUANTITIES}
    names: dict[str, int] = {}
    for one in found:
        group_T, own = division.groups(one)
        for key, value_T in _per_token(one, division.loss).items():
            means = reduce_groups(value_T, group_T, len(own), one.sequence_T, ())
            kept = [g for g in range(len(own)) if means.tokens[g]]
            rows += [_row(one, key, own[g], means, g) for g in kept]
            place = [names.setdefault(own[g], len(names)) for g in kept]
            lines[key].append(_line(one, means, kept, place, division.ordered))
    labels = tuple(names)
    charts = tuple(
        _chart(division, key, title, unit, lines[key], labels)
        for key, title, unit in QUANTITIES
        if any(line.x_N.size for line in lines[key])
    )
    if not charts:
        return missing(division.key, division.title, division.lacks)
    caption = division.caption + INTERVALS + about(found, evidence)
    return Figure(division.key, division.title, caption, tuple(rows), (("", charts),))


def _per_token(one: Traced, loss: bool) -> dict[str, NDArray]:
    trace = one.trace
    assert trace.active_LT is not None and trace.width_LT is not None
    found = {
        "active": trace.active_LT.mean(0, dtype=np.float64),
        "width": trace.width_LT.mean(0, dtype=np.float64),
    }
    return found | ({"loss": trace.loss_T} if loss and trace.loss_T is not None else {})


def _row(one: Traced, key: str, name: str, means: Grouped, g: int) -> Row:
    numbers = (int(means.tokens[g]), int(means.sequences[g]))
    return (one.name, key, name, *numbers, float(means.mean[g]), float(means.half_width[g]))


def _line(
    one: Traced, means: Grouped, kept: Sequence[int], place: Sequence[int], ordered: bool
) -> Series:
    mean, half = means.mean[kept], np.nan_to_num(means.half_width[kept])
    at = np.asarray(place, float)
    ends: dict[str, Any] = {"low": mean - half, "high": mean + half}
    if ordered:
        return series(one.name, one.view.index, at, mean, **ends)
    at = at + 0.1 * (one.view.index % 5 - 2)  # so that marks of runs do not hide each other
    return series(one.name, one.view.index, mean, at, "points", **ends, sideways=True)


def _chart(
    division: Division,
    key: str,
    title: str,
    unit: str,
    lines: Sequence[Series],
    labels: Sequence[str],
) -> Chart:
    ticks = tuple((float(i), label) for i, label in enumerate(labels))
    groups = Axis(
        division.axis, low=-0.5, high=len(labels) - 0.5, ticks=ticks, reverse=not division.ordered
    )
    alt = (
        f"{title} ({unit}) by {division.column} for {len(lines)} runs, with 95 percent intervals. "
        "The numbers are in the table below the figure."
    )
    name = f"{division.key}-{key}"
    if division.ordered:
        return Chart(name, title, alt, groups, Axis(unit), tuple(lines))
    height = int(np.clip(74 + 30 * len(labels), 150, 900))
    value = Axis(unit)
    groups = dataclasses.replace(groups, label="")
    return Chart(name, title, alt, value, groups, tuple(lines), height=height, striped=True)
