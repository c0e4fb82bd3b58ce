"""How many experts a token gets: the distribution, and its spread by layer."""

from __future__ import annotations

import numpy as np

from moejax.analysis.charts.spec import Axis, Chart, series
from moejax.analysis.evidence import Evidence, Traced
from moejax.analysis.figures.base import Figure, Row, missing
from moejax.analysis.figures.traced.common import about, by_layer
from moejax.analysis.routing.grouped import distribution, reduce_all

TITLE = "Experts per token"
CAPTION = (
    "Left: share of tokens (of all layers together) that use so many experts; one spike is a "
    "router with a fixed number. Right: mean by layer, with a band from the 5th to the 95th "
    "percentile of tokens: memory and the slowest device are sized for the upper end."
)
PERCENT = (0.05, 0.95)


def build(evidence: Evidence) -> Figure:
    """A distribution and a chart by layer."""
    found = evidence.traced()
    if not found:
        return missing("experts-per-token", TITLE, "no MoE run has an evaluation trace")
    rows: list[Row] = [("run", "layer", "quantity", "value")]
    shares, lines = [], []
    for one in found:
        active = _active(one)
        most = int(active.max(initial=0))
        count = distribution(active, np.arange(most + 2)).sum(0)
        share = count / max(count.sum(), 1)
        rows += [(one.name, "all", f"share with {n}", float(s)) for n, s in enumerate(share)]
        shares.append(series(one.name, one.view.index, np.arange(most + 1), share))
        whole = reduce_all(active, one.sequence_T, PERCENT)
        mean, ends = whole.mean[:, 0], whole.quantile[:, 0]
        for i, layer in enumerate(one.trace.layers_L.tolist()):
            named = zip(("mean", "p5", "p95"), (mean[i], *ends[i]), strict=True)
            rows += [(one.name, layer, name, float(value)) for name, value in named]
        layers = one.trace.layers_L
        lines.append(
            series(one.name, one.view.index, layers, mean, low=ends[:, 0], high=ends[:, 1])
        )
    whole_chart = Chart(
        "experts-per-token-share",
        "Distribution",
        f"Share of tokens by number of experts for {len(found)} runs.",
        Axis("experts of a token", whole=True),
        Axis("share of tokens", low=0.0),
        tuple(shares),
    )
    charts = (
        whole_chart,
        by_layer("experts-per-token-layer", "By layer", "experts", lines, low=0.0),
    )
    caption = CAPTION + about(found, evidence)
    return Figure("experts-per-token", TITLE, caption, tuple(rows), (("", charts),))


def _active(one: Traced) -> np.ndarray:
    assert one.trace.active_LT is not None  # `make_trace` fills it in
    return one.trace.active_LT
