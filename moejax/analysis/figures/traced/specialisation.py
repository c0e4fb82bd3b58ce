"""Which domains use which experts, against the line of no relation."""

from __future__ import annotations

import numpy as np

from moejax.analysis.charts.spec import Axis, Chart, Rule, series
from moejax.analysis.evidence import Evidence, Traced, spread_layers
from moejax.analysis.figures.base import Figure, Row, missing
from moejax.analysis.figures.traced.common import LOOKS, about
from moejax.analysis.routing.specialisation import Specialisation, specialisation

TITLE = "Experts by domain"
CAPTION = (
    "Share of a domain's tokens that use each expert, with 95 % intervals over sequences. The "
    "dotted line is even use without any relation (k/E). Bars far above it, for one domain "
    "alone, are specialised experts; an interval that reaches the line cannot tell. First, "
    "middle and last layer of the first four runs, the 32 busiest experts; the CSV has "
    "these layers of all runs."
)
LAYERS, RUNS, EXPERTS = 3, 4, 32
HEADER: Row = (
    "run", "layer", "domain", "expert", "share", "half_width_95", "chance_uniform", "chance_load",
)  # fmt: skip


def build(evidence: Evidence) -> Figure:
    """Bars per run and layer."""
    found = evidence.traced(_has)
    if not found:
        return missing("specialisation", TITLE, "no trace of an MoE run has two domains or more")
    rows: list[Row] = [HEADER]
    charts: list[Chart] = []
    for i, one in enumerate(found):
        domain = one.trace.domain_T
        assert domain is not None
        names = [one.labels.domain(d) for d in range(int(domain.max()) + 1)]
        layers = spread_layers(one.trace.num_layers, LAYERS)
        table = specialisation(
            one.trace.expert_LTK[layers],
            one.trace.exists_LE[layers],
            domain,
            len(names),
            one.sequence_T,
        )
        rows += _rows(one, table, names, layers)
        if i < RUNS:
            charts += [_chart(one, table, names, j, layer) for j, layer in enumerate(layers)]
    caption = CAPTION + about(found, evidence)
    return Figure("specialisation", TITLE, caption, tuple(rows), (("", tuple(charts)),))


def _has(one: Traced) -> bool:
    return one.trace.domain_T is not None and np.unique(one.trace.domain_T).size > 1


def _rows(one: Traced, table: Specialisation, names: list[str], layers: list[int]) -> list[Row]:
    cells = zip(*np.nonzero(np.isfinite(table.share)), strict=True)
    index = one.trace.layers_L[layers].tolist()
    return [
        (
            one.name, index[i], names[g], int(e), float(table.share[i, g, e]),
            float(table.half_width[i, g, e]), float(table.chance_uniform[i]),
            float(table.chance_load[i, e]),
        )
        for i, g, e in cells
    ]  # fmt: skip


def _chart(one: Traced, table: Specialisation, names: list[str], i: int, row: int) -> Chart:
    exists = np.flatnonzero(one.trace.exists_LE[row])
    order = exists[np.argsort(-np.nan_to_num(table.chance_load[i][exists]), kind="stable")]
    shown = np.sort(order[:EXPERTS])
    place = np.arange(shown.size, dtype=float)
    bars = []
    for g, name in enumerate(names[:LOOKS]):
        share, half = table.share[i, g, shown], np.nan_to_num(table.half_width[i, g, shown])
        bars.append(series(name, g, place, share, "bars", low=share - half, high=share + half))
    layer = int(one.trace.layers_L[row])
    ticks = tuple((float(p), str(e)) for p, e in zip(place, shown, strict=True))
    return Chart(
        f"specialisation-{one.view.index}-{i}",
        f"{one.name}, layer {layer}",
        f"Bars: share of each domain's tokens that use each expert of layer {layer} of {one.name}.",
        Axis("expert", ticks=ticks),
        Axis("share of the domain's tokens", low=0.0),
        tuple(bars),
        (Rule(float(table.chance_uniform[i]), "even"),),
    )
