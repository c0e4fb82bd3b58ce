"""Does the routing settle? Saturation against the last checkpoint, and churn between neighbours."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from moejax.analysis import text
from moejax.analysis.arrays import ArrayFileError
from moejax.analysis.charts.spec import Axis, Chart, Series, series
from moejax.analysis.evidence import Evidence, Traced, head, spread_layers
from moejax.analysis.figures.base import Figure, Row, missing
from moejax.analysis.figures.traced.common import LOOKS, about
from moejax.analysis.routing.stability import Agreement, churn, saturation
from moejax.analysis.traces import Trace, read_trace

TITLE = "Router stability"
CAPTION = (
    "Saturation: share of a token's final experts that an earlier checkpoint chose too (1: nothing "
    "moves any more). Churn: share of its experts that are new since the evaluation before. Thin "
    "lines: what two checkpoints with these loads would share by chance. Early layers that settle "
    "late, or a churn that does not fall with the learning rate, are worth a look."
)
HEADER: Row = (
    "run", "measure", "step", "fraction", "layer", "tokens", "observed", "chance_load",
    "chance_uniform",
)  # fmt: skip


def build(evidence: Evidence) -> Figure:
    """Two tabs, one chart per run with a line per layer."""
    found = evidence.traced(lambda one: len(one.steps) > 1)
    rows: list[Row] = [HEADER]
    tabs: dict[str, list[Chart]] = {"Saturation": [], "Churn": []}
    others: list[str] = []
    for one in found:
        steps, other = _earlier(one)
        others += [_left_out(one, len(steps), other)] if other else []
        final = one.trace
        pairs = [(s, saturation(t.expert_LTK, final.expert_LTK, final.exists_LE)) for s, t in steps]
        both = [*steps, (final.step or 0, final)]
        moved = [
            (step, churn(a.expert_LTK, b.expert_LTK, final.exists_LE))
            for (_, a), (step, b) in itertools.pairwise(both)
        ]
        for tab, found_at in (("Saturation", pairs), ("Churn", moved)):
            if found_at:
                rows += _rows(one, tab.lower(), found_at)
                tabs[tab].append(_chart(one, tab, found_at))
    drawn = tuple((tab, tuple(charts)) for tab, charts in tabs.items() if charts)
    if not drawn:
        why = "no run has traces of the same tokens at two checkpoints or more"
        why += f" ({text.listing(others)})" if others else ""
        return missing("stability", TITLE, why)
    caption = CAPTION + about(found, evidence)
    caption += f" Left out: {text.listing(others)}." if others else ""
    return Figure("stability", TITLE, caption, tuple(rows), drawn)


def _left_out(one: Traced, kept: int, other: int) -> str:
    """A run of which earlier checkpoints do not count, and whether any do."""
    which = "some" if kept else "all"
    earlier = text.count(other, "earlier checkpoint")
    return f"{one.name} ({which}: {earlier} traced on other tokens or layers than its last)"


def _earlier(one: Traced) -> tuple[list[tuple[int, Trace]], int]:
    """Earlier traces of the same tokens and layers, and how many there are of others.

    Those of other tokens say nothing about stability.
    """
    kept, other = [], 0
    for file in one.steps:
        if file.step >= (one.trace.step or 0):
            continue
        try:
            trace = head(read_trace(file.path))
        except ArrayFileError as error:
            one.view.run.note("warning", f"trace/{file.path.name}", f"{error}: left out")
            continue
        alike = _same(trace.token_T, one.trace.token_T) and trace.num_tokens == one.trace.num_tokens
        if alike and _same(trace.width_LE, one.trace.width_LE):
            kept.append((file.step, trace))
        else:
            other += 1
    return kept, other


def _same(a: NDArray | None, b: NDArray | None) -> bool:
    return (a is None and b is None) or (
        a is not None and b is not None and bool(np.array_equal(a, b))
    )


def _rows(one: Traced, measure: str, found: list[tuple[int, Agreement]]) -> list[Row]:
    last = one.trace.step or 1
    return [
        (
            one.name, measure, step, step / last, layer, int(at.tokens[i]), float(at.observed[i]),
            float(at.chance_load[i]), float(at.chance_uniform[i]),
        )
        for step, at in found
        for i, layer in enumerate(one.trace.layers_L.tolist())
    ]  # fmt: skip


def _chart(one: Traced, tab: str, found: list[tuple[int, Agreement]]) -> Chart:
    last = one.trace.step or 1
    percent = [100 * step / last for step, _ in found]
    lines: list[Series] = []
    for look, i in enumerate(spread_layers(one.trace.num_layers, LOOKS)):
        name = f"layer {int(one.trace.layers_L[i])}"
        observed = [at.observed[i] for _, at in found]
        chance = [at.chance_load[i] for _, at in found]
        lines.append(series(f"{name}, chance", look, percent, chance, "thin", hidden=True))
        lines.append(series(name, look, percent, observed))
    return Chart(
        f"stability-{tab.lower()}-{one.view.index}",
        one.name,
        f"Line chart of router {tab.lower()} over training by layer for {one.name}.",
        Axis("% of training"),
        Axis(tab.lower(), low=0.0, high=1.0),
        tuple(lines),
    )
