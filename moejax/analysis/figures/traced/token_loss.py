"""Experts and width by the loss of the token: is compute spent where it is hard?"""

from __future__ import annotations

import numpy as np

from moejax.analysis.evidence import Evidence, Traced
from moejax.analysis.figures.base import Figure
from moejax.analysis.figures.traced.divided import Division, Groups, build_divided
from moejax.analysis.routing.grouped import bin_of, quantile_edges

BINS = 10


def _has(one: Traced) -> bool:
    return one.trace.loss_T is not None and bool(np.isfinite(one.trace.loss_T).any())


def _groups(one: Traced) -> Groups:
    loss = one.trace.loss_T
    assert loss is not None
    edges = quantile_edges(loss, BINS)
    names = tuple(f"{i + 1}" for i in range(max(len(edges) - 1, 0)))
    return bin_of(loss, edges), names


DIVISION = Division(
    key="token-loss",
    title="By token loss",
    caption=(
        "Tokens in tenths by the run's own loss on them, easiest first. A router that spends its "
        "compute on hard tokens rises to the right."
    ),
    column="tenth of the loss",
    axis="tenth of tokens by loss (1 is easiest)",
    lacks="no trace has losses",
    has=_has,
    groups=_groups,
    loss=False,
)


def build(evidence: Evidence) -> Figure:
    """Lines over tenths of the loss."""
    return build_divided(evidence, DIVISION)
