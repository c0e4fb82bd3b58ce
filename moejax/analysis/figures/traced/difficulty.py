"""Experts, width and loss by the stated difficulty of the task."""

from __future__ import annotations

import numpy as np

from moejax.analysis.evidence import Evidence, Traced
from moejax.analysis.figures.base import Figure
from moejax.analysis.figures.traced.divided import Division, Groups, build_divided

LEVELS = 20


def _has(one: Traced) -> bool:
    found = one.trace.difficulty_T
    return found is not None and np.unique(found[np.isfinite(found)]).size > 1


def _groups(one: Traced) -> Groups:
    found = one.trace.difficulty_T
    assert found is not None
    levels = np.unique(found[np.isfinite(found)])[:LEVELS]
    place = np.searchsorted(levels, np.nan_to_num(found))
    same = levels[np.minimum(place, len(levels) - 1)] == found
    return np.where(same, place, -1), tuple(f"{level:g}" for level in levels)


DIVISION = Division(
    key="difficulty",
    title="By difficulty",
    caption="Tokens of tasks whose level of difficulty is known, easiest on the left.",
    column="difficulty",
    axis="level of difficulty",
    lacks="no trace is of tasks with levels of difficulty",
    has=_has,
    groups=_groups,
)


def build(evidence: Evidence) -> Figure:
    """Lines over levels."""
    return build_divided(evidence, DIVISION)
