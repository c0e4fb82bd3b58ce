"""The table of fine-tunings: on the page, and for papers."""

from __future__ import annotations

from collections.abc import Sequence

from moejax.analysis import text
from moejax.analysis.finetuning.study import GENERAL, TASK, Cell, Effect, Study
from moejax.analysis.page import tables
from moejax.analysis.page.html import Html, el
from moejax.analysis.page.sections import caption, link, section

KEY = "finetuning-table"
HEADS = (
    "Base", "Task", "Method", "Seeds", "Task loss, change", "± documents", "± seeds",
    "General loss, change", "± documents", "± seeds", "Accuracy", "Rank", "Trained", "Of all",
    "Stored", "Optimizer", "Step memory", "Step time",
)  # fmt: skip
CAPTION = (
    "Fine-tuned models against their base: changes in nats per token on the task's test split and "
    "on the general text (what was forgotten), with half of the 95 % intervals over documents and "
    "over seeds (Student's t; of two seeds it is very wide)."
)


def rows(study: Study) -> list[Sequence[object]]:
    """One line per base, task and configuration, rounded for reading, header first."""
    return [HEADS, *(_row(cell) for cell in study.cells)]


def table_section(study: Study) -> Html | None:
    """The table on the page; None without fine-tunings."""
    if not study.cells:
        return None
    header, *body = rows(study)
    return section(
        KEY,
        "Fine-tuned models",
        caption(
            f"{CAPTION} Rank: of low-rank updates, of MultiLoRA modules times rank. Of all: "
            "trained parameters over all of them. Stored: the adapter. Step "
            "memory: arguments and temporaries of the compiled train step."
        ),
        el("div", tables.table(header, body, "Fine-tuned models"), cls="wrap"),
        el("div", link("data/finetuning.csv", "CSV"), cls="more"),
    )


def _row(cell: Cell) -> Sequence[object]:
    trained, total = cell.median("trainable"), cell.median("total")
    accuracy = [one.score.answer_accuracy for one in cell.runs]
    seconds = cell.median("step_seconds")
    return (
        text.shorten(cell.base.name, 40),
        cell.task,
        cell.name,
        len(cell.runs),
        *_shown(cell.effect(TASK)),
        *_shown(cell.effect(GENERAL)),
        text.percent(sum(accuracy) / len(accuracy)),
        _rank(cell),
        text.short(trained),
        text.percent(trained / total) if total else text.MISSING,
        text.unit(cell.median("stored"), "B"),
        text.unit(cell.median("optimizer_bytes"), "B"),
        text.unit(cell.median("step_bytes"), "B"),
        text.unit(seconds * 1000, "ms") if seconds < 1 else text.duration(seconds),
    )


def _rank(cell: Cell) -> str:
    config = cell.runs[0].tuned.view.run.config
    rank, modules = (
        config.number("config", "finetune", "method", name) for name in ("rank", "modules")
    )
    if not rank >= 1:
        return text.MISSING
    return f"{modules:.0f}×{rank:.0f}" if modules > 1 else f"{rank:.0f}"


def _shown(effect: Effect) -> tuple[str, str, str]:
    at = effect.documents
    mean = f"{at.mean:+.4f}" if at.mean == at.mean else text.MISSING
    return mean, text.fixed((at.high - at.low) / 2, 4), text.fixed(effect.seeds.half_width, 4)
