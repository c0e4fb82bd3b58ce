"""Loss curves of a treatment's runs as one: mean and 95 % interval over seeds, for figures."""

from __future__ import annotations

import dataclasses

import numpy as np

from moejax.analysis.compare.curves import Floats, value_at
from moejax.analysis.compare.treatments import Treatment
from moejax.analysis.intervals import mean_of


@dataclasses.dataclass(frozen=True)
class Band:
    """At `x_N` of an axis: mean loss and half of its 95 % t interval (NaN for one run), `[N]`."""

    runs: int
    x_N: Floats
    mean_N: Floats
    half_width_N: Floats


def band(treatment: Treatment, axis: str) -> Band:
    """The curves of all runs, at every x where one was evaluated and all are inside their range.

    Args:
      axis: one of `AXES`.

    Returns:
      N = 0 where a run has not recorded the axis, or their ranges do not meet.
    """
    curves = [(m.curve.axis(axis), m.curve.loss_N) for m in treatment.members]
    positive = [x_N[x_N > 0] for x_N, _ in curves]
    if all(x_N.size for x_N in positive):
        low, high = max(x_N[0] for x_N in positive), min(x_N[-1] for x_N in positive)
        every = np.unique(np.concatenate(positive))
        places = every[(every >= low) & (every <= high)]
    else:
        places = np.zeros(0)
    means = [mean_of([value_at(*curve, at=float(x)) for curve in curves]) for x in places]
    return Band(
        len(curves),
        places,
        np.array([mean.mean for mean in means]),
        np.array([mean.half_width for mean in means]),
    )
