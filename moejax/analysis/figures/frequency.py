"""Experts, width and loss by how frequent the token is in the training text."""

from __future__ import annotations

from moejax.analysis.evidence import Evidence
from moejax.analysis.figures.base import Figure
from moejax.analysis.figures.grouped import Kind
from moejax.analysis.figures.grouped import build as build_grouped

KIND = Kind(
    key="frequency",
    attribute="by_frequency",
    title="By token frequency",
    caption=(
        "Common tokens on the left, rare ones on the right, in bins of growing size. A slope means "
        "that compute follows rarity; compare it with the slope of the loss."
    ),
    column="frequency_rank",
    ordered=True,
)


def build(evidence: Evidence) -> Figure:
    """Lines over log-spaced bins of the frequency rank."""
    return build_grouped(evidence.runs, KIND)
