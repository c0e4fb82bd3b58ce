"""Differences between two models on the same documents, with the documents as independent draws."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moejax.analysis.intervals import t_quantile
from moejax.analysis.records import Estimate

UNKNOWN = Estimate(math.nan, math.nan, math.nan)
Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class Losses:
    """What a text cost by document: names, `sum_D` nats, `count_D` scored tokens, each once."""

    names: tuple[str, ...]
    sum_D: Floats
    count_D: Floats

    def minus(self, other: Losses) -> Losses | None:
        """Nats more than another model's on the same documents; None where they are others."""
        place = {name: i for i, name in enumerate(other.names)}
        if len(place) != len(self.names) or any(name not in place for name in self.names):
            return None
        order = [place[name] for name in self.names]
        if not np.array_equal(self.count_D, other.count_D[order]):
            return None
        return Losses(self.names, self.sum_D - other.sum_D[order], self.count_D)


def mean_over(losses: Losses) -> Estimate:
    """Nats per token, with a 95 % interval that takes documents as drawn, not tokens.

    The ratio of sums `m = sum_d x_d / sum_d n_d` with standard error
    `sqrt(D/(D-1) sum_d (x_d - m n_d)^2) / sum_d n_d` (linearised, cluster-robust) and Student's t
    of D - 1 degrees of freedom, as in docs/interventions.md. Bounds are NaN below two documents.
    """
    scored_D = losses.count_D > 0
    sum_D, count_D = losses.sum_D[scored_D], losses.count_D[scored_D]
    documents, tokens = len(sum_D), float(count_D.sum())
    if not documents:
        return UNKNOWN
    mean = float(sum_D.sum()) / tokens
    if documents == 1:
        return Estimate(mean, math.nan, math.nan)
    squares = float(np.square(sum_D - mean * count_D).sum())
    error = math.sqrt(documents / (documents - 1) * squares) / tokens
    half = t_quantile(documents - 1) * error
    return Estimate(mean, mean - half, mean + half)


def average(several: Sequence[Losses]) -> Losses | None:
    """The mean over models (seeds) by document; None for none, or of different documents."""
    if not several:
        return None
    first = several[0]
    total_D = first.sum_D.copy()
    for other in several[1:]:
        if other.names != first.names or not np.array_equal(other.count_D, first.count_D):
            return None
        total_D += other.sum_D
    return Losses(first.names, total_D / len(several), first.count_D)
