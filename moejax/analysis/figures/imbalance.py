"""How even the load is over training: mean over layers, with a band from best to worst layer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moejax.analysis import arrays, metrics
from moejax.analysis.charts.spec import Axis, Chart, Rule, series
from moejax.analysis.evidence import Evidence
from moejax.analysis.figures.base import DRAWN, Figure, Row, drawn_note, missing
from moejax.analysis.routing import load
from moejax.analysis.view import View

TITLE = "Load over training"
CAPTION = (
    "Busiest expert over a balanced share (1 is balanced, above 2 is bad), and the effective share "
    "of experts in use (1 is all of them), on validation text at each evaluation. Line: mean over "
    "layers; band: from the best to the worst layer. A band that widens is a layer that collapses; "
    "a line that never falls is a balancing method that does not work."
)
FIELDS = {"width_LE": arrays.Field("LE", "iu"), "count_LE": arrays.Field("LE")}
MEASURES = (
    ("max_over_mean", "Busiest expert", "load, max over mean", load.load_max_over_mean, 1.0),
    ("diversity", "Experts in use", "effective share of experts", load.expert_diversity, 1.0),
)


def build(evidence: Evidence) -> Figure:
    """Two charts with one line per MoE run."""
    histories = [(view, _history(view)) for view in evidence.runs if view.run.routing is not None]
    long = [(view, found) for view, found in histories if len(found) > 1]
    if not long:
        why = "no MoE run has its routing at two evaluations or more"
        return missing("imbalance", TITLE, why)
    header: Row = ("run", "step", "tokens", "measure", "mean", "lowest_layer", "highest_layer")
    rows: list[Row] = [header]
    lines: dict[str, list] = {key: [] for key, *_ in MEASURES}
    for view, found in long:
        for key, _, _, measure, _ in MEASURES:
            at = [(step, tokens, measure(c, m)) for step, tokens, c, m in found]
            kept = [(s, t, v[np.isfinite(v)]) for s, t, v in at if np.isfinite(v).any()]
            numbers = [(s, t, float(v.mean()), float(v.min()), float(v.max())) for s, t, v in kept]
            rows += [(view.name, s, t, key, *rest) for s, t, *rest in numbers]
            _, x, mean, low, high = (np.array(c, float) for c in zip(*numbers, strict=True))
            lines[key].append(series(view.name, view.index, x, mean, low=low, high=high))
    charts = tuple(
        Chart(
            f"imbalance-{key.replace('_', '-')}",
            title,
            f"Line chart of {label} over training for {len(lines[key])} runs.",
            Axis("training tokens", low=0.0),
            Axis(label),
            tuple(lines[key][:DRAWN]),
            (Rule(even, "balanced"),),
        )
        for key, title, label, _, even in MEASURES
    )
    views = [view for view, _ in long]
    caption = CAPTION + drawn_note(views, views[:DRAWN])
    return Figure("imbalance", TITLE, caption, tuple(rows), (("", charts),))


def _history(view: View) -> list[tuple[int, float, NDArray, NDArray]]:
    """(step, tokens, count_LE, exists_LE) of every readable routing file, in order."""
    found = []
    evals = view.run.metrics.eval
    for path in reversed(arrays.newest(view.run.root / "routing")):
        try:
            one = arrays.read_arrays(path, FIELDS)
        except arrays.ArrayFileError:
            continue  # noted where the newest one is looked for
        step = int(path.stem)
        tokens = metrics.value_at(evals["step"], evals["tokens"], step)
        if np.isfinite(tokens) and one["count_LE"].size:
            found.append((step, tokens, one["count_LE"], one["width_LE"] >= 0))
    return found
