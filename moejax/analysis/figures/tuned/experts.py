"""Which experts a task uses: how few, how far tasks share them, and what groups would need."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from moejax.analysis import text
from moejax.analysis.charts import scales
from moejax.analysis.charts.spec import Axis, Chart, Drawable, Grid, Maps, Rule, Series, series
from moejax.analysis.evidence import Evidence, Using
from moejax.analysis.figures.base import DRAWN, Figure, Row, missing
from moejax.analysis.figures.tuned.common import fineness

TITLE = "Experts of a task"
CAPTION = (
    "What ESFT selects by, on a sample of each task's training text. Concentration: the share of a "
    "layer's experts that carry half of its gate scores; far below the rule, few experts do the "
    "work. Selected: experts that reach p, of all. Overlap: shared over united experts of two "
    "tasks' selections; worth noting where it is far from chance. Groups: what is needed where "
    "experts can only be taken by twos or fours, alike ones together; the nearer to single ones "
    "(and the farther from random groups), the better experts sort into groups."
)
HEADER: Row = (
    "run", "experts_per_token", "step", "task", "tokens", "measure", "score", "layer_or_size",
    "with", "value", "reference",
)  # fmt: skip
GATE = "gate"


def build(evidence: Evidence) -> Figure:
    """Charts per run, a line per task; a map of overlaps per run."""
    found = [one for one in evidence.expert_uses if one.uses or one.overlap is not None]
    if not found:
        why = "no run has scores of its experts (python -m tools.esft score writes them)"
        return missing("finetuning-experts", TITLE, why)
    rows = (HEADER, *(row for one in found for row in _rows(one)))
    drawn = found[:DRAWN]
    with_uses = [one for one in drawn if one.uses]
    tabs: list[tuple[str, Sequence[Drawable]]] = [
        ("Concentration", [_concentration(one) for one in with_uses]),
        ("Granularity", _by_granularity(with_uses)),
        ("Selected", [_selected(one) for one in with_uses]),
        ("Overlap", _overlaps(drawn)),
        ("Groups", [chart for one in with_uses if (chart := _groups(one)) is not None]),
    ]
    kept = tuple((label, tuple(charts)) for label, charts in tabs if charts)
    return Figure("finetuning-experts", TITLE, CAPTION, rows, kept)


def _rows(one: Using) -> list[Row]:
    rows: list[Row] = []
    head = one.view.name, one.view.summary.nominal_active_experts
    for use in one.uses:
        own = (*head, use.step, use.task, use.tokens)
        for score, at in use.concentration.items():
            columns = zip(at.layers_L.tolist(), at.share_L, at.uniform_L, strict=True)
            rows += [
                (*own, "share_for_half", score, layer, "", float(share), float(uniform))
                for layer, share, uniform in columns
            ]
        for score, curve in use.curve.items():
            rows += [(*own, "selected_share", score, p, "", share, "") for p, share in curve]
        rows += [
            (*own, "stability", score, "", "", value, "")
            for score, value in use.stability.items()
            if math.isfinite(value)
        ]
        rows += [
            (*own, "grouped_experts", at.score, at.size, at.affinity, at.grouped, at.single)
            for at in use.groups
        ]
    if one.overlap is not None:
        over = one.overlap
        rows += [
            (
                *head, "", a, "", "overlap", over.score, over.p, b,
                float(over.jaccard_AA[i, j]), float(over.chance_AA[i, j]),
            )
            for i, a in enumerate(over.tasks)
            for j, b in enumerate(over.tasks)
            if i < j
        ]  # fmt: skip
    return rows


def _key(one: Using, what: str) -> str:
    return f"finetuning-experts-{what}-{one.view.index}"


def _concentration(one: Using) -> Chart:
    lines = []
    for look, use in enumerate(one.uses):
        at = use.concentration[GATE]
        notes = [
            f"{use.task}, layer {layer}: {count:g} experts, {text.percent(share)}"
            for layer, count, share in zip(at.layers_L, at.experts_L, at.share_L, strict=True)
        ]
        lines.append(series(use.task, look, at.layers_L, at.share_L, notes=notes))
    uniform = float(np.mean([use.concentration[GATE].uniform_L.mean() for use in one.uses]))
    return Chart(
        _key(one, "half"),
        one.view.name,
        f"Line chart of the share of experts that carry half of the gate scores by layer of "
        f"{one.view.name} for {text.count(len(lines), 'task')}.",
        Axis("layer", whole=True),
        Axis("share of the layer's experts with half of the gate scores", low=0.0),
        tuple(lines),
        (Rule(uniform, "all alike"),) if math.isfinite(uniform) else (),
    )


def _by_granularity(found: Sequence[Using]) -> list[Chart]:
    """Mean concentration over how many experts a token uses, a line per task."""
    active = {one.view.name: one.view.summary.nominal_active_experts for one in found}
    known = [one for one in found if active[one.view.name] > 0]
    known.sort(key=lambda one: active[one.view.name])
    if len({active[one.view.name] for one in known}) < 2:
        return []
    lines: list[Series] = []
    for look, task in enumerate(dict.fromkeys(use.task for one in known for use in one.uses)):
        points = [
            (one, use.concentration[GATE]) for one in known for use in one.uses if use.task == task
        ]
        lines.append(
            series(
                task,
                look,
                [math.log2(active[one.view.name]) for one, _ in points],
                [at.share for _, at in points],
                notes=[f"{one.view.name}, {task}: {text.percent(at.share)}" for one, at in points],
            )
        )
    return [
        Chart(
            "finetuning-experts-granularity",
            "By experts per token",
            "Line chart of the mean share of experts that carry half of the gate scores over "
            f"experts per token for {len(known)} runs.",
            fineness(sorted({active[one.view.name] for one in known})),
            Axis("share of experts with half of the gate scores", low=0.0),
            tuple(lines),
        )
    ]


def _selected(one: Using) -> Chart:
    lines = []
    for look, use in enumerate(one.uses):
        curve = use.curve[GATE]
        lines.append(series(use.task, look, [p for p, _ in curve], [share for _, share in curve]))
    return Chart(
        _key(one, "selected"),
        one.view.name,
        f"Line chart of the share of experts that reach a sum of gate scores in {one.view.name}.",
        Axis("p, the sum of gate scores to reach", low=0.0),
        Axis("share of all experts", low=0.0, high=1.0),
        tuple(lines),
    )


def _overlaps(found: Sequence[Using]) -> list[Maps]:
    grids = []
    for one in found:
        over = one.overlap
        if over is None or len(over.tasks) < 2:
            continue
        shown = over.jaccard_AA.copy()
        np.fill_diagonal(shown, np.nan)
        apart = ~np.eye(len(over.tasks), dtype=bool)
        mean, chance = over.jaccard_AA[apart].mean(), over.chance_AA[apart].mean()
        note = f"mean {mean:.2f}, chance {chance:.2f} ({over.score}, p={over.p:g})"
        alt = f"Overlap of the experts of {len(over.tasks)} tasks in {one.view.name}: {note}."
        grids.append(Grid(one.view.name, shown, over.tasks, over.tasks, alt, note))
    if not grids:
        return []
    return [
        Maps(
            key="finetuning-overlap",
            title="Overlap of selections",
            alt=f"Overlap of the experts of tasks in {text.count(len(grids), 'run')}.",
            x="and task",
            y="task",
            quantity="shared over united experts",
            scale=scales.of_values(np.concatenate([grid.value_RC.ravel() for grid in grids])),
            grids=tuple(grids),
        )
    ]


def _groups(one: Using) -> Chart | None:
    """Experts needed over those of a selection one by one, mean over tasks."""
    found: dict[str, dict[int, list[float]]] = {}
    for use in one.uses:
        for at in use.groups:
            if at.score == GATE and at.single > 0 and at.size > 0 and math.isfinite(at.grouped):
                sizes = found.setdefault(at.affinity, {})
                sizes.setdefault(at.size, []).append(at.grouped / at.single)
    if not found:
        return None
    lines = []
    for look, (affinity, sizes) in enumerate(found.items()):
        x = [1, *sorted(sizes)]
        y = [1.0, *(float(np.mean(sizes[size])) for size in sorted(sizes))]
        lines.append(series(affinity, look, x, y))
    return Chart(
        _key(one, "groups"),
        one.view.name,
        "Line chart of experts needed in groups, over those needed singly, by size of the groups "
        f"in {one.view.name}.",
        Axis("experts in a group", whole=True),
        Axis("experts needed, times those taken one by one"),
        tuple(lines),
        (Rule(1.0, "one by one"),),
    )
