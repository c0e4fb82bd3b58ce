"""Shared by the figures of traces: words about the corpus, and charts by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from moejax.analysis import text
from moejax.analysis.charts.spec import Axis, Chart, Rule, Series, series
from moejax.analysis.evidence import TRACED, Evidence, Traced

LOOKS = 7  # series of one chart that can be told apart by colour alone


def about(traced: Sequence[Traced], evidence: Evidence) -> str:
    """On which text a figure was measured, and which runs it leaves out."""
    first = traced[0]
    corpus = first.corpus or "the trainer's validation tokens"
    if first.labels.spec not in ("", corpus):
        corpus = f"{first.labels.spec} ({corpus})"
    tokens = sorted({t.trace.num_tokens for t in traced})
    shown = " to ".join(text.short(n) for n in sorted({tokens[0], tokens[-1]}))
    sentence = f" Measured on {corpus}: {shown} tokens."
    slots = {t.labels.slots for t in traced} - {0}
    if slots:
        least = " or ".join(map(str, sorted(slots)))
        sentence += f" Of each token's experts the first {least} are counted; the model used all."
    moe = sum(view.summary.moe for view in evidence.runs)
    if moe > len(traced):
        why = f"traces of at most {TRACED} runs are measured" if moe > TRACED else "others lack it"
        sentence += f" {len(traced)} of {text.count(moe, 'MoE run')}: {why}."
    return sentence


def by_layer(
    key: str,
    title: str,
    label: str,
    lines: Sequence[Series],
    *,
    rules: Sequence[Rule] = (),
    low: float = float("nan"),
) -> Chart:
    """A line chart over the index of the MoE layer."""
    return Chart(
        key,
        title,
        f"Line chart of {label} in every MoE layer. The numbers are in the table below the figure.",
        Axis("layer (0 is next to the input)", whole=True),
        Axis(label, low=low),
        tuple(lines),
        tuple(rules),
    )


def layer_line(traced: Traced, value_L: ArrayLike, half_L: ArrayLike | None = None) -> Series:
    """One run's values over its layers, with half widths of an interval if there are any."""
    value = np.asarray(value_L, np.float64)
    ends: dict[str, Any] = {}
    if half_L is not None:
        half = np.nan_to_num(np.asarray(half_L, np.float64))
        ends = {"low": value - half, "high": value + half}
    return series(traced.name, traced.view.index, traced.trace.layers_L, value, **ends)


def chance_line(traced: Traced, value_L: ArrayLike) -> Series:
    """The chance level that belongs to a run's line: thin, in its colour."""
    layers = traced.trace.layers_L
    return series(f"{traced.name}, chance", traced.view.index, layers, value_L, "thin", hidden=True)
