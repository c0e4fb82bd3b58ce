"""Experts, width and loss by the domain of the text."""

from __future__ import annotations

from moejax.analysis.evidence import Evidence
from moejax.analysis.figures.base import Figure
from moejax.analysis.figures.grouped import Kind
from moejax.analysis.figures.grouped import build as build_grouped

KIND = Kind(
    key="domain",
    attribute="by_domain",
    title="By domain",
    caption="The same quantities by where the text comes from: is one domain given more compute?",
    column="domain",
    ordered=False,
)


def build(evidence: Evidence) -> Figure:
    """Rows of dots, one row per domain."""
    return build_grouped(evidence.runs, KIND)
