"""Labelled evaluation sets: by domain, language, part of speech, difficulty.

`open_evaluation("domains").documents()` yields `EvaluationDocument`s; docs/data.md has the sets.
"""

from moejax.data.evaluation import (
    domains,
    languages,
    reasoning,
    tables,
    tagged,
    tfds_examples,
    udhr,
)
from moejax.data.evaluation.contract import (
    EVALUATIONS,
    EvaluationSet,
    EvaluationSource,
    Part,
    open_evaluation,
)
from moejax.data.evaluation.documents import EvaluationDocument

__all__ = [
    "EVALUATIONS",
    "EvaluationDocument",
    "EvaluationSet",
    "EvaluationSource",
    "Part",
    "domains",
    "languages",
    "open_evaluation",
    "reasoning",
    "tables",
    "tagged",
    "tfds_examples",
    "udhr",
]
