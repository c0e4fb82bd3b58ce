"""Experts, width and loss by the position of the token in its text."""

from __future__ import annotations

import numpy as np

from moejax.analysis.evidence import Evidence, Traced
from moejax.analysis.figures.base import Figure
from moejax.analysis.figures.traced.divided import Division, Groups, build_divided
from moejax.analysis.metrics import rank_bin, rank_edges


def _has(one: Traced) -> bool:
    return one.trace.position_T is not None and bool((one.trace.position_T > 0).any())


def _groups(one: Traced) -> Groups:
    position = one.trace.position_T
    assert position is not None
    edges = rank_edges(int(position.max(initial=0)))
    names = [
        f"{a - 1}" if b - a == 1 else f"{a - 1}–{b - 2}"
        for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    ]
    return np.asarray(rank_bin(position, edges), np.int64), tuple(names)


DIVISION = Division(
    key="position",
    title="By position",
    caption=(
        "Position of the token in what the model sees of its text, in bins of growing size. The "
        "loss falls as context grows; does the compute follow?"
    ),
    column="position",
    axis="position in the text",
    lacks="no trace has positions",
    has=_has,
    groups=_groups,
)


def build(evidence: Evidence) -> Figure:
    """Lines over log-spaced bins of the position."""
    return build_divided(evidence, DIVISION)
