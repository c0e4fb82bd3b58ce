"""Where in its learning-rate schedule a run is when its loss is read."""

from __future__ import annotations

import dataclasses

import numpy as np

from moejax.analysis.runs import Run

PEAK = 0.999  # of the highest rate: above it the rate has not begun to fall


@dataclasses.dataclass(frozen=True)
class Phase:
    """`fraction` of the planned steps done, 1 at the end; `at_peak`: warmed up, not yet decayed."""

    fraction: float
    at_peak: bool


def phase_at(run: Run, step: float) -> Phase:
    """The phase of a finished run after `step` steps (a fraction of a step between evaluations).

    The planned length is `total_steps` of status.json, else the last step there is. `at_peak` is
    read from the logged `train/lr`; without it, it is False.
    """
    total = run.status.number("total_steps")
    steps = [run.metrics.train["step"], run.metrics.eval["step"]]
    if not total >= 1:
        total = max((float(s[-1]) for s in steps if s.size), default=float("nan"))
    return Phase(step / total, _at_peak(run, step))


def _at_peak(run: Run, step: float) -> bool:
    rate, steps = run.metrics.train["train/lr"], run.metrics.train["step"]
    known = np.isfinite(rate) & np.isfinite(steps)
    rate, steps = rate[known], steps[known]
    if not rate.size or rate.max() <= 0:
        return False
    high = rate >= PEAK * rate.max()
    warm = steps[high][0]
    seen = (steps >= warm) & (steps <= step)
    return bool(step >= warm and high[seen].all())


def same_phase(a: Phase, b: Phase, tolerance: float) -> bool:
    """Whether losses read in two phases compare.

    They do at the same fraction of the schedule (up to `tolerance`), and where both runs have only
    known warm-up and the peak rate: then neither has had the gain of a decay, and how long each
    run still is makes no difference to its past.
    """
    return abs(a.fraction - b.fraction) <= tolerance or (a.at_peak and b.at_peak)
