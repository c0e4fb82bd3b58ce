"""Which experts serve the same token: co-activation matrices."""

from __future__ import annotations

import numpy as np

from moejax.analysis.charts import scales
from moejax.analysis.charts.spec import Grid, Maps
from moejax.analysis.evidence import Evidence, Traced, spread_layers
from moejax.analysis.figures.base import Figure, Row, missing
from moejax.analysis.figures.traced.common import about
from moejax.analysis.routing.coactivation import chance_co_activation, co_activation
from moejax.analysis.routing.tables import counts

TITLE = "Co-activation"
CAPTION = (
    "Share of the tokens of the row's expert that use the column's expert too (all pairs, as OLMoE "
    "defines it; its published heat maps count neighbours in the list only). Pairs near 1 in both "
    "directions are two experts that are one. First, middle and last layer; of more than 64 "
    "experts the busiest 64."
)
LAYERS, EXPERTS = 3, 64


def build(evidence: Evidence) -> Figure:
    """A matrix per run and picked layer."""
    found = [
        one
        for one in evidence.traced()
        if one.trace.active_LT is not None and (one.trace.active_LT > 1).any()
    ]
    if not found:
        why = "no traced router chooses more than one expert per token"
        return missing("co-activation", TITLE, why)
    rows: list[Row] = [("run", "layer", "expert", "with", "share", "chance_even_loads")]
    grids = [grid for one in found for grid in _grids(one, rows)]
    scale = scales.of_values(np.concatenate([g.value_RC.ravel() for g in grids]))
    maps = Maps(
        key="co-activation",
        title="P(column | row)",
        alt=f"Co-activation matrices of {len(found)} runs.",
        x="and expert",
        y="expert",
        quantity="share",
        scale=scale,
        grids=tuple(grids),
    )
    return Figure(
        "co-activation", TITLE, CAPTION + about(found, evidence), tuple(rows), (("", (maps,)),)
    )


def _grids(one: Traced, rows: list[Row]) -> list[Grid]:
    trace = one.trace
    grids = []
    for i in spread_layers(trace.num_layers, LAYERS):
        layer = slice(i, i + 1)
        mask = trace.exists_LE[layer]
        share = co_activation(trace.expert_LTK[layer], mask)[0]
        assert trace.active_LT is not None
        chance = float(chance_co_activation(trace.active_LT[layer], mask.sum(1))[0])
        count = counts(trace.expert_LTK[layer], mask)[0]
        busiest = np.sort(np.argsort(-count, kind="stable")[: min(EXPERTS, int(mask.sum()))])
        names = tuple(str(e) for e in busiest)
        value = share[np.ix_(busiest, busiest)].copy()
        np.fill_diagonal(value, np.nan)
        index = int(trace.layers_L[i])
        rows += [
            (one.name, index, int(a), int(b), float(share[a, b]), chance)
            for a in busiest
            for b in busiest
            if a != b and np.isfinite(share[a, b])
        ]
        alt = (
            f"Co-activation of {len(busiest)} experts in layer {index} of {one.name}; highest "
            f"{np.nanmax(value, initial=0.0):.2f}, chance for even loads {chance:.2f}."
        )
        note = f"chance {chance:.2f}"
        grids.append(Grid(f"{one.name}, layer {index}", value, names, names, alt, note))
    return grids
