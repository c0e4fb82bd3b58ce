"""Loss against tokens, measured active FLOPs and time, with the unigram and bigram lines."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moejax.analysis import metrics, text
from moejax.analysis.charts.spec import Axis, Chart, Rule, Series, series, thinned
from moejax.analysis.evidence import Evidence
from moejax.analysis.figures.base import DRAWN, Figure, Row, missing, positive_axis
from moejax.analysis.view import View

CURVE_POINTS = 60  # of a training curve
POINTS = 200  # of a validation curve in the picture; the CSV has all
# (key of the file, column, tab, axis label)
AXES = (
    ("tokens", "tokens", "Tokens", "training tokens"),
    ("flops", "compute/flops", "Active FLOPs", "measured active training FLOPs"),
    ("time", "time/elapsed", "Time", "training time"),
)
CAPTION = (
    "Lower is better. Bold with markers: loss on the same validation text; thin (at most 12 "
    "runs): training loss, averaged within short stretches. A curve further left reached a loss "
    "with less. Grey lines: what a model reaches that knows only how often each token (unigram) "
    "or each pair of neighbours (bigram) occurs in the training text; above its unigram line it "
    "has learned nothing."
)


def build(evidence: Evidence) -> Figure:
    """Three tabs (tokens, FLOPs, time) of two charts (all of training, the last half closer)."""
    runs = evidence.runs
    header: Row = ("run", "split", "step", "tokens", "flops", "seconds", "loss_nats_per_token")
    rows = [row for view in runs for row in _rows(view)]
    if not rows:
        return missing("loss", "Loss", "no run has logged a finite loss yet")
    rows.extend((name, "validation", "", "", "", "", value) for name, value in baselines(runs))
    tabs = []
    for key, column, tab, label in AXES:
        found = (_whole(runs, key, column, label), _closer(runs, key, column, label))
        if charts := tuple(chart for chart in found if chart):
            tabs.append((tab, charts))
    return Figure("loss", "Loss", CAPTION, (header, *rows), tuple(tabs))


def baselines(runs: Sequence[View]) -> list[tuple[str, float]]:
    """(name, nats per token) of the text that the comparable runs share; finite ones only."""
    for view in runs:
        if view.comparable:
            pairs = [(n, view.run.data.number("baselines", n)) for n in ("unigram", "bigram")]
            if finite := [(n, v) for n, v in pairs if math.isfinite(v)]:
                return finite
    return []


def _rows(view: View) -> list[Row]:
    rows: list[Row] = []
    for split, columns, key in (
        ("validation", view.run.metrics.eval, "eval/loss"),
        ("train", view.run.metrics.train, "train/loss"),
    ):
        loss = columns[key]
        keep = np.flatnonzero(np.isfinite(loss))
        if split == "train" and keep.size > 500:
            # The CSV of a long run stays small: every n-th logged value, the last one included.
            keep = keep[np.unique(np.linspace(0, keep.size - 1, 500).round().astype(int))]
        picked = [
            columns[name][keep] for name in ("step", "tokens", "compute/flops", "time/elapsed")
        ]
        for step, tokens, flops, seconds, value in zip(*picked, loss[keep], strict=True):
            rows.append(
                (
                    view.name,
                    split,
                    int(step),
                    float(tokens),
                    float(flops),
                    float(seconds),
                    float(value),
                )
            )
    return rows


def _curve(view: View, split: str, column: str) -> tuple[NDArray, NDArray]:
    columns = view.run.metrics.eval if split == "eval" else view.run.metrics.train
    x, y = columns[column], columns[f"{split}/loss"]
    good = np.isfinite(x) & np.isfinite(y) & (x > 0)
    return x[good], y[good]


def _time_unit(runs: Sequence[View], column: str) -> tuple[float, str]:
    if column != "time/elapsed":
        return 1.0, ""
    longest = max(
        (x.max() for v in runs for s in ("eval", "train") if (x := _curve(v, s, column)[0]).size),
        default=0.0,
    )
    for seconds, unit in ((3600.0, " (hours)"), (60.0, " (minutes)")):
        if longest > 2 * seconds:
            return seconds, unit
    return 1.0, " (seconds)"


def _whole(runs: Sequence[View], key: str, column: str, label: str) -> Chart | None:
    scale, unit = _time_unit(runs, column)
    evals = {v.index: _curve(v, "eval", column) for v in runs}
    trains = {v.index: _curve(v, "train", column) for v in runs}
    curves = [*evals.values(), *trains.values()]
    xs = [x for x, _ in curves if x.size]
    if not xs:
        return None
    low, high = min(x.min() for x in xs) / scale, max(x.max() for x in xs) / scale
    x_axis = positive_axis(low, high, label + unit)
    lines: list[Series] = []
    for view in runs if len(runs) <= DRAWN else ():
        x, y = trains[view.index]
        x, y = metrics.bin_curve(x / scale, y, CURVE_POINTS, x_axis.log)
        lines.append(series(view.name, view.index, x, y, "thin", hidden=True))
    lines += [_line(view, evals[view.index], scale) for view in runs if evals[view.index][0].size]
    start, bottom, top = _limits(runs, curves, x_axis.log)
    alt = (
        f"Line chart of training and validation loss against {label} for "
        f"{text.count(len(runs), 'run')}, with the unigram and bigram baselines. "
        "The numbers are in the table below the figure."
    )
    return Chart(
        f"loss-{key}",
        "All of training",
        alt,
        dataclasses.replace(x_axis, low=start / scale, high=1.05 * high),
        Axis("loss (nats per token)", low=bottom, high=top),
        tuple(lines),
        tuple(Rule(value, f"{name} {value:.2f}") for name, value in baselines(runs)),
    )


def _closer(runs: Sequence[View], key: str, column: str, label: str) -> Chart | None:
    scale, unit = _time_unit(runs, column)
    curves = [(v, *_curve(v, "eval", column)) for v in runs if v.comparable]
    shown = [(v, x[x >= 0.5 * x[-1]], y[x >= 0.5 * x[-1]]) for v, x, y in curves if x.size]
    if not shown:
        return None
    start, end = min(x[0] for _, x, _ in shown), max(x[-1] for _, x, _ in shown)
    low, high = min(y.min() for *_, y in shown), max(y.max() for *_, y in shown)
    room = 0.08 * (high - low) or 0.02 * high or 1.0
    return Chart(
        f"loss-{key}-closer",
        "The last half, closer",
        f"Line chart of the validation loss over the last half of each run against {label}.",
        positive_axis(start / scale, end / scale, label + unit),
        Axis("validation loss (nats per token)", low=low - room, high=high + room),
        tuple(_line(v, (x, y), scale) for v, x, y in shown),
    )


def _line(view: View, curve: tuple[NDArray, NDArray], scale: float) -> Series:
    x, y = thinned(*curve, POINTS)
    return series(view.name, view.index, x / scale, y)


def _limits(
    runs: Sequence[View], curves: Sequence[tuple[NDArray, NDArray]], log: bool
) -> tuple[float, float, float]:
    """(x from, y from, y to): from below the lowest loss to above the unigram line.

    What is above (the first steps, from ln V down) is cut: there every model does the same.
    """
    values = np.concatenate([y for _, y in curves])
    lines = [value for _, value in baselines(runs)]
    low = min([values.min(), *lines])
    high = max([np.quantile(values, 0.9), *(1.06 * v for v in lines)])
    room = 0.04 * (high - low) or 0.05 * abs(high) or 1.0
    inside = [x[y <= high] for x, y in curves]
    start = min((x.min() for x in inside if x.size), default=math.nan)
    return (0.7 * start if log else math.nan), float(low - room), float(high + room)
