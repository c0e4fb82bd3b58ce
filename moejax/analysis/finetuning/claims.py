"""What fine-tunings allow to say: findings, claims with a verdict, and what to read with care."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

from moejax.analysis import text
from moejax.analysis.compare.noise import UNKNOWN as NO_NOISE
from moejax.analysis.finetuning.study import GENERAL, TASK, Base, Cell, Contrast, Study
from moejax.analysis.intervals import Mean, mean_of
from moejax.analysis.verdicts import CANNOT_TELL, DOES_NOT, HOLDS, Claim

CONTRASTS = (
    ("esft_gate", "full", TASK),
    ("esft_gate", "lora", TASK),
    ("esft_gate", "esft_random", TASK),
    ("esft_token", "esft_random", TASK),
    ("multilora", "lora", TASK),
    ("esft_gate", "full", GENERAL),
    ("esft_gate", "lora", GENERAL),
    ("esft_gate", "esft_random", GENERAL),
    ("multilora", "lora", GENERAL),
)
"""(method, other, what) of which a claim is judged: the first loses less."""
DEFAULT_P = {"esft_gate": 0.1, "esft_token": 0.2, "esft_random": 0.1}
WORDS = {TASK: "has a lower task loss than", GENERAL: "forgets less than"}
EQUAL = 1.1  # parameters within this factor are equal
LEAST_TASKS = 3  # for an interval over tasks
NOTES_TOLD = 6


@dataclasses.dataclass(frozen=True)
class Overall:
    """A contrast on every task that both methods were tried on; `mean` is over tasks.

    `mine` and `theirs` are names of the methods with the configurations that are compared.
    """

    each: tuple[Contrast, ...]
    mean: Mean
    mine: str
    theirs: str

    @property
    def verdict(self) -> str:
        """Of "the first one's is lower".

        It is told from 0 where Student's interval over three tasks or more says so, or where every
        task by itself does, of two or more.
        """
        mean, half = self.mean.mean, self.mean.half_width
        signs = {one.sign for one in self.each}
        sign = signs.pop() if len(signs) == 1 and len(self.each) > 1 else 0
        if self.mean.n >= LEAST_TASKS and abs(mean) > half:
            sign = 1 if mean > 0 else -1
        return {0: CANNOT_TELL, -1: HOLDS, 1: DOES_NOT}[sign]


def overall(study: Study, base: Base, method: str, other: str, what: str) -> Overall | None:
    """Both methods on all tasks of a base that they share; None where there is none."""
    found: list[Contrast] = []
    cells: list[tuple[Cell, Cell]] = []
    for task in study.tasks:
        mine, theirs = (main_cell(study, base, task, one) for one in (method, other))
        if mine is not None and theirs is not None:
            contrast = study.contrast(mine, theirs, what)
            if math.isfinite(contrast.documents.mean):
                found.append(contrast)
                cells.append((mine, theirs))
    if not found:
        return None
    names = (_configuration(side) for side in zip(*cells, strict=True))
    return Overall(tuple(found), mean_of([one.documents.mean for one in found]), *names)


def _configuration(cells: Sequence[Cell]) -> str:
    """The method of cells of several tasks, with what tells its configurations apart."""
    names = {cell.name for cell in cells}
    if len(names) == 1:
        return names.pop()
    method = cells[0].method
    told = (f"{cell.task} {cell.name.removeprefix(method)[2:-1]}" for cell in cells)
    return f"{method} ({'; '.join(told)})"


def main_cell(study: Study, base: Base, task: str, method: str) -> Cell | None:
    """Of several configurations of a method the one with the lowest loss on the validation split,
    mean over seeds, of those at the published p where there are any."""
    cells = [
        cell
        for cell in study.cells
        if cell.base is base and (cell.task, cell.method) == (task, method)
    ]
    usual = [cell for cell in cells if cell.runs[0].tuned.p == DEFAULT_P.get(method)]
    return min(usual or cells, key=_validation_loss, default=None)


def _validation_loss(cell: Cell) -> float:
    """Mean over seeds; infinite where a run does not tell."""
    losses = [one.tuned.best_loss for one in cell.runs]
    mean = sum(losses) / len(losses)
    return mean if math.isfinite(mean) else math.inf


def claims(study: Study) -> list[Claim]:
    """About methods on each base, and about granularity across bases."""
    found = [
        claim
        for base in study.bases
        for method, other, what in CONTRASTS
        if (claim := _contrast(study, base, method, other, what)) is not None
    ]
    return [*found, *_granularity(study)]


def _contrast(study: Study, base: Base, method: str, other: str, what: str) -> Claim | None:
    all_tasks = overall(study, base, method, other, what)
    if all_tasks is None:
        return None
    on = f"From {base.name}, " if len(study.bases) > 1 else ""
    sizes = _sizes(study, base, method, other)
    claim = f"{on}{all_tasks.mine} {WORDS[what]} {all_tasks.theirs}{sizes}."
    parts = [
        f"{one.task} {_signed(one.documents.mean)} "
        f"[{_signed(one.documents.low)}, {_signed(one.documents.high)}]"
        for one in all_tasks.each
    ]
    seeds = sorted({one.seeds.mean.n for one in all_tasks.each})
    because = f"Differences in nats per token with 95 % over documents: {'; '.join(parts)}"
    because += f"; over {'/'.join(map(str, seeds))} {'seed' if seeds == [1] else 'seeds'}"
    if any(one.seeds.verdict == NO_NOISE for one in all_tasks.each):
        because += ", and nothing tells the noise of seeds"
    if all_tasks.mean.n > 1:
        mean = all_tasks.mean
        because += f"; mean of tasks {_signed(mean.mean)} ± {text.fixed(mean.half_width, 4)}"
    return Claim(claim, because, all_tasks.verdict)


def _sizes(study: Study, base: Base, method: str, other: str) -> str:
    """Whether both train as many parameters: a comparison says so either way."""
    ratios = []
    for task in study.tasks:
        mine, theirs = (main_cell(study, base, task, one) for one in (method, other))
        if mine is not None and theirs is not None:
            ratios.append(mine.median("trainable") / theirs.median("trainable"))
    known = [one for one in ratios if math.isfinite(one) and one > 0]
    if not known:
        return ""
    if all(1 / EQUAL <= one <= EQUAL for one in known):
        return " at equal trainable parameters"
    shown = sorted({f"{min(known):.2g}", f"{max(known):.2g}"}, key=float)
    return f" with {' to '.join(shown)} times its trainable parameters"


def _granularity(study: Study) -> list[Claim]:
    """Whether ESFT loses less against full fine-tuning where experts are finer."""
    found = []
    for base in study.bases:
        both = overall(study, base, "esft_gate", "full", TASK)
        if both is not None and math.isfinite(base.active):
            gap_of = {one.task: one.documents.mean for one in both.each}
            found.append((base, gap_of, f"{both.mine} less {both.theirs} from {base.name}"))
    found.sort(key=lambda one: one[0].active)
    if len(found) < 2 or found[0][0].active == found[-1][0].active:
        return []
    (coarse, first, first_name), (fine, last, last_name) = found[0], found[-1]
    gaps = [last[task] - first[task] for task in last if task in first]
    if not gaps:
        return []
    mean = mean_of(gaps)
    claim = (
        f"With finer experts ({fine.active:g} instead of {coarse.active:g} per token) esft_gate is "
        "closer to full fine-tuning, or further ahead of it."
    )
    because = (
        f"Task loss of {last_name}, minus {first_name}: mean "
        f"{_signed(mean.mean)} ± {text.fixed(mean.half_width, 4)} over "
        f"{text.count(mean.n, 'task')}"
    )
    verdict = CANNOT_TELL
    if mean.n >= LEAST_TASKS and abs(mean.mean) > mean.half_width:
        verdict = HOLDS if mean.mean < 0 else DOES_NOT
    return [Claim(claim, because, verdict)]


def findings(study: Study) -> list[str]:
    """The method that validation chooses for each task of each base, its gain and its price."""
    return [sentence for base in study.bases for sentence in _best(study, base)]


def _best(study: Study, base: Base) -> Iterator[str]:
    on = f" from {base.name}" if len(study.bases) > 1 else ""
    parts = []
    for task in study.tasks:
        known = [
            cell
            for cell in study.cells
            if cell.base is base
            and cell.task == task
            and math.isfinite(cell.effect(TASK).mean)
            and math.isfinite(_validation_loss(cell))
        ]
        if known:
            best = min(known, key=_validation_loss)
            gain, price = (best.effect(what).mean for what in (TASK, GENERAL))
            parts.append(f"{task} {best.name} ({_signed(gain)}, general text {_signed(price)})")
    if parts:
        yield (
            f"Fine-tuned{on}, the lowest validation loss, with its change in nats per answer token "
            f"of test documents: {'; '.join(parts)}."
        )


def caveats(study: Study) -> list[str]:
    """What could not be compared, run by run, and how far seeds reach."""
    found = [f"{note.run}, fine-tuned: {note.what}." for note in study.notes[:NOTES_TOLD]]
    if len(study.notes) > NOTES_TOLD:
        more = text.count(len(study.notes) - NOTES_TOLD, "more note")
        found.append(f"{more} on fine-tunings under Warnings.")
    alone = [f"{cell.task} {cell.name}" for cell in study.cells if len(cell.runs) < 2]
    if alone:
        found.append(f"Fine-tunings with one seed only, without a noise: {text.listing(alone)}.")
    if study.cells and len(study.tasks) < LEAST_TASKS:
        found.append(
            f"{text.count(len(study.tasks), 'task')}: no interval over tasks, so claims about "
            "methods are about these tasks only."
        )
    return found


def _signed(value: float) -> str:
    return f"{value:+.4f}" if math.isfinite(value) else text.MISSING
