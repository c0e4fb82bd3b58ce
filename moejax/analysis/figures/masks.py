"""Learned masks: loss against the share of the experts that a token still uses."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moejax.analysis.charts.spec import Axis, Chart, Rule, Series, series
from moejax.analysis.evidence import Evidence
from moejax.analysis.figures.base import DRAWN, Figure, Row, drawn_note, missing
from moejax.analysis.records import read_record
from moejax.analysis.runs import Record
from moejax.analysis.view import View
from moejax.config.knobs import ConfigError

TITLE = "Learned masks"
CAPTION = (
    "Validation loss against the share of hidden units that a token uses, at each evaluation of a "
    "training that closes masks: it goes from right (all open: the dense model) to left. A flat "
    "curve: what was closed was not needed. The end also had most training, so a curve below its "
    "start says that training helped, not that closing did. Classes, of runs whose masks were made "
    "real: shared experts are in every mask, token-specific ones in some, inactive ones in none."
)
HEADER: Row = (
    "run", "step", "tokens", "active_share", "loss", "layer", "shared", "specific", "inactive",
)  # fmt: skip
ROUTER = "learned_masks"
CLASSES = ("shared", "specific", "inactive")
SURGERY = "surgery.json"


def build(evidence: Evidence) -> Figure:
    """A tab for the curves, one for the classes."""
    trained = [(view, curve) for view in evidence.runs if (curve := _curve(view)) is not None]
    real = [(view, found) for view in evidence.runs if (found := _classes(view)) is not None]
    if not trained and not real:
        why = "no run has learned masks (python -m tools.convert mask makes and trains one)"
        return missing("masks", TITLE, why)
    rows: list[Row] = [HEADER]
    tabs: list[tuple[str, tuple[Chart, ...]]] = []
    for view, table in trained:
        rows += [(view.name, *map(float, at), "", "", "", "") for at in table]
    for view, (layers_L, share_LC) in real:
        for layer, share_C in zip(layers_L.tolist(), share_LC, strict=True):
            rows.append((view.name, "", "", "", "", layer, *map(float, share_C)))
    if trained:
        tabs.append(("Loss", (_losses(trained[:DRAWN]), _shares(trained[:DRAWN]))))
    if real:
        charts = tuple(
            _bars(f"masks-classes-{number}", view, *found)
            for number, (view, found) in enumerate(real[:DRAWN])
        )
        tabs.append(("Classes", charts))
    views = [view for view, _ in trained]
    caption = CAPTION + drawn_note(views, views[:DRAWN])
    return Figure("masks", TITLE, caption, tuple(rows), tuple(tabs))


def _curve(view: View) -> NDArray[np.float64] | None:
    """`[N, 4]`: step, tokens, active share, loss of every evaluation of a run with masks."""
    layers = [
        layer for layer in view.run.model.records("layers") if layer.string("router") == ROUTER
    ]
    if not layers:
        return None
    there = np.mean([_width(layer) + layer.number("shared_width") for layer in layers])
    always = np.mean([layer.number("shared_width") for layer in layers])
    evals = view.run.metrics.eval
    share = (evals["eval/routing/active_width"] + always) / there
    table = np.stack([evals["step"], evals["tokens"], share, evals["eval/loss"]], axis=1)
    table = table[np.isfinite(table).all(axis=1)]
    return table if len(table) else None


def _width(layer: Record) -> float:
    widths = layer.get("widths")
    if not isinstance(widths, list):
        return math.nan
    numbers = [w for w in widths if isinstance(w, int) and not isinstance(w, bool)]
    return float(sum(numbers))


def _losses(trained: list[tuple[View, NDArray[np.float64]]]) -> Chart:
    lines: list[Series] = []
    rules: list[Rule] = []
    for view, table in trained:
        step, tokens, share, loss = table.T
        notes = [
            f"step {int(s)}, {int(t):,} tokens: {a:.1%} active, loss {v:.4f}"
            for s, t, a, v in zip(step, tokens, share, loss, strict=True)
        ]
        lines.append(series(view.name, view.index, share, loss, notes=notes))
        if step[0] == 0 and len(trained) == 1:
            rules.append(Rule(float(loss[0]), "before training"))
    return Chart(
        "masks-loss",
        "Loss by active share",
        f"Line chart of validation loss over the active share for {len(trained)} runs.",
        Axis("hidden units that a token uses, share"),
        Axis("validation loss (nats per token)"),
        tuple(lines),
        tuple(rules),
    )


def _shares(trained: list[tuple[View, NDArray[np.float64]]]) -> Chart:
    return Chart(
        "masks-share",
        "Active share over training",
        f"Line chart of the active share over training tokens for {len(trained)} runs.",
        Axis("training tokens", low=0.0),
        Axis("hidden units that a token uses, share", low=0.0, high=1.0),
        tuple(series(v.name, v.index, table[:, 1], table[:, 2]) for v, table in trained),
    )


def _classes(view: View) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
    """Layers, and `[L, C]` the share of each class among the experts that a layer had."""
    path = Path(view.run.root) / SURGERY
    if not path.is_file():
        return None
    try:
        record = Record(read_record(path, 1))
    except ConfigError as error:
        view.run.note("warning", SURGERY, str(error).replace(str(path), SURGERY))
        return None
    if record.string("kind") != "harden":
        return None
    found = []
    for layer in record.records("layers"):
        counts = [len(v) if isinstance(v := layer.get(name), list) else 0 for name in CLASSES]
        number = layer.number("layer")
        if sum(counts) and math.isfinite(number):
            found.append((number, *(np.array(counts) / sum(counts))))
    if not found:
        view.run.note("warning", SURGERY, "says nothing of layers: no classes of experts")
        return None
    table = np.array(sorted(found))
    return table[:, 0].astype(np.int64), table[:, 1:]


def _bars(
    key: str, view: View, layers_L: NDArray[np.int64], share_LC: NDArray[np.float64]
) -> Chart:
    lines = tuple(
        series(name, look, layers_L, share_LC[:, look]) for look, name in enumerate(CLASSES)
    )
    return Chart(
        key,
        view.name,
        f"Line chart of the share of shared, token-specific and inactive experts by layer of "
        f"{view.name}.",
        Axis("layer", whole=True),
        Axis("share of the experts", low=0.0, high=1.0),
        lines,
    )
