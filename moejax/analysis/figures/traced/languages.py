"""How far languages are routed apart: divergence from a reference language by layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moejax.analysis.charts.spec import series
from moejax.analysis.evidence import Evidence, Traced
from moejax.analysis.figures.base import Figure, Row, missing
from moejax.analysis.figures.traced.common import LOOKS, about, by_layer
from moejax.analysis.figures.traced.language import has_languages
from moejax.analysis.routing.divergence import divergence_to_reference

TITLE = "Language divergence"
CAPTION = (
    "Entropy-normalised Jensen-Shannon divergence of a language's expert shares from the reference "
    "language's, by layer, less what chance gives (0: routed alike; 1: no expert in common). In "
    "multilingual models it is high in early and late layers and low in the middle, where "
    "languages share experts. The seven languages furthest from it are drawn; the CSV has all."
)
REFERENCES = ("en", "eng", "english")
HEADER: Row = ("run", "layer", "language", "reference", "units", "plug_in", "chance", "adjusted")


def build(evidence: Evidence) -> Figure:
    """A chart per run, a line per language: the same languages, each with its look, in all."""
    found = evidence.traced(has_languages)
    if not found:
        return missing("languages", TITLE, "no trace is of two languages or more")
    rows: list[Row] = [HEADER]
    measured = [_measured(one, rows) for one in found]
    looks = {name: look for look, name in enumerate(_furthest([own for _, own in measured]))}
    charts = tuple(
        by_layer(
            f"languages-{one.view.index}",
            one.name,
            f"divergence from {reference}",
            [
                series(name, looks[name], one.trace.layers_L, value_L)
                for name, value_L in own.items()
                if name in looks
            ],
        )
        for one, (reference, own) in zip(found, measured, strict=True)
        if own
    )
    if not charts:
        return missing("languages", TITLE, "no language has enough aligned units")
    return Figure(
        "languages", TITLE, CAPTION + about(found, evidence), tuple(rows), (("", charts),)
    )


def _measured(one: Traced, rows: list[Row]) -> tuple[str, dict[str, NDArray[np.float64]]]:
    """The reference, and by language the divergence of each layer, of those where it is known."""
    trace = one.trace
    assert trace.language_T is not None
    names = [one.labels.language(i) for i in range(int(trace.language_T.max()) + 1)]
    counts = np.bincount(trace.language_T, minlength=len(names))
    reference = next(
        (i for i, name in enumerate(names) if name.lower() in REFERENCES), int(counts.argmax())
    )
    parallel = trace.parallel_T if trace.parallel_T is not None else None
    if parallel is not None and not (parallel >= 0).any():
        parallel = None
    at = divergence_to_reference(
        trace.expert_LTK,
        trace.exists_LE,
        trace.language_T,
        len(names),
        reference,
        one.sequence_T,
        parallel_T=parallel,
    )
    value = at.normalised
    for g, name in enumerate(names):
        for i, layer in enumerate(trace.layers_L.tolist()):
            if np.isfinite(value.plug_in[i, g]):
                numbers = (value.plug_in[i, g], value.chance[i, g], value.adjusted[i, g])
                units = int(at.units[g])
                rows.append((one.name, layer, name, names[reference], units, *map(float, numbers)))
    known = [g for g in range(len(names)) if np.isfinite(value.adjusted[:, g]).any()]
    return names[reference], {names[g]: value.adjusted[:, g] for g in known}


def _furthest(measured: Sequence[dict[str, NDArray[np.float64]]]) -> list[str]:
    """The `LOOKS` languages furthest from the reference in their furthest layer, mean over runs; in
    the order of the labels."""
    furthest: dict[str, list[float]] = {}
    for own in measured:
        for name, value_L in own.items():
            furthest.setdefault(name, []).append(float(np.nanmax(value_L)))
    ranked = sorted(furthest, key=lambda name: -float(np.mean(furthest[name])))[:LOOKS]
    return [name for name in furthest if name in ranked]
