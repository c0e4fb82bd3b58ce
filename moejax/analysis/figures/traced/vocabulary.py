"""How far the token alone fixes its expert: vocabulary specialisation by layer."""

from __future__ import annotations

from moejax.analysis.evidence import Evidence
from moejax.analysis.figures.base import Figure, Row, missing
from moejax.analysis.figures.traced.common import about, by_layer, chance_line, layer_line
from moejax.analysis.routing.vocabulary import vocabulary_specialisation

TITLE = "Vocabulary specialisation"
CAPTION = (
    "Mean share of a token id's assignments that go to its favourite expert, over ids that occur "
    "often enough; thin lines: the same with ids dealt to tokens at random. High for input ids and "
    "falling with depth is common; near 1 in deep layers, context is not used."
)
TABS = (
    ("token_T", "input", "Input token"),
    ("target_T", "target", "Next token"),
    ("predicted_T", "predicted", "Predicted token"),
)


def build(evidence: Evidence) -> Figure:
    """A chart by layer for the input, the next and the predicted token."""
    found = evidence.traced(lambda one: one.trace.token_T is not None)
    rows: list[Row] = [("run", "layer", "token", "ids", "observed", "chance")]
    charts = []
    for column, key, title in TABS:
        lines = []
        for one in found:
            ids = getattr(one.trace, column)
            if ids is None:
                continue
            at = vocabulary_specialisation(one.trace.expert_LTK, one.trace.exists_LE, ids)
            if not at.id_V.size:
                continue
            layers = one.trace.layers_L.tolist()
            numbers = zip(layers, at.observed, at.chance, strict=True)
            rows += [(one.name, i, key, at.id_V.size, float(o), float(c)) for i, o, c in numbers]
            lines += [layer_line(one, at.observed), chance_line(one, at.chance)]
        if lines:
            label = "mean share of the favourite expert"
            charts.append(by_layer(f"vocabulary-{key}", title, label, lines, low=0.0))
    if not charts:
        why = "no trace has token ids that occur often enough"
        return missing("vocabulary", TITLE, why)
    return Figure(
        "vocabulary", TITLE, CAPTION + about(found, evidence), tuple(rows), (("", tuple(charts)),)
    )
