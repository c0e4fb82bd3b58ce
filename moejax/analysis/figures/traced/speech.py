"""Experts, width and loss by part of speech."""

from __future__ import annotations

import numpy as np

from moejax.analysis.evidence import Evidence, Traced
from moejax.analysis.figures.base import Figure
from moejax.analysis.figures.traced.divided import Division, Groups, build_divided
from moejax.analysis.traces import NO_TAG


def _has(one: Traced) -> bool:
    found = one.trace.pos_T
    return found is not None and np.unique(found[found != NO_TAG]).size > 1


def _groups(one: Traced) -> Groups:
    found = one.trace.pos_T
    assert found is not None
    known = one.labels.parts_of_speech
    tagged = found != NO_TAG
    count = int(found[tagged].max(initial=0)) + 1
    names = tuple(known[i] if i < len(known) else f"tag {i}" for i in range(count))
    return np.where(tagged, found, -1).astype(np.int64), names


DIVISION = Division(
    key="part-of-speech",
    title="By part of speech",
    caption="Tokens of words whose part of speech the source states.",
    column="part of speech",
    axis="",
    lacks="no trace has parts of speech",
    has=_has,
    groups=_groups,
    ordered=False,
)


def build(evidence: Evidence) -> Figure:
    """Rows of dots, one row per part of speech."""
    return build_divided(evidence, DIVISION)
