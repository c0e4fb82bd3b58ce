"""Fine-tunings of common bases as one study: what each gained on its task, and what it forgot.

Every score is a difference from the base's own on the same documents, so that how hard a text is
drops out. Nothing is silently left out: what cannot be paired is told in `Study.notes`.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from moejax.analysis import text
from moejax.analysis.compare.noise import Difference, Noise, difference_of, pooled
from moejax.analysis.compare.treatments import common_name
from moejax.analysis.finetuning.paired import UNKNOWN, Losses, average, mean_over
from moejax.analysis.finetuning.scores import Score, find_scores, read_score
from moejax.analysis.finetuning.tuned import Tuned, is_tuned, task_name, tuned
from moejax.analysis.intervals import Mean, mean_of
from moejax.analysis.records import Estimate
from moejax.analysis.runs import Note
from moejax.analysis.view import View
from moejax.config.knobs import ConfigError

TASK, GENERAL = "task", "general"
TEST = "test"
"""The split that counts where there are several."""
WHAT = (TASK, GENERAL)


@dataclasses.dataclass(frozen=True, eq=False)
class Base:
    """A model that fine-tunings started from.

    Attributes:
      name: as in tables; the run's where the report has it.
      active: experts per token of its MoE layers, NaN where unknown: more of them, finer experts.
      scores: its own scores by `Score.answers_id`.
    """

    key: str
    name: str
    active: float
    scores: Mapping[tuple[str, str], Score]


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
    """A fine-tuned run with its score and what it changed; None where that cannot be paired.

    `task` and `general` are nats more than the base's, by document.
    """

    tuned: Tuned
    score: Score
    task: Losses | None
    general: Losses | None

    def change(self, what: str) -> Losses | None:
        """`task` or `general`."""
        return self.task if what == TASK else self.general


@dataclasses.dataclass(frozen=True)
class Effect:
    """A difference in nats per token, with both kinds of uncertainty; negative is better.

    Attributes:
      documents: its mean over seeds, with the 95 % interval over the documents of the text.
      seeds: the same mean with Student's interval over seeds; NaN of one seed.
    """

    documents: Estimate
    seeds: Mean

    @property
    def mean(self) -> float:
        """Nats per token; NaN: not known."""
        return self.documents.mean


NO_EFFECT = Effect(UNKNOWN, mean_of([]))


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """Runs that differ in nothing but their seed: one base, task, method and its configuration.

    `name` tells it apart from other configurations of its method.
    """

    base: Base
    task: str
    method: str
    name: str
    key: str
    runs: tuple[Scored, ...]

    def by_seed(self, what: str) -> dict[str, Losses]:
        """The changes that are known, by seed."""
        found = {one.tuned.seed: one.change(what) for one in self.runs}
        return {seed: losses for seed, losses in found.items() if losses is not None}

    def effect(self, what: str) -> Effect:
        """Against the base."""
        return effect(list(self.by_seed(what).values()))

    def median(self, name: str) -> float:
        """Of a number of the runs (an attribute of `Tuned`); NaN where none knows it."""
        found = sorted(v for one in self.runs if math.isfinite(v := getattr(one.tuned, name)))
        middle = len(found) // 2
        if not found:
            return math.nan
        return found[middle] if len(found) % 2 else (found[middle - 1] + found[middle]) / 2


@dataclasses.dataclass(frozen=True)
class Contrast:
    """One method minus another on one base and task, seed by seed and document by document.

    `sign` is -1 or 1 where it is beyond the seeds' noise and the documents' interval, else 0.
    """

    base: str
    task: str
    documents: Estimate
    seeds: Difference

    @property
    def sign(self) -> int:
        """Of a difference that can be told from 0."""
        beyond = self.documents.low > 0 or self.documents.high < 0
        if not beyond or self.seeds.verdict != "beyond noise":
            return 0
        return 1 if self.documents.mean > 0 else -1


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
    """All fine-tunings of a report, and in words what could not be compared."""

    cells: tuple[Cell, ...]
    bases: tuple[Base, ...]
    notes: tuple[Note, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        """In order of appearance."""
        return tuple(dict.fromkeys(cell.task for cell in self.cells))

    def noise(self, base: Base, what: str, methods: Sequence[str]) -> Noise:
        """What the seed does to a change, pooled over all tasks of a base.

        Over these methods: a seed also draws the experts of a random selection, whose noise is
        several times that of others. Over all methods where these have one seed each.
        """
        found = {
            cell: [mean_over(losses).mean for losses in cell.by_seed(what).values()]
            for cell in self.cells
            if cell.base is base
        }
        noise = pooled([values for cell, values in found.items() if cell.method in methods])
        return noise if noise.degrees else pooled(list(found.values()))

    def contrast(self, mine: Cell, theirs: Cell, what: str) -> Contrast:
        """Two cells of one base and task."""
        own, other = mine.by_seed(what), theirs.by_seed(what)
        pairs = [
            found
            for seed in own
            if seed in other and (found := own[seed].minus(other[seed])) is not None
        ]
        # Every difference is against the same base, which so drops out of theirs.
        averaged = average(pairs)
        unpaired = [
            one.tuned.name
            for cell, far in ((mine, other), (theirs, own))
            for one in cell.runs
            if one.tuned.seed not in far
        ]
        means = [{s: mean_over(one).mean for s, one in each.items()} for each in (own, other)]
        return Contrast(
            mine.base.name,
            mine.task,
            UNKNOWN if averaged is None else mean_over(averaged),
            difference_of(
                means[0],
                means[1],
                unpaired,
                self.noise(mine.base, what, (mine.method, theirs.method)),
            ),
        )


def effect(changes: Sequence[Losses]) -> Effect:
    """Of the same change under several seeds; nothing where their documents differ."""
    averaged = average(changes)
    if averaged is None:
        return NO_EFFECT
    return Effect(mean_over(averaged), mean_of([mean_over(one).mean for one in changes]))


def make_study(views: Sequence[View]) -> Study:
    """Reads the scores of all runs, pairs fine-tunings with their bases, and groups the seeds."""
    notes: list[Note] = []
    found = [(view, one) for view in views if (one := tuned(view)) is not None]
    for view in views:
        if is_tuned(view.run) and all(view is not other for other, _ in found):
            notes.append(_note(view.name, "is fine-tuned but has no result yet", "excluded"))
    if not found:
        return Study((), (), tuple(notes))
    scores = {view.name: _scores(view) for view in views}
    bases = _bases(views, [one for _, one in found], scores)
    scored: list[Scored] = []
    for view, one in found:
        usable = _usable(one, scores[view.name], notes)
        scored += [] if usable is None else [_paired(one, usable, bases[_base_key(one)], notes)]
    cells = _cells(scored, bases, notes)
    return Study(tuple(cells), tuple(bases.values()), tuple(notes))


def _scores(view: View) -> list[Score]:
    found = []
    for path in find_scores(view.run.root):
        try:
            found.append(read_score(path))
        except ConfigError as error:
            what = str(error).replace(str(path), path.name)
            view.run.note("warning", f"tasks/{path.name}", text.clean(what))
    return found


def _base_key(one: Tuned) -> str:
    return f"{one.base_hash or one.base}@{one.base_step:g}"


def _bases(
    views: Sequence[View], found: Sequence[Tuned], scores: Mapping[str, list[Score]]
) -> dict[str, Base]:
    """By hash of the parameters and step: the runs of the report that lie where a base should."""
    made: dict[str, Base] = {}
    for one in found:
        key = _base_key(one)
        if key in made:
            continue
        place = os.path.realpath(one.base) if one.base else ""
        view = next((v for v in views if os.path.realpath(v.run.root) == place), None)
        own = [
            score
            for score in (scores[view.name] if view is not None else [])
            if score.step == one.base_step
            and (score.params_hash or score.base_hash) in ("", one.base_hash)
        ]
        name = view.name if view is not None else Path(one.base).name or one.base_hash[:10]
        # A fine-tuning has the shape of its base: either tells how many experts a token uses.
        active = one.view.summary.nominal_active_experts
        made[key] = Base(key, text.clean(name, 80), active, {s.answers_id: s for s in own})
    return made


def _usable(one: Tuned, scores: Sequence[Score], notes: list[Note]) -> Score | None:
    """The score on the run's own task at its best checkpoint."""
    own = [score for score in scores if task_name(score.task) == one.task]
    if not own:
        what = f"no score on {one.task} (python -m tools.task score writes one)"
        notes.append(_note(one.name, what, "excluded"))
        return None
    at_best = [score for score in own if score.step == one.best_step]
    if not at_best:
        what = f"scored at step {own[0].step}, but its best checkpoint is of step {one.best_step:g}"
        notes.append(_note(one.name, what, "excluded"))
        return None
    at_best = [score for score in at_best if score.split == TEST] or at_best
    if len(at_best) > 1:
        names = text.listing([score.path.name for score in at_best])
        notes.append(_note(one.name, f"several scores on its task ({names}): the first counts"))
    return at_best[0]


