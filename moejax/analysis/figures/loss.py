"""Loss against tokens, measured active FLOPs and time, with the unigram and bigram lines."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from moejax.analysis import metrics, text, theme
from moejax.analysis.figures.base import (
    DRAWN,
    EDGE,
    Figure,
    Panel,
    Row,
    canvas,
    finish,
    plain_y,
    positive_axis,
    spread,
)
from moejax.analysis.view import View

CURVE_POINTS = 60
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


def build(runs: Sequence[View]) -> Figure:
    """Three tabs (tokens, FLOPs, time) of two panels (all of training, the last half closer)."""
    header: Row = ("run", "split", "step", "tokens", "flops", "seconds", "loss_nats_per_token")
    rows: list[Row] = [header]
    for view in runs:
        rows.extend(_rows(view))
    rows.extend((name, "validation", "", "", "", "", value) for name, value in baselines(runs))
    if len(rows) == 1 + len(baselines(runs)):
        return Figure(
            "loss",
            "Loss",
            CAPTION,
            tuple(rows),
            empty="No run has logged a finite loss yet.",
        )
    tabs = []
    for key, column, tab, label in AXES:
        panels = tuple(
            p for p in (_whole(runs, key, column, label), _closer(runs, key, column, label)) if p
        )
        if panels:
            tabs.append((tab, panels))
    return Figure("loss", "Loss", CAPTION, tuple(rows), tuple(tabs), drawn=tuple(runs))


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


def _whole(runs: Sequence[View], key: str, column: str, label: str) -> Panel | None:
    scale, unit = _time_unit(runs, column)
    evals = {v.index: _curve(v, "eval", column) for v in runs}
    trains = {v.index: _curve(v, "train", column) for v in runs}
    xs = [x for x, _ in [*evals.values(), *trains.values()] if x.size]
    if not xs:
        return None
    figure, axes = canvas(480, 340)
    low, high = min(x.min() for x in xs) / scale, max(x.max() for x in xs) / scale
    log = positive_axis(axes, low, high, label + unit)
    plain_y(axes, "loss (nats per token)")
    for view in runs if len(runs) <= DRAWN else ():
        look = theme.style(view.index)
        x, y = metrics.bin_curve(
            trains[view.index][0] / scale, trains[view.index][1], CURVE_POINTS, log
        )
        axes.plot(x, y, color=look.color, lw=0.9, alpha=0.55)
    for view in runs:
        x, y = evals[view.index]
        _line(axes, view, x / scale, y)
    _baselines(axes, runs)
    _limits(axes, runs, [*evals.values(), *trains.values()], scale)
    alt = (
        f"Line chart of training and validation loss against {label} for "
        f"{text.count(len(runs), 'run')}, with the unigram and bigram baselines. "
        "The numbers are in the table below the figure."
    )
    return finish(figure, f"loss-{key}", "All of training", alt, runs, heading="Loss")


def _closer(runs: Sequence[View], key: str, column: str, label: str) -> Panel | None:
    scale, unit = _time_unit(runs, column)
    curves = [(v, *_curve(v, "eval", column)) for v in runs if v.comparable]
    curves = [(v, x / scale, y) for v, x, y in curves if x.size]
    if not curves:
        return None
    end = max(x[-1] for _, x, _ in curves)
    shown = [(v, x[x >= 0.5 * x[-1]], y[x >= 0.5 * x[-1]]) for v, x, y in curves]
    figure, axes = canvas(480, 340)
    start = min(x[0] for _, x, _ in shown)
    positive_axis(axes, start, end, label + unit)
    plain_y(axes, "validation loss (nats per token)")
    for view, x, y in shown:
        _line(axes, view, x, y)
    low, high = min(y.min() for *_, y in shown), max(y.max() for *_, y in shown)
    room = 0.08 * (high - low) or 0.02 * high or 1.0
    axes.set_ylim(low - room, high + room)
    if len(shown) <= 8:
        _end_labels(axes, shown, 0.055 * (high - low + 2 * room))
    alt = f"Line chart of the validation loss over the last half of each run against {label}."
    seen = [v for v, *_ in shown]
    return finish(figure, f"loss-{key}-closer", "The last half, closer", alt, seen, heading="Loss")


def _line(axes: Axes, view: View, x: NDArray, y: NDArray) -> None:
    look = theme.style(view.index)
    if x.size > 200:
        keep = np.unique(np.linspace(0, x.size - 1, 200).round().astype(int))
        x, y = x[keep], y[keep]
    every = max(1, x.size // 12)
    # Markers count back from the end, so that the final value always has one.
    marks = list(range(x.size - 1, -1, -every))
    axes.plot(x, y, color=look.color, ls=look.dash, marker=look.marker, markevery=marks, **EDGE)


def _end_labels(axes: Axes, shown: Sequence[tuple[View, NDArray, NDArray]], gap: float) -> None:
    places = spread([y[-1] for *_, y in shown], gap)
    for (_, x, y), place in zip(shown, places, strict=True):
        axes.annotate(
            text.fixed(y[-1], 3),
            (x[-1], place),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=10,
            annotation_clip=False,
        )


def _baselines(axes: Axes, runs: Sequence[View]) -> None:
    for name, value in baselines(runs):
        axes.axhline(value, color=theme.INK["base"][0], lw=1.1, ls=(0, (2, 2)), zorder=1.5)
        axes.annotate(
            f"{name} {value:.2f}",
            (1, value),
            xycoords=("axes fraction", "data"),
            xytext=(-4, 3),
            textcoords="offset points",
            ha="right",
            fontsize=9.5,
            color=theme.INK["muted"][0],
        )


def _limits(
    axes: Axes, runs: Sequence[View], curves: Sequence[tuple[NDArray, NDArray]], scale: float
) -> None:
    """From just below the lowest loss to just above the unigram line, from where a curve enters.

    What is above (the first steps, from ln V down) is cut: there every model does the same.
    """
    values = np.concatenate([y for _, y in curves])
    lines = [value for _, value in baselines(runs)]
    low = min([values.min(), *lines])
    high = max([np.quantile(values, 0.9), *(1.06 * v for v in lines)])
    room = 0.04 * (high - low) or 0.05 * abs(high) or 1.0
    axes.set_ylim(low - room, high + room)
    inside = [x[y <= high] for x, y in curves]
    start = min((x.min() for x in inside if x.size), default=math.nan)
    if math.isfinite(start) and axes.get_xscale() == "log":
        axes.set_xlim(left=0.7 * start / scale)
