"""Which languages use the same experts, against their families, branches and scripts."""

from __future__ import annotations

import numpy as np

from moejax.analysis.charts import scales
from moejax.analysis.charts.spec import Chart, Grid, Maps, Rule, series
from moejax.analysis.evidence import Evidence, Traced
from moejax.analysis.figures.base import Figure, Row, missing
from moejax.analysis.figures.traced.activation import RUNS, Frequencies, frequencies
from moejax.analysis.figures.traced.common import about, by_layer
from moejax.analysis.figures.traced.language import has_languages
from moejax.analysis.languages import GROUPINGS, groups_of
from moejax.analysis.routing.frequency import (
    language_similarity,
    overall_similarity,
    relatedness,
)

TITLE = "Languages and their families"
CAPTION = (
    "Correlation of two languages' activation frequencies, over the experts of all layers, each "
    "expert's mean over the languages taken off: 1 is the same deviation from the mean, and "
    "unrelated languages average -1/(G-1). By layer: how much more alike relatives are than "
    "others. Script is the control: languages that share letters share tokens, relatives or not. "
    "The CSV has the p-values of a permutation of the languages; of few languages none can be "
    "small."
)
LAYER_DEALS = 199
HEADER: Row = (
    "run", "measure", "layer", "first", "second", "value", "within", "between", "pairs", "p_value",
    "nearest_is_relative",
)  # fmt: skip
NAN = float("nan")


def build(evidence: Evidence) -> Figure:
    """Similarity matrices, and the difference between relatives and others by layer."""
    traced = [
        one
        for one in evidence.traced(has_languages)
        if one.trace.num_experts > 1 and _number(one) > 2
    ]
    if not traced:
        return missing("families", TITLE, "no trace is of three languages or more")
    rows: list[Row] = [HEADER]
    grids, charts = [], []
    for one in traced[:RUNS]:
        of = frequencies(one)
        grids.append(_matrix(one, of, rows))
        if chart := _by_layer(one, of, rows):
            charts.append(chart)
    maps = Maps(
        key="families",
        title="Similarity",
        alt=f"Similarities of languages in {len(grids)} runs.",
        x="and language",
        y="language",
        quantity="correlation",
        scale=scales.difference((0.1, 0.25, 0.5, 0.75)),
        grids=tuple(grids),
    )
    tabs: list[tuple[str, tuple[Chart | Maps, ...]]] = [("languages", (maps,))]
    if charts:
        tabs.append(("by layer", tuple(charts)))
    return Figure("families", TITLE, CAPTION + about(traced, evidence), tuple(rows), tuple(tabs))


def _number(one: Traced) -> int:
    """Languages of a trace."""
    return 0 if one.trace.language_T is None else np.unique(one.trace.language_T).size


def _matrix(one: Traced, of: Frequencies, rows: list[Row]) -> Grid:
    value = overall_similarity(of.share_LGE, one.trace.exists_LE)
    for i, j in zip(*np.triu_indices(len(of.names), 1), strict=True):
        if np.isfinite(value[i, j]):
            pair = (of.names[i], of.names[j], float(value[i, j]))
            rows.append((one.name, "similarity", "all", *pair, NAN, NAN, 1, NAN, NAN))
    told = []
    for grouping in GROUPINGS:
        found = relatedness(value, groups_of(of.names, grouping))
        if np.isfinite(found.difference):
            told.append(f"{grouping} {found.difference:+.2f} (p {found.p_value:.2g})")
            rows.append(
                (
                    one.name, grouping, "all", "", "", found.difference, found.within,
                    found.between, found.pairs, found.p_value, found.nearest,
                )
            )  # fmt: skip
    shown = value.copy()
    np.fill_diagonal(shown, np.nan)
    said = "; ".join(told) or "no two languages of one family"
    alt = f"Similarity of {len(of.names)} languages in {one.name}. Relatives less others: {said}."
    return Grid(one.name, shown, of.names, of.names, alt, said)


def _by_layer(one: Traced, of: Frequencies, rows: list[Row]) -> Chart | None:
    by = language_similarity(of.share_LGE, one.trace.exists_LE)
    lines = []
    for look, grouping in enumerate(GROUPINGS):
        groups = groups_of(of.names, grouping)
        found = [relatedness(value, groups, deals=LAYER_DEALS) for value in by]
        for layer, at in zip(one.trace.layers_L.tolist(), found, strict=True):
            if np.isfinite(at.difference):
                numbers = (at.difference, at.within, at.between, at.pairs, at.p_value, at.nearest)
                rows.append((one.name, grouping, layer, "", "", *numbers))
        value_L = [at.difference for at in found]
        lines.append(series(grouping, look, one.trace.layers_L, value_L))
    if not any(line.x_N.size for line in lines):
        return None
    label = "similarity of relatives, less others'"
    key = f"families-{one.view.index}"
    return by_layer(key, one.name, label, lines, rules=[Rule(0.0, "no relation")])
