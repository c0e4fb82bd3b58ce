"""Histograms of the router's distribution: the largest probability, and experts needed for p."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moejax.analysis.charts.spec import Axis, Chart, Series, series
from moejax.analysis.evidence import Evidence, Traced
from moejax.analysis.figures.base import Figure, Row, missing
from moejax.analysis.figures.traced.common import about
from moejax.analysis.routing.grouped import distribution

TITLE = "Router probabilities"
CAPTION = (
    "Left: how many tokens (of all layers together) give their first expert which probability. A "
    "peak at the left end, 1/E, is a router that hardly chooses; one at 1 is a router that has "
    "decided, and learns little more. Right: how many experts it takes to reach the probability "
    "named: what top-p with that threshold would use."
)
BINS = 25
AT = 0.5  # the p nearest to this is drawn; the CSV has all


def build(evidence: Evidence) -> Figure:
    """One histogram of probabilities and one of experts needed."""
    found = evidence.traced(_has)
    if not found:
        why = "no trace has the router's distribution (python -m tools.trace writes it)"
        return missing("probability", TITLE, why)
    rows: list[Row] = [("run", "quantity", "p", "from", "to", "tokens", "share")]
    charts = (_largest(found, rows), _needed(found, rows))
    drawn = tuple(chart for chart in charts if chart)
    if not drawn:
        return missing("probability", TITLE, "the routers have no distribution (hash, random)")
    caption = CAPTION + about(found, evidence)
    return Figure("probability", TITLE, caption, tuple(rows), (("", drawn),))


def _has(one: Traced) -> bool:
    trace = one.trace
    both = trace.need_LTQ is not None and trace.need_p_Q is not None
    return trace.top1_LT is not None or both


def _largest(found: list[Traced], rows: list[Row]) -> Chart | None:
    edges = np.linspace(0.0, 1.0, BINS + 1)
    lines = []
    for one in found:
        if one.trace.top1_LT is None:
            continue
        count = distribution(one.trace.top1_LT, edges).sum(0)
        if count.sum():
            middle = (edges[1:] + edges[:-1]) / 2
            ends = list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))
            lines.append(_line(one, "largest probability", "", middle, ends, count, rows))
    if not lines:
        return None
    return Chart(
        "probability-largest",
        "Largest probability",
        f"Share of tokens by the probability of their first expert for {len(lines)} runs.",
        Axis("probability of the first expert", low=0.0, high=1.0),
        Axis(f"share of tokens, in bins of {1 / BINS:g}", low=0.0),
        tuple(lines),
    )


def _needed(found: list[Traced], rows: list[Row]) -> Chart | None:
    lines, shown = [], set()
    for one in found:
        need, p_Q = one.trace.need_LTQ, one.trace.need_p_Q
        if need is None or p_Q is None or not p_Q.size:
            continue
        drawn = int(np.abs(p_Q - AT).argmin())
        most = int(np.nanmax(need, initial=0))
        edges = np.arange(most + 2)
        experts = np.arange(most + 1, dtype=float)
        for q, p in enumerate(p_Q.tolist()):
            count = distribution(need[..., q], edges).sum(0)
            if not count.sum():
                continue
            ends = [(float(n), float(n)) for n in range(most + 1)]
            line = _line(one, "experts needed", f"{p:.3g}", experts, ends, count, rows)
            if q == drawn:
                lines.append(line)
                shown.add(f"{p:.3g}")
    if not lines:
        return None
    at = " or ".join(sorted(shown))
    return Chart(
        "probability-needed",
        f"Experts needed for p = {at}",
        f"Share of tokens by experts needed to reach p = {at} for {len(lines)} runs.",
        Axis(f"experts needed to reach p = {at}", whole=True),
        Axis("share of tokens", low=0.0),
        tuple(lines),
    )


def _line(
    one: Traced,
    quantity: str,
    p: str,
    x: NDArray[np.float64],
    ends: list[tuple[float, float]],
    count: NDArray[np.int64],
    rows: list[Row],
) -> Series:
    share = count / count.sum()
    numbers = zip(ends, count.tolist(), share.tolist(), strict=True)
    rows += [(one.name, quantity, p, a, b, n, s) for (a, b), n, s in numbers if n]
    return series(one.name, one.view.index, x, share)
