"""Validation loss against tokens, FLOPs and time: read between evaluations, never beyond them.

Axis letter: `N` evaluations of one run, in the order of training.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moejax.analysis import text
from moejax.analysis.runs import Run

Floats = NDArray[np.float64]

AXES = {"tokens": "tokens", "flops": "compute/flops", "time": "time/elapsed"}
"""What runs can be compared at equal amounts of -> its column in metrics.jsonl."""

LARGEST = 1e100  # what is larger is no measurement; squares of what is smaller stay finite

NOT_REACHED = "not reached"
EARLIER = "reached before the first evaluation"
NOT_RECORDED = "not recorded"


@dataclasses.dataclass(frozen=True)
class Curve:
    """The evaluations of a run; all float64 `[N]`. A counter that is not usable is NaN throughout.

    Attributes:
      step_N: optimiser steps done.
      tokens_N: training tokens seen.
      flops_N: measured training FLOPs so far: forward and backward, at the widths that were active.
      seconds_N: seconds spent in training steps so far.
      loss_N: validation loss, nats per token.
    """

    step_N: Floats
    tokens_N: Floats
    flops_N: Floats
    seconds_N: Floats
    loss_N: Floats

    def axis(self, name: str) -> Floats:
        """The counter `[N]` of one of `AXES`."""
        return {"tokens": self.tokens_N, "flops": self.flops_N, "time": self.seconds_N}[name]


class Reach(NamedTuple):
    """Where a curve reaches a loss; `x` is NaN where that is not known, and `why` says why."""

    x: float
    why: str


def read_curve(run: Run) -> Curve:
    """The evaluations of a run as they stand in its metrics; N may be 0."""
    rows = run.metrics.eval
    step, tokens, flops, seconds = (_counter(rows[name]) for name in ("step", *AXES.values()))
    return Curve(step, tokens, flops, seconds, rows["eval/loss"])


def _counter(x_N: Floats) -> Floats:
    """The counter, or NaN throughout where it is no measurement or does not grow."""
    good = np.isfinite(x_N) & (np.abs(x_N) < LARGEST) & (x_N >= 0)
    usable = bool(good.all()) and bool((np.diff(x_N) > 0).all())
    return x_N if usable else np.full(x_N.shape, np.nan)


def value_at(x_N: ArrayLike, y_N: ArrayLike, at: float) -> float:
    """y at `at`, on the line between its two neighbours over the logarithm of x.

    Loss curves bend much less over log x than over x; with evaluations far apart, a straight line
    over x would lie above the curve. Points with x <= 0 (an evaluation before the first step) and
    points that are not finite have no place on such a line and are left out.

    Args:
      x_N: strictly growing; `[N]`.
      y_N: `[N]`.
      at: in the unit of x.

    Returns:
      y, exactly that of a point where `at` is a point's x; NaN outside of the points' range.
    """
    x, y = _points(x_N, y_N)
    if not x.size or not x[0] <= at <= x[-1]:
        return math.nan
    return float(np.interp(math.log(at), np.log(x), y))


def first_reach(x_N: ArrayLike, y_N: ArrayLike, target: float) -> Reach:
    """The least x at which the curve of `value_at` is at or below `target`.

    Args:
      x_N: strictly growing; `[N]`.
      y_N: `[N]`; it may rise again later.
      target: in the unit of y.

    Returns:
      x with `why` "", or NaN and one of NOT_REACHED (the measured range ends above the target),
      EARLIER (the first point is below it already), NOT_RECORDED (no usable points).
    """
    x, y = _points(x_N, y_N)
    if not x.size:
        return Reach(math.nan, NOT_RECORDED)
    below = np.flatnonzero(y <= target)
    if not below.size:
        return Reach(math.nan, NOT_REACHED)
    i = int(below[0])
    if y[i] == target:
        return Reach(float(x[i]), "")
    if i == 0:
        return Reach(math.nan, EARLIER)
    share = (y[i - 1] - target) / (y[i - 1] - y[i])
    low, high = math.log(x[i - 1]), math.log(x[i])
    return Reach(math.exp(low + float(share) * (high - low)), "")


def _points(x_N: ArrayLike, y_N: ArrayLike) -> tuple[Floats, Floats]:
    x, y = np.asarray(x_N, np.float64), np.asarray(y_N, np.float64)
    good = np.isfinite(x) & np.isfinite(y) & (x > 0)
    return x[good], y[good]


def amount(axis: str, value: float) -> str:
    """A value of an axis for people: `1.51M tokens`, `13 TFLOP`, `4 min 05 s`."""
    if axis == "tokens":
        return f"{text.short(value)} tokens"
    return text.unit(value, "FLOP") if axis == "flops" else text.duration(value)
