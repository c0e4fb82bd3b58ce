"""Parallel coordinates of grid runs: each run a line through its settings to its loss."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from moejax.analysis import text
from moejax.analysis.charts.spec import Axis, Chart, Series, series
from moejax.analysis.evidence import Evidence
from moejax.analysis.figures.base import Figure, Row, missing
from moejax.analysis.grids import axes_of
from moejax.analysis.view import View, ranking

TITLE = "Grid of settings"
CAPTION = (
    "One line per run of the grid, through its value on each axis to its final validation loss "
    "(at the top the highest). Colours are quarters of the runs by loss: where the lines of the "
    "lowest quarter meet an axis at one value, a low loss goes with that setting; where they are "
    "spread over it, it tells little. Colours are about the order only: whether a difference is "
    "beyond noise is in the forest plot. "
)
QUARTERS = ("lowest losses", "second quarter", "third quarter", "highest losses")
AXES = 12  # beside each other; no grid that anyone ran has more
MOST = 200  # lines that can still be followed; the CSV has all
SPREAD = 0.06  # of the lines at one value, by loss, so that they do not hide each other
NAMED = 12  # values of an axis that are written beside it
LOSS = "final loss"
_NUMBER = re.compile(r"(-?[0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)([kKMBG]?)")
_UNITS = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9}


def build(evidence: Evidence) -> Figure:
    """A chart per grid among the comparable finished runs with at least two axes that differ."""
    by_root: dict[str, list[View]] = {}
    for view in ranking(list(evidence.runs)):
        if view.summary.state == "done" and axes_of(view.run):
            by_root.setdefault(str(view.run.root.parent), []).append(view)
    charts = []
    rows: list[Row] = [("grid", "run", "axis", "value")]
    notes = []
    for number, (root, runs) in enumerate(sorted(by_root.items())):
        axes = _axes(runs)
        if len(runs) < 2 or len(axes) < 2:
            continue
        grid = text.clean(root.replace("\\", "/").rpartition("/")[2], 80)
        for view in runs:
            own = axes_of(view.run)
            rows += [(grid, view.name, axis, own.get(axis, "")) for axis in axes]
            rows.append((grid, view.name, LOSS, view.summary.loss))
        charts.append(_chart(number, grid, axes, runs))
        if len(runs) > MOST:
            notes.append(f"The picture of {grid} shows {MOST} of {len(runs)} runs, evenly by loss.")
    if not charts:
        why = "no grid has two finished, comparable runs that differ on two axes or more"
        return missing("parallel", TITLE, why)
    caption = CAPTION + " ".join(notes)
    return Figure("parallel", TITLE, caption.strip(), tuple(rows), (("", tuple(charts)),))


def _axes(runs: Sequence[View]) -> dict[str, list[str]]:
    """Axis -> its values in order, of the axes on which the runs differ."""
    found: dict[str, dict[str, None]] = {}
    for view in runs:
        for axis, value in axes_of(view.run).items():
            found.setdefault(axis, {})[value] = None
    differing = [(axis, ordered(list(v))) for axis, v in found.items() if len(v) > 1]
    return dict(differing[:AXES])


def ordered(values: Sequence[str]) -> list[str]:
    """By number where all are numbers (`0.5`, `50k`, `1e-3`), by text otherwise."""
    matches = [_NUMBER.fullmatch(value) for value in values]
    if all(matches):
        numbers = [float(m[1]) * _UNITS[m[2]] for m in matches if m]
        return [value for _, value in sorted(zip(numbers, values, strict=True))]
    return sorted(values)


def _chart(number: int, grid: str, axes: dict[str, list[str]], runs: Sequence[View]) -> Chart:
    # Values stand evenly in their order, the loss by its size.
    picked = np.unique(np.linspace(0, len(runs) - 1, min(len(runs), MOST)).round().astype(int))
    loss = np.array([view.summary.loss for view in runs])
    span = float(np.ptp(loss)) or 1.0
    x = np.arange(len(axes) + 1, dtype=float)
    lines: list[Series] = []
    seen: set[int] = set()
    for i in reversed(picked.tolist()):  # the lowest losses on top
        own = axes_of(runs[i].run)
        aside = SPREAD * (i / max(len(runs) - 1, 1) - 0.5)
        y = [_height(values, own.get(axis, "")) + aside for axis, values in axes.items()]
        y.append(float((loss[i] - loss.min()) / span))
        told = [f"{runs[i].name}: {axis} {own.get(axis, 'none')}" for axis in axes]
        told.append(f"{runs[i].name}: loss {loss[i]:.4f}")
        quarter = 4 * i // len(runs)
        name = QUARTERS[quarter]
        lines.append(series(name, quarter, x, y, notes=told, hidden=quarter in seen))
        seen.add(quarter)
    ticks = [*((float(i), axis) for i, axis in enumerate(axes)), (float(len(axes)), LOSS)]
    return Chart(
        f"parallel-{number}",
        grid,
        f"Parallel coordinates of {text.count(len(picked), 'run')} of {grid}: "
        f"{', '.join(axes)} and the final loss.",
        Axis("", low=-0.1, high=len(axes) + 0.45, ticks=tuple(ticks)),
        Axis("place on the axis (0: first value or lowest loss)", low=-0.06, high=1.1),
        (*lines, _written(axes, loss)),
        height=420,
    )


def _height(values: Sequence[str], value: str) -> float:
    return values.index(value) / (len(values) - 1) if value in values else float("nan")


def _written(axes: dict[str, list[str]], loss: np.ndarray) -> Series:
    """The values beside the axes, and the ends of the loss."""
    at = [
        (float(i), _height(values, value), value)
        for i, values in enumerate(axes.values())
        for value in (values if len(values) <= NAMED else (values[0], values[-1]))
    ]
    at += [
        (float(len(axes)), 0.0, f"{loss.min():.4f}"),
        (float(len(axes)), 1.0, f"{loss.max():.4f}"),
    ]
    x, y, notes = zip(*at, strict=True)
    return series("values", len(QUARTERS), x, y, "points", notes=notes, written=True, hidden=True)
