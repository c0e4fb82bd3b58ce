"""Differences between two models on the same documents, with the documents as independent draws."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moejax.analysis.clusters import clustered_mean
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
    """Nats per token, with a 95 % interval that takes documents as drawn, not tokens."""
    return clustered_mean(losses.sum_D, losses.count_D)


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
