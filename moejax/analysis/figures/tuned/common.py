"""Shared by the figures of fine-tunings: looks of methods, points with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

from moejax.analysis import text
from moejax.analysis.charts.spec import Axis, Kind, Series, series
from moejax.analysis.evidence import Evidence
from moejax.analysis.finetuning.study import Cell, Effect, Study

BASES = 6  # drawn; the CSV has all
COMMAND = "no run is fine-tuned and scored (python -m experiments.finetune_study does both)"
CHANGE = {
    "task": "change of the task loss (nats per answer token)",
    "general": "change of the general loss (nats per token)",
}


def study_of(evidence: Evidence) -> Study:
    """The fine-tunings of a report."""
    return evidence.finetuning


def looks(study: Study) -> dict[str, int]:
    """One look per method, whatever its configuration, in order of appearance."""
    return {name: i for i, name in enumerate(dict.fromkeys(cell.method for cell in study.cells))}


def told(cell: Cell, effect: Effect) -> str:
    """A point in words: mean, interval over documents, interval over seeds."""
    at, seeds = effect.documents, effect.seeds
    words = f"{cell.task}, {cell.name}: {signed(at.mean)}"
    words += f" ({signed(at.low)} to {signed(at.high)} over documents"
    if math.isfinite(seeds.half_width):
        words += f", ± {seeds.half_width:.4f} over {seeds.n} seeds"
    return f"{words})"


def signed(value: float) -> str:
    """`+0.0123`, or a dash."""
    return f"{value:+.4f}" if math.isfinite(value) else text.MISSING


def with_ends(
    name: str,
    look: int,
    x: Sequence[float],
    effects: Sequence[Effect],
    notes: Sequence[str],
    kind: Kind = "line",
) -> Series:
    """A line of effects with their intervals over documents; an unknown end is the mean."""
    found = [effect.documents for effect in effects]
    low = [at.low if math.isfinite(at.low) else at.mean for at in found]
    high = [at.high if math.isfinite(at.high) else at.mean for at in found]
    mean = [at.mean for at in found]
    return series(name, look, x, mean, kind, low=low, high=high, notes=notes)


def fineness(active: Sequence[float]) -> Axis:
    """An axis over log2 of experts per token."""
    ticks = tuple((math.log2(value), f"{value:g}") for value in active)
    return Axis("experts per token of the base: finer experts to the right", ticks=ticks)
