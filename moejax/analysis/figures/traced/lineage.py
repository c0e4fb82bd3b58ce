"""The same experts before and after training: a cut model and what was trained on from it."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from moejax.analysis.arrays import ArrayFileError, Field, read_arrays
from moejax.analysis.charts import scales
from moejax.analysis.charts.spec import Chart, Grid, Maps, series
from moejax.analysis.evidence import Evidence, Traced
from moejax.analysis.figures.base import Figure, Row, missing
from moejax.analysis.figures.traced.activation import EXPERTS
from moejax.analysis.figures.traced.common import about, by_layer
from moejax.analysis.figures.traced.language import has_languages
from moejax.analysis.languages import in_order
from moejax.analysis.routing.change import Change, frequency_change

TITLE = "The same experts before and after training"
CAPTION = (
    "Two models whose hidden units were cut into experts alike (tools.convert moefy), one trained "
    "further: how much more often (orange) or more rarely (blue) tokens of each language use an "
    "expert afterwards, experts in the order of their frequency before. By layer: the correlation "
    "of a language's frequencies before and after, 1 if training moved nothing; and the share of "
    "experts that moved further than the 95 % interval of the paired difference over sequences, "
    "0.05 by chance alone."
)
HEADER: Row = (
    "before", "after", "layer", "language", "expert", "frequency_before", "change",
    "half_width_95", "correlation", "moved",
)  # fmt: skip
PAIRS = 3
SURGERY = "surgery.npz"


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two traced runs of the same experts, languages in the order of their families."""

    before: Traced
    after: Traced
    names: tuple[str, ...]
    change: Change

    @property
    def title(self) -> str:
        """Both names."""
        return f"{self.before.name} to {self.after.name}"


def build(evidence: Evidence) -> Figure:
    """Maps of the change, and its size by layer and language."""
    traced = [one for one in evidence.traced(has_languages) if one.trace.num_experts > 1]
    pairs = _pairs(traced)
    if not pairs:
        why = "no two runs with traces of languages have the same cut (tools.convert moefy)"
        return missing("lineage", TITLE, why)
    shown = pairs[:PAIRS]
    rows: list[Row] = [HEADER]
    for pair in shown:
        rows += _rows(pair)
    maps = Maps(
        key="lineage",
        title="Change of frequency",
        alt=f"Changes of activation frequency in {len(shown)} pairs of runs, by language.",
        x="expert, most frequent before first",
        y="layer",
        quantity="change",
        scale=scales.difference((0.05, 0.1, 0.2, 0.4)),
        grids=tuple(grid for pair in shown for grid in _grids(pair)),
    )
    charts = tuple(chart for number, pair in enumerate(shown) for chart in _charts(number, pair))
    tabs: tuple[tuple[str, tuple[Chart | Maps, ...]], ...] = (
        ("maps", (maps,)),
        ("by layer", charts),
    )
    both = [one for pair in shown for one in (pair.before, pair.after)]
    cut = "" if len(shown) == len(pairs) else f" The first {PAIRS} of {len(pairs)} pairs are shown."
    return Figure("lineage", TITLE, CAPTION + about(both, evidence) + cut, tuple(rows), tuple(tabs))


def _pairs(traced: list[Traced]) -> list[Pair]:
    """Every run with the least trained run of the same experts that saw the same tokens."""
    found: list[Pair] = []
    known: list[tuple[Traced, NDArray]] = []
    for one in sorted(traced, key=lambda one: one.steps[-1].step):
        expert_LF = _cut(one)
        if expert_LF is None:
            continue
        for first, theirs_LF in known:
            if np.array_equal(expert_LF, theirs_LF) and _same_tokens(first, one):
                found.append(_pair(first, one))
                break
        else:
            known.append((one, expert_LF))
    return found


def _cut(one: Traced) -> NDArray | None:
    """Expert of every hidden unit, `[L, F]`; None of a run that was not cut."""
    path = one.view.run.root / SURGERY
    if not path.is_file():
        return None
    try:
        return read_arrays(path, {"expert_LF": Field("LF", "iu")})["expert_LF"]
    except ArrayFileError:
        return None


def _same_tokens(one: Traced, other: Traced) -> bool:
    mine, theirs = one.trace, other.trace
    if mine.exists_LE.shape != theirs.exists_LE.shape or one.labels.slots != other.labels.slots:
        return False
    pairs = ((mine.token_T, theirs.token_T), (mine.language_T, theirs.language_T))
    return all(a is not None and b is not None and np.array_equal(a, b) for a, b in pairs)


def _pair(before: Traced, after: Traced) -> Pair:
    trace = before.trace
    assert trace.language_T is not None
    present = np.unique(trace.language_T)
    names = [before.labels.language(int(i)) for i in present]
    order = np.asarray(in_order(names))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    label_T = rank[np.searchsorted(present, trace.language_T)]
    change = frequency_change(
        trace.expert_LTK,
        after.trace.expert_LTK,
        trace.exists_LE,
        label_T,
        len(names),
        before.sequence_T,
    )
    return Pair(before, after, tuple(names[i] for i in order), change)


def _rows(pair: Pair) -> list[Row]:
    layers = pair.before.trace.layers_L.tolist()
    change, moved_LG = pair.change, pair.change.moved
    rows: list[Row] = []
    for i, g, e in zip(*np.nonzero(np.isfinite(change.difference)), strict=True):
        rows.append(
            (
                pair.before.name, pair.after.name, layers[i], pair.names[g], int(e),
                float(change.before[i, g, e]), float(change.difference[i, g, e]),
                float(change.half_width[i, g, e]), float(change.correlation[i, g]),
                float(moved_LG[i, g]),
            )
        )  # fmt: skip
    return rows


def _grids(pair: Pair) -> list[Grid]:
    layers = tuple(map(str, pair.before.trace.layers_L.tolist()))
    overall_LE = np.nan_to_num(pair.change.before.mean(1), nan=-1.0)
    order_LE = np.argsort(-overall_LE, axis=1, kind="stable")[:, :EXPERTS]
    columns = tuple(str(rank) for rank in range(order_LE.shape[1]))
    grids = []
    for g, name in enumerate(pair.names):
        value_LE = np.take_along_axis(pair.change.difference[:, g], order_LE, axis=1)
        moved = float(np.nanmean(pair.change.moved[:, g]))
        note = f"{moved:.0%} of the experts moved"
        alt = f"Change of the use of {len(columns)} experts for {name}, {pair.title}: {note}."
        grids.append(Grid(f"{pair.title}, {name}", value_LE, layers, columns, alt, note))
    return grids


def _charts(number: int, pair: Pair) -> tuple[Chart, Chart]:
    layers_L = pair.before.trace.layers_L
    kinds = (
        ("correlation", "correlation of frequencies before and after", pair.change.correlation),
        ("moved", "share of experts that moved", pair.change.moved),
    )
    first, second = (
        by_layer(
            f"lineage-{kind}-{number}",
            pair.title,
            label,
            [series(name, g % 28, layers_L, value_LG[:, g]) for g, name in enumerate(pair.names)],
        )
        for kind, label, value_LG in kinds
    )
    return first, second