def _paired(one: Tuned, score: Score, base: Base, notes: list[Note]) -> Scored:
    theirs = base.scores.get(score.answers_id)
    if theirs is None:
        what = f"no score of the same examples of its base {base.name} at step {one.base_step:g}"
        notes.append(_note(one.name, what))
        return Scored(one, score, None, None)
    task, general = score.answer.minus(theirs.answer), None
    if score.general_hash and score.general_hash == theirs.general_hash:
        general = score.general.minus(theirs.general)
    for what, change in ((TASK, task), (GENERAL, general)):
        if change is None:
            told = f"other {what} text than its base {base.name}: that change is unknown"
            notes.append(_note(one.name, told))
    return Scored(one, score, task, general)


def _cells(scored: Sequence[Scored], bases: Mapping[str, Base], notes: list[Note]) -> list[Cell]:
    """By base, task and configuration. Of runs with one seed too, the last one counts."""
    groups: dict[tuple[str, ...], dict[str, Scored]] = {}
    for one in scored:
        own = one.tuned
        place = _base_key(own), *one.score.answers_id, one.score.general_hash, own.key
        by_seed = groups.setdefault(place, {})
        if own.seed in by_seed:
            what = f"{own.name} has the same configuration and seed and counts instead"
            notes.append(_note(by_seed[own.seed].tuned.name, what, "excluded"))
        by_seed[own.seed] = one
    cells = []
    for (base, *_), by_seed in groups.items():
        runs = tuple(by_seed.values())
        first = runs[0].tuned
        name = common_name([one.tuned.name for one in runs])
        cells.append(Cell(bases[base], first.task, first.method, name, first.key, runs))
    return _told_apart(cells)


