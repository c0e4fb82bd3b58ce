"""The text itself, its tokens coloured by experts, width or loss of each run."""

from __future__ import annotations

import numpy as np

from moejax.analysis import text
from moejax.analysis.charts import scales
from moejax.analysis.charts.spec import Shade, Words
from moejax.analysis.evidence import Evidence, Traced
from moejax.analysis.figures.base import Figure, Row, missing
from moejax.analysis.figures.traced.common import about

TITLE = "Token by token"
TOKENS = 400
RUNS = 6
LAYERS = 12  # first choices told per token
CAPTION = (
    "The first tokens of the text. Darker is more: experts per layer, hidden units per layer, or "
    "loss in nats. Point at a token for its numbers and its first choice in each layer. "
    f"At most {RUNS} runs."
)
_VISIBLE = {"\\u000a": "↵", "\n": "↵", "\\u0009": "⇥", "\t": "⇥", "\\u000d": "␍", "\r": "␍"}


def build(evidence: Evidence) -> Figure:
    """One stretch of text with a shade per run and quantity."""
    found = evidence.traced(lambda one: one.trace.token_T is not None and bool(one.labels.pieces))
    if not found:
        why = "no trace has the texts of its tokens (python -m tools.trace writes them)"
        return missing("words", TITLE, why)
    token_T = found[0].trace.token_T
    assert token_T is not None
    ids = token_T[:TOKENS]
    # Runs with another tokenizer have other tokens.
    same = [one for one in found if np.array_equal(_ids(one), ids)][:RUNS]
    pieces = tuple(_piece(same[0], int(i)) for i in ids)
    rows: list[Row] = [("run", "token", "text", "experts", "width", "loss")]
    shades = [shade for one in same for shade in _shades(one, len(ids), pieces, rows)]
    words = Words(
        "words",
        "",
        f"{len(ids)} tokens of text, coloured by {shades[0].name}.",
        pieces,
        tuple(shades),
    )
    caption = CAPTION + about(found, evidence)
    return Figure("words", TITLE, caption, tuple(rows), (("", (words,)),))


def _ids(one: Traced) -> np.ndarray:
    assert one.trace.token_T is not None
    return one.trace.token_T[:TOKENS]


def _piece(one: Traced, token: int) -> str:
    piece = one.labels.piece(token)
    for hidden, shown in _VISIBLE.items():
        piece = piece.replace(hidden, shown)
    return text.clean(piece, 60) or "·"


def _shades(one: Traced, count: int, pieces: tuple[str, ...], rows: list[Row]) -> list[Shade]:
    trace = one.trace
    assert trace.active_LT is not None and trace.width_LT is not None
    experts = trace.active_LT[:, :count].mean(0, dtype=np.float64)
    width = trace.width_LT[:, :count].mean(0, dtype=np.float64)
    loss = np.full(count, np.nan) if trace.loss_T is None else trace.loss_T[:count].astype(float)
    first = trace.expert_LTK[:LAYERS, :count, 0] if trace.expert_LTK.shape[2] else None
    notes = []
    for t in range(count):
        rows.append((one.name, t, pieces[t], experts[t], width[t], float(loss[t])))
        told = f"{experts[t]:.2f} experts, width {width[t]:.0f}"
        told += f", loss {loss[t]:.2f}" if np.isfinite(loss[t]) else ""
        if first is not None:
            chosen = (f"{layer}:{e}" for layer, e in _chosen(trace.layers_L, first[:, t]))
            told += f"; first choice by layer {' '.join(chosen)}"
        notes.append(told)
    found = [("experts", experts), ("width", width), ("loss", loss)]
    return [
        Shade(f"{one.name}: {name}", value, scales.of_values(value), tuple(notes))
        for name, value in found
        if np.isfinite(value).any()
    ]


def _chosen(layers_L: np.ndarray, expert_L: np.ndarray) -> list[tuple[int, str]]:
    pairs = zip(layers_L.tolist(), expert_L.tolist(), strict=False)
    return [(layer, "–" if e == 65535 else str(e)) for layer, e in pairs]
