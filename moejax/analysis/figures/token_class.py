"""Experts, width and loss by the class of the token."""

from __future__ import annotations

from moejax.analysis.evidence import Evidence
from moejax.analysis.figures.base import Figure
from moejax.analysis.figures.grouped import Kind
from moejax.analysis.figures.grouped import build as build_grouped

KIND = Kind(
    key="token-class",
    attribute="by_class",
    title="By token class",
    caption=(
        "Does the model spend more experts, or wider ones, on some kinds of token? A router with a "
        "fixed number of equal experts cannot: its dots form a vertical line."
    ),
    column="token_class",
    ordered=False,
)


def build(evidence: Evidence) -> Figure:
    """Rows of dots, one row per class."""
    return build_grouped(evidence.runs, KIND)
