"""Fine-tunings over how much a selection takes, and over how fine the experts of the base are."""

from __future__ import annotations

import math
from collections.abc import Sequence

from moejax.analysis import text
from moejax.analysis.charts.spec import Axis, Chart, Rule, Series
from moejax.analysis.evidence import Evidence
from moejax.analysis.figures.base import Figure, Row, missing
from moejax.analysis.figures.tuned.common import (
    BASES,
    CHANGE,
    COMMAND,
    fineness,
    looks,
    study_of,
    told,
    with_ends,
)
from moejax.analysis.finetuning.study import WHAT, Base, Cell, Study

SHARE_TITLE = "Fine-tuning by share of experts"
SHARE_CAPTION = (
    "What a larger selection buys: change of the loss over the share of the routed experts that "
    "are trained. Points are thresholds p of the cumulative score; the rules are methods that "
    "select no experts. Flat from some p on: the experts beyond it are not needed. Bands: 95 % "
    "over documents."
)
FINE_TITLE = "Fine-tuning by granularity"
FINE_CAPTION = (
    "The same methods from bases of equal size whose experts are cut finer: more, smaller experts "
    "per token. ESFT's promise is that a selection fits a task more closely there, so that its "
    "line falls against full fine-tuning's. Bands: 95 % over documents; other bases are other "
    "models, of one training each, which no band here holds."
)
HEADER: Row = (
    "base", "experts_per_token", "task", "method", "configuration", "what", "p",
    "share_of_experts", "seeds", "change", "low", "high", "seeds_half_width_95",
)  # fmt: skip
LABEL = 0.06
"""Height of a rule's label, of what the rules span."""
LABELS = {"task": "Task", "general": "General text"}


def by_share(evidence: Evidence) -> Figure:
    """A chart per base and task, for either text."""
    study = study_of(evidence)
    if not study.cells:
        return missing("finetuning-share", SHARE_TITLE, COMMAND)
    rows: list[Row] = [HEADER]
    tabs = []
    for what in WHAT:
        charts = []
        for b, base in enumerate(study.bases[:BASES]):
            for t, task in enumerate(study.tasks):
                cells = [c for c in study.cells if c.base is base and c.task == task]
                chart = _over_share(study, cells, what, f"{what}-{b + 1}-{t + 1}")
                if chart is not None:
                    rows += [_row(c, what) for c in cells if math.isfinite(c.median("share"))]
                    charts.append(chart)
        if charts:
            tabs.append((LABELS[what], tuple(charts)))
    if not tabs:
        why = "no base and task has one selection method at two sizes"
        return missing("finetuning-share", SHARE_TITLE, why)
    return Figure("finetuning-share", SHARE_TITLE, SHARE_CAPTION, tuple(rows), tuple(tabs))


def _over_share(study: Study, cells: Sequence[Cell], what: str, key: str) -> Chart | None:
    lines, rules = [], []
    look = looks(study)
    several = False
    for method in look:
        own = [cell for cell in cells if cell.method == method]
        known = [cell for cell in own if math.isfinite(cell.effect(what).mean)]
        selected = [cell for cell in known if math.isfinite(cell.median("share"))]
        selected.sort(key=lambda cell: cell.median("share"))
        if selected:
            several |= len(selected) > 1
            lines.append(
                with_ends(
                    method,
                    look[method],
                    [cell.median("share") for cell in selected],
                    [cell.effect(what) for cell in selected],
                    [told(cell, cell.effect(what)) for cell in selected],
                )
            )
        else:
            rules += [Rule(cell.effect(what).mean, cell.name) for cell in known]
    if not several:
        return None
    title = ", ".join(
        word for word in (cells[0].task, _base(study, cells[0].base)) if word
    )  # fmt: skip
    return Chart(
        f"finetuning-share-{key}",
        title,
        f"Line chart of the change of the {what} loss over the share of trained experts, {title}.",
        Axis("share of the routed experts that train", low=0.0),
        Axis(CHANGE[what]),
        tuple(lines),
        labels_apart([Rule(0.0, "base"), *rules]),
    )


def labels_apart(rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """The rules from the lowest on; those too near each other for two labels share one."""
    ordered = sorted(rules, key=lambda rule: rule.value)
    least = LABEL * (ordered[-1].value - ordered[0].value)
    groups: list[list[Rule]] = []
    for rule in ordered:
        if groups and rule.value - groups[-1][-1].value < least:
            groups[-1].append(rule)
        else:
            groups.append([rule])
    return tuple(
        Rule(rule.value, ", ".join(one.label for one in reversed(group)) if last else "")
        for group in groups
        for rule, last in zip(group, [False] * (len(group) - 1) + [True], strict=True)
    )


def by_granularity(evidence: Evidence) -> Figure:
    """A chart per task, for either text: a line per method over the bases."""
    study = study_of(evidence)
    if not study.cells:
        return missing("finetuning-granularity", FINE_TITLE, COMMAND)
    bases = [base for base in study.bases if base.active > 0]
    if len({base.active for base in bases}) < 2:
        why = "all fine-tunings start from bases with equally many experts per token"
        return missing("finetuning-granularity", FINE_TITLE, why)
    rows: list[Row] = [HEADER]
    tabs = []
    for what in WHAT:
        charts = []
        for t, task in enumerate(study.tasks):
            lines = _over_bases(study, task, what, rows)
            if lines:
                charts.append(
                    Chart(
                        f"finetuning-granularity-{what}-{t + 1}",
                        task,
                        f"Line chart of the change of the {what} loss over experts per token of "
                        f"the base, a line per method, on {task}.",
                        fineness(sorted({base.active for base in bases})),
                        Axis(CHANGE[what]),
                        tuple(lines),
                        (Rule(0.0, "base"),),
                    )
                )
        if charts:
            tabs.append((LABELS[what], tuple(charts)))
    if not tabs:
        why = "no method was tried on one task from two bases"
        return missing("finetuning-granularity", FINE_TITLE, why)
    return Figure("finetuning-granularity", FINE_TITLE, FINE_CAPTION, tuple(rows), tuple(tabs))


def _over_bases(study: Study, task: str, what: str, rows: list[Row]) -> list[Series]:
    """A line per configuration that was tried from two bases of different granularity."""
    lines = []
    cells = [cell for cell in study.cells if cell.task == task and cell.base.active > 0]
    cells = [cell for cell in cells if math.isfinite(cell.effect(what).mean)]
    names = list(dict.fromkeys(cell.name for cell in study.cells))
    for name in names:
        own = sorted((c for c in cells if c.name == name), key=lambda cell: cell.base.active)
        if len({cell.base.active for cell in own}) < 2:
            continue
        rows += [_row(cell, what) for cell in own]
        lines.append(
            with_ends(
                name,
                names.index(name),
                [math.log2(cell.base.active) for cell in own],
                [cell.effect(what) for cell in own],
                [f"{cell.base.name}, {told(cell, cell.effect(what))}" for cell in own],
            )
        )
    return lines


def _row(cell: Cell, what: str) -> Row:
    effect = cell.effect(what)
    at = effect.documents
    return (
        cell.base.name, cell.base.active, cell.task, cell.method, cell.name, what,
        cell.runs[0].tuned.p, cell.median("share"), len(cell.runs), at.mean, at.low, at.high,
        effect.seeds.half_width,
    )  # fmt: skip


def _base(study: Study, base: Base) -> str:
    return text.shorten(base.name, 40) if len(study.bases) > 1 else ""
