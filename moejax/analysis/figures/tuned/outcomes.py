"""Fine-tunings against their base: what each method gains on its task, and what it forgets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from moejax.analysis import text
from moejax.analysis.charts.spec import Axis, Chart, Rule, Series, series
from moejax.analysis.evidence import Evidence
from moejax.analysis.figures.base import Figure, Row, missing, positive_axis
from moejax.analysis.figures.tuned.common import (
    BASES,
    CHANGE,
    COMMAND,
    looks,
    study_of,
    told,
)
from moejax.analysis.finetuning.paired import mean_over
from moejax.analysis.finetuning.study import GENERAL, TASK, Base, Cell, Effect, Study

TITLE = "Fine-tuning"
CAPTION = (
    "Loss of fine-tuned models minus that of their base on the same documents. On the task, left "
    "is better; on the general text, right of the line is what was forgotten. Bars: 95 % intervals "
    "over the documents of the test split, of the mean over seeds; faint dots: each seed. A "
    "difference is worth believing where it is larger than both. In the third view the best corner "
    "is below and left."
)
HEADER: Row = (
    "base", "experts_per_token", "task", "method", "configuration", "p", "share_of_experts",
    "seeds", "task_loss", "task_change", "task_change_low", "task_change_high",
    "task_change_seeds_half_width_95", "general_loss", "general_change", "general_change_low",
    "general_change_high", "general_change_seeds_half_width_95", "answer_accuracy", "exact_match",
    "trainable_parameters", "total_parameters", "stored_bytes", "optimizer_bytes", "step_bytes",
    "step_seconds", "runs",
)  # fmt: skip
ROWS = 60  # of a forest
SEEDS_LOOK = 6  # slate


def build(evidence: Evidence) -> Figure:
    """A forest per base and task for either text; both losses; loss over what is trained."""
    study = study_of(evidence)
    if not study.cells:
        return missing("finetuning", TITLE, COMMAND)
    rows = (HEADER, *map(row, study.cells))
    bases = study.bases[:BASES]
    tabs = [
        ("Task", _forests(study, bases, TASK)),
        ("General text", _forests(study, bases, GENERAL)),
        ("Both", tuple(_both(study, bases))),
        ("Parameters", tuple(_costs(study, bases))),
    ]
    kept = tuple((label, charts) for label, charts in tabs if charts)
    if not kept:
        why = "no fine-tuned run has a score on the same documents as its base"
        return missing("finetuning", TITLE, why)
    more = len(study.bases) - len(bases)
    note = f" The picture shows {len(bases)} of {len(study.bases)} bases." if more > 0 else ""
    return Figure("finetuning", TITLE, CAPTION + note, rows, kept)


def row(cell: Cell) -> Row:
    """All that is known of a cell; means over its seeds, medians of what it cost."""
    task, general = cell.effect(TASK), cell.effect(GENERAL)
    one = cell.runs[0].tuned
    return (
        cell.base.name, cell.base.active, cell.task, cell.method, cell.name, one.p,
        cell.median("share"), len(cell.runs), mean(cell, "answer_loss"), *_ends(task),
        mean(cell, "general_loss"), *_ends(general), mean(cell, "answer_accuracy"),
        mean(cell, "exact_match"), *(cell.median(name) for name in COSTS),
        " ".join(run.tuned.name for run in cell.runs),
    )  # fmt: skip


COSTS = ("trainable", "total", "stored", "optimizer_bytes", "step_bytes", "step_seconds")


def mean(cell: Cell, name: str) -> float:
    """Over seeds, of an attribute of `Score`."""
    found = [getattr(one.score, name) for one in cell.runs]
    return float(np.mean([getattr(value, "mean", value) for value in found]))


def _ends(effect: Effect) -> tuple[float, ...]:
    at = effect.documents
    return at.mean, at.low, at.high, effect.seeds.half_width


def _of(study: Study, base: Base, task: str = "") -> list[Cell]:
    return [cell for cell in study.cells if cell.base is base and (not task or cell.task == task)]


def _name(study: Study, base: Base) -> str:
    return text.shorten(base.name, 40) if len(study.bases) > 1 else ""


def _forests(study: Study, bases: Sequence[Base], what: str) -> tuple[Chart, ...]:
    found = []
    for b, base in enumerate(bases):
        for t, task in enumerate(study.tasks):
            cells = [
                cell
                for cell in _of(study, base, task)
                if math.isfinite(cell.effect(what).mean)
            ][:ROWS]  # fmt: skip
            if cells:
                title = ", ".join(word for word in (task, _name(study, base)) if word)
                key = f"finetuning-{what}-{b + 1}-{t + 1}"
                found.append(_forest(study, cells, what, key, title))
    return tuple(found)


def _forest(study: Study, cells: Sequence[Cell], what: str, key: str, title: str) -> Chart:
    look = looks(study)
    marks: list[Series] = []
    for place, cell in enumerate(cells):
        effect = cell.effect(what)
        at = effect.documents
        seeds = [mean_over(losses).mean for losses in cell.by_seed(what).values()]
        if len(seeds) > 1:
            y = [place + 0.28] * len(seeds)
            marks.append(series("each seed", SEEDS_LOOK, seeds, y, "points", hidden=True))
        marks.append(
            series(
                cell.method,
                look[cell.method],
                [at.mean],
                [float(place)],
                "points",
                low=[at.low if math.isfinite(at.low) else at.mean],
                high=[at.high if math.isfinite(at.high) else at.mean],
                sideways=True,
                notes=[told(cell, effect)],
                hidden=True,
            )
        )
    ticks = tuple((float(i), text.shorten(cell.name, 40)) for i, cell in enumerate(cells))
    return Chart(
        key,
        title,
        f"Forest plot of the change of the {what} loss by method on {title} for {len(cells)} "
        "configurations. The numbers are in the table below the figure.",
        Axis(CHANGE[what]),
        Axis("", low=-0.5, high=len(cells) - 0.5, ticks=ticks, reverse=True),
        tuple(marks),
        (Rule(0.0, "base", "x"),),
        height=int(np.clip(90 + 30 * len(cells), 150, 1200)),
        striped=True,
    )


def _both(study: Study, bases: Sequence[Base]) -> Iterable[Chart]:
    look = looks(study)
    for b, base in enumerate(bases):
        marks = []
        for method in look:
            cells = [cell for cell in _of(study, base) if cell.method == method]
            points = [(cell, cell.effect(TASK), cell.effect(GENERAL)) for cell in cells]
            marks.append(
                series(
                    method,
                    look[method],
                    [general.mean for _, _, general in points],
                    [task.mean for _, task, _ in points],
                    "points",
                    notes=[f"{told(c, t)}; general text {g.mean:+.4f}" for c, t, g in points],
                )
            )
        if any(mark.x_N.size for mark in marks):
            yield Chart(
                f"finetuning-both-{b + 1}",
                _name(study, base),
                "Scatter plot of the change of the task loss over that of the general loss, a "
                f"point per task and method from {base.name}.",
                Axis(CHANGE[GENERAL]),
                Axis(CHANGE[TASK]),
                tuple(marks),
                (Rule(0.0, "base"), Rule(0.0, "base", "x")),
                height=380,
            )


def _costs(study: Study, bases: Sequence[Base]) -> Iterable[Chart]:
    look = looks(study)
    for b, base in enumerate(bases):
        known = [c for c in _of(study, base) if c.median("trainable") > 0]
        known = [c for c in known if math.isfinite(c.effect(TASK).mean)]
        if not known:
            continue
        marks = []
        for method in look:
            cells = [cell for cell in known if cell.method == method]
            x = [cell.median("trainable") for cell in cells]
            y = [cell.effect(TASK).mean for cell in cells]
            notes = [
                f"{told(cell, cell.effect(TASK))}, {text.short(n)} parameters, "
                f"{text.unit(cell.median('stored'), 'B')} stored"
                for cell, n in zip(cells, x, strict=True)
            ]
            marks.append(series(method, look[method], x, y, "points", notes=notes))
        all_x = [cell.median("trainable") for cell in known]
        yield Chart(
            f"finetuning-parameters-{b + 1}",
            _name(study, base),
            "Scatter plot of the change of the task loss over trainable parameters, a point per "
            f"task and method from {base.name}.",
            positive_axis(min(all_x), max(all_x), "trainable parameters"),
            Axis(CHANGE[TASK]),
            tuple(marks),
            (Rule(0.0, "base"),),
            height=380,
        )
