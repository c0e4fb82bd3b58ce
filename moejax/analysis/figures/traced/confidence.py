"""How sure the router is: entropy, largest probability, margin, and experts needed for p."""

from __future__ import annotations

import numpy as np

from moejax.analysis.charts.spec import Axis, Chart, series
from moejax.analysis.evidence import Evidence, Traced
from moejax.analysis.figures.base import Figure, Row, missing
from moejax.analysis.figures.traced.common import about, by_layer, layer_line
from moejax.analysis.routing.confidence import normalised_entropy
from moejax.analysis.routing.grouped import reduce_all

TITLE = "Router confidence"
CAPTION = (
    "Entropy of the router's distribution over ln E (1: it does not choose at all), its largest "
    "probability, the margin to the second (near 0 rounding decides), and how many experts it "
    "takes to reach a probability p, mean over layers: what top-p would use."
)
MEASURES = (
    ("entropy", "Entropy", "entropy over ln E"),
    ("top1", "Largest probability", "probability"),
    ("margin", "Margin", "first minus second probability"),
)


def build(evidence: Evidence) -> Figure:
    """Three charts by layer and one over p."""
    found = evidence.traced(lambda one: one.trace.entropy_LT is not None)
    if not found:
        why = "no trace has the router's distribution (python -m tools.trace writes it)"
        return missing("confidence", TITLE, why)
    rows: list[Row] = [("run", "layer", "measure", "mean", "half_width_95")]
    charts = []
    for key, title, label in MEASURES:
        lines = []
        for one in found:
            if (value := _value(one, key)) is None:
                continue
            whole = reduce_all(value, one.sequence_T, ())
            mean, half = whole.mean[:, 0], whole.half_width[:, 0]
            layers = one.trace.layers_L.tolist()
            numbers = zip(layers, mean, half, strict=True)
            rows += [(one.name, i, key, float(m), float(h)) for i, m, h in numbers]
            lines.append(layer_line(one, mean, half))
        if any(line.x_N.size for line in lines):
            charts.append(by_layer(f"confidence-{key}", title, label, lines, low=0.0))
    if need := _needed(found, rows):
        charts.append(need)
    if not charts:
        return missing("confidence", TITLE, "the routers have no distribution (hash, random)")
    return Figure(
        "confidence", TITLE, CAPTION + about(found, evidence), tuple(rows), (("", tuple(charts)),)
    )


def _value(one: Traced, key: str) -> np.ndarray | None:
    trace = one.trace
    if key == "entropy":
        assert trace.entropy_LT is not None
        return normalised_entropy(trace.entropy_LT, trace.exists_LE.sum(1))
    return trace.top1_LT if key == "top1" else trace.margin_LT


def _needed(found: list[Traced], rows: list[Row]) -> Chart | None:
    lines = []
    for one in found:
        need, p_Q = one.trace.need_LTQ, one.trace.need_p_Q
        if need is None or p_Q is None or not np.isfinite(need).any():
            continue
        mean = np.nanmean(need.astype(np.float64), axis=(0, 1))
        rows += [
            (one.name, "all", f"experts needed for p = {p:.3g}", float(m), float("nan"))
            for p, m in zip(p_Q.tolist(), mean, strict=True)
        ]
        lines.append(series(one.name, one.view.index, p_Q, mean))
    if not lines:
        return None
    alt = f"Experts needed to reach a probability p for {len(lines)} runs."
    x, y = Axis("probability p"), Axis("experts needed", low=0.0)
    return Chart("confidence-need", "Experts needed for p", alt, x, y, tuple(lines))
