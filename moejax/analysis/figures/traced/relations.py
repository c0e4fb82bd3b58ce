"""What the choice of experts goes with: the token before, the id, domain, language, rarity."""

from __future__ import annotations

import numpy as np

from moejax.analysis.charts.spec import Chart, Rule, Series
from moejax.analysis.evidence import Evidence, Traced
from moejax.analysis.figures.base import Figure, Row, missing
from moejax.analysis.figures.traced.common import about, by_layer, chance_line, layer_line
from moejax.analysis.routing.correlation import width_frequency_correlation
from moejax.analysis.routing.information import mutual_information
from moejax.analysis.routing.reuse import consecutive_reuse

TITLE = "What routing follows"
CAPTION = (
    "By layer. Reuse: share of a token's experts that the token before it used (thin: chance at "
    "these loads). Information: how far the input token's id, the domain and the language fix the "
    "experts, of all that is possible and corrected for chance (0: not at all, 1: entirely). Width "
    "and frequency: Spearman's rho of active width and token frequency (below 0: rare tokens get "
    "more)."
)


def build(evidence: Evidence) -> Figure:
    """Up to five charts by layer."""
    found = evidence.traced()
    if not found:
        return missing("relations", TITLE, "no MoE run has an evaluation trace")
    rows: list[Row] = [("run", "layer", "measure", "value", "chance")]
    charts = [
        chart
        for chart in (_reuse(found, rows), *_information(found, rows), _width(found, rows))
        if chart
    ]
    if not charts:
        return missing("relations", TITLE, "the traces have no token ids, sequences or ranks")
    return Figure(
        "relations", TITLE, CAPTION + about(found, evidence), tuple(rows), (("", tuple(charts)),)
    )


def _add(rows: list[Row], one: Traced, measure: str, value: np.ndarray, chance: np.ndarray) -> None:
    for layer, v, c in zip(one.trace.layers_L.tolist(), value, chance, strict=True):
        if np.isfinite(v):
            rows.append((one.name, layer, measure, float(v), float(c)))


def _reuse(found: list[Traced], rows: list[Row]) -> Chart | None:
    lines: list[Series] = []
    for one in found:
        at = consecutive_reuse(one.trace.expert_LTK, one.trace.exists_LE, one.sequence_T)
        _add(rows, one, "reuse", at.share, at.chance_share)
        lines += [layer_line(one, at.share), chance_line(one, at.chance_share)]
    if not any(line.x_N.size for line in lines):
        return None
    return by_layer("relations-reuse", "Reuse", "share of experts kept", lines, low=0.0)


def _information(found: list[Traced], rows: list[Row]) -> list[Chart]:
    charts = []
    for key, title, column, of_sequence in (
        ("token", "Token id → expert", "token_T", False),
        ("domain", "Domain → expert", "domain_T", True),
        ("language", "Language → expert", "language_T", True),
    ):
        lines = []
        for one in found:
            label = getattr(one.trace, column)
            if label is None or np.unique(label).size < 2:
                continue
            sequence = one.sequence_T if of_sequence else None
            try:
                at = mutual_information(
                    one.trace.expert_LTK, one.trace.exists_LE, label, sequence_T=sequence
                )
            except ValueError:  # a sequence of two labels: what to deal is not defined
                continue
            _add(rows, one, f"information of {key}", at.share, np.zeros(len(at.share)))
            lines.append(layer_line(one, at.share))
        if any(line.x_N.size for line in lines):
            label = "share of the possible information"
            charts.append(
                by_layer(f"relations-{key}", title, label, lines, rules=[Rule(0.0, "chance")])
            )
    return charts


def _width(found: list[Traced], rows: list[Row]) -> Chart | None:
    lines = []
    for one in found:
        rank, width = one.trace.frequency_rank_T, one.trace.width_LT
        if rank is None or width is None:
            continue
        rho = width_frequency_correlation(width, rank)
        _add(rows, one, "width and frequency", rho, np.zeros(len(rho)))
        lines.append(layer_line(one, rho))
    if not any(line.x_N.size for line in lines):
        return None
    rules = [Rule(0.0, "no relation")]
    return by_layer("relations-width", "Width and frequency", "Spearman's rho", lines, rules=rules)