DETAILS = (
    ("finetune", "p"),
    ("finetune", "method", "rank"),
    ("finetune", "method", "modules"),
    ("finetune", "method", "top_layers"),
    ("optimizer", "lr"),
    ("train", "steps"),
)
"""Keys of the config that tell configurations of one method apart, where they do."""


def _told_apart(cells: Sequence[Cell]) -> list[Cell]:
    """Names: the method where that is enough, else with what differs, or what the runs are called.

    What differs is looked for among all tasks and bases, so that one configuration has one name.
    """
    by_method: dict[str, list[Cell]] = {}
    for cell in cells:
        by_method.setdefault(cell.method, []).append(cell)
    names: dict[int, str] = {}
    for method, own in by_method.items():
        places = [(cell.base.key, cell.task) for cell in own]
        if len(set(places)) == len(places):
            names |= {id(cell): method for cell in own}
            continue
        shown = [_details(cell) for cell in own]
        varying = [key for key in DETAILS if len({one[key] for one in shown}) > 1]
        labels = [
            ", ".join(f"{key[-1]}={one[key]}" for key in varying if one[key]) for one in shown
        ]
        enough = len({(*place, label) for place, label in zip(places, labels, strict=True)})
        for cell, label in zip(own, labels, strict=True):
            told = label if enough == len(own) else text.shorten(cell.name, 60)
            names[id(cell)] = f"{method} ({told})"
    return [dataclasses.replace(cell, name=names[id(cell)]) for cell in cells]


def _details(cell: Cell) -> dict[tuple[str, ...], str]:
    config = cell.runs[0].tuned.view.run.config
    return {key: _shown(config.get("config", *key)) for key in DETAILS}


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}" if value else ""
    return text.clean(value, 40) if isinstance(value, int | str) else ""


def _note(run: str, what: str, severity: str = "warning") -> Note:
    return Note(run, severity, "fine-tuning", text.clean(what))
