"""Experts, width and loss by language."""

from __future__ import annotations

import numpy as np

from moejax.analysis.evidence import Evidence, Traced
from moejax.analysis.figures.base import Figure
from moejax.analysis.figures.traced.divided import Division, Groups, build_divided


def has_languages(one: Traced) -> bool:
    """Whether a trace is of two languages or more."""
    return one.trace.language_T is not None and np.unique(one.trace.language_T).size > 1


def _groups(one: Traced) -> Groups:
    found = one.trace.language_T
    assert found is not None
    names = tuple(one.labels.language(i) for i in range(int(found.max(initial=0)) + 1))
    return found.astype(np.int64), names


DIVISION = Division(
    key="language",
    title="By language",
    caption=(
        "The same text in several languages costs different numbers of tokens; here is what each "
        "token costs. Look for languages that get fewer experts and have the higher loss."
    ),
    column="language",
    axis="",
    lacks="no trace is of two languages or more",
    has=has_languages,
    groups=_groups,
    ordered=False,
)


def build(evidence: Evidence) -> Figure:
    """Rows of dots, one row per language."""
    return build_divided(evidence, DIVISION)
