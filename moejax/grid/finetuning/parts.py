"""The parts of a comparison as commands: score, select, train, score again, report.

A part is a command line and the file that it makes. Everything about a run that its numbers depend
on is in the command line, so that a part is done when its file is there, was made by this command,
and is not older than what it was made from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from moejax.config import ConfigError
from moejax.data.tasks.contract import open_task
from moejax.finetune.recipe import ESFTS
from moejax.finetune.selection import DEFAULT_P
from moejax.grid.finetuning.comparison import Comparison, Treatment, flag

SPECTRA = ("lora", "multilora", "full")
"""Methods whose changes are taken apart; of `full` as what the others are held against."""
SPLIT = "test"


@dataclasses.dataclass(frozen=True)
class Part:
    """One command.

    Attributes:
      name: unique, for people and logs.
      kind: parts of one kind take about equally long.
      module: what `python -m` runs, with `flags`.
      product: the file that shows that it is done.
      needs: files that it reads; a newer one makes it outdated.
      always: runs even where something that it needs has failed.
    """

    name: str
    kind: str
    module: str
    flags: tuple[str, ...]
    product: Path
    needs: tuple[Path, ...] = ()
    always: bool = False

    @property
    def command(self) -> tuple[str, ...]:
        """Behind the interpreter."""
        return "-m", self.module, *self.flags


@dataclasses.dataclass(frozen=True)
class Places:
    """Where things lie: everything of a comparison but the scores of its bases is in `out`."""

    out: Path

    def run(self, base: Path, task: str, treatment: Treatment, seed: int) -> Path:
        """A fine-tuned run."""
        name = f"{base.name}-{treatment.label}-{task}-s{seed}"
        return self.out / "runs" / name

    def selection(self, base: Path, task: str, name: str) -> Path:
        """An expert config."""
        return self.out / "selections" / base.name / task / f"{name}.json"

    @property
    def runs(self) -> Path:
        """All fine-tuned runs."""
        return self.out / "runs"

    @property
    def report(self) -> Path:
        """The report's page."""
        return self.out / "report" / "report.html"

    def log(self, part: Part) -> Path:
        """What a part printed."""
        return self.out / "logs" / (part.name.replace(" ", "_").replace("/", "_") + ".txt")

    @property
    def record(self) -> Path:
        """Which command made what."""
        return self.out / "parts.json"


def parts_of(
    comparison: Comparison,
    bases: Sequence[Path],
    out: Path,
    arguments: str = "",
    config: str = "configs/finetune.py",
) -> list[Part]:
    """All parts in an order in which each comes after what it needs.

    Seeds are the outer loop, so that an early stop still compares methods.

    Args:
      comparison: what.
      bases: run directories, with different names.
      out: directory of the comparison.
      arguments: more arguments of the config, e.g. `quick=true`.
      config: file of recipes.

    Raises:
      ConfigError: a base that is none, or two of one name.
    """
    names = [base.name for base in bases]
    for base in bases:
        if not (base / "config.json").is_file():
            raise ConfigError(f"--base={base}: holds no run; nearest valid: a run directory")
        if names.count(base.name) > 1:
            raise ConfigError(f"--base={base}: two bases are called {base.name}; rename one")
    places = Places(out)
    tasks = {spec: open_task(spec).name for spec in comparison.tasks}
    plan = _Plan(comparison, places, tasks, arguments, config)
    found = [part for base in bases for part in plan.of_base(base)]
    found += [
        part
        for seed in comparison.seeds
        for base in bases
        for spec in tasks
        for treatment in comparison.treatments
        for part in plan.of_run(base, spec, treatment, seed)
    ]
    # Parts that several runs share, such as a selection, are listed once.
    once = list({part.name: part for part in found}.values())
    return [*once, _report(places, bases, once)]


@dataclasses.dataclass(frozen=True)
class _Plan:
    comparison: Comparison
    places: Places
    tasks: dict[str, str]
    arguments: str
    config: str

    def of_base(self, base: Path) -> Iterator[Part]:
        """Its own scores, those of its experts, and their overlap."""
        summaries = []
        needs = (_trained(base),)
        for spec, task in self.tasks.items():
            yield self._score(base, spec, f"score {base.name} {task}", needs)
            summary = base / "esft" / task / "summary.json"
            summaries.append(summary)
            words = (f"--run={base}", f"--task={spec}", *self._sampling())
            name = f"experts {base.name} {task}"
            yield Part(name, "experts", "tools.esft", ("score", *words), summary, needs)
        if len(summaries) > 1:
            flags = ("overlap", *(f"--summary={path}" for path in summaries))
            product = base / "esft" / "overlap.json"
            name = f"overlap {base.name}"
            yield Part(name, "overlap", "tools.esft", flags, product, tuple(summaries))

    def of_run(self, base: Path, spec: str, treatment: Treatment, seed: int) -> Iterator[Part]:
        """Selection, training, score, spectrum."""
        task = self.tasks[spec]
        run = self.places.run(base, task, treatment, seed)
        needs: tuple[Path, ...] = (_trained(base),)
        given = [f"method={treatment.method}"]
        flags = [flag("task", spec)]
        if treatment.selects:
            select = self._select(base, task, treatment.method, treatment.threshold, seed)
            yield select
            needs = (select.product, *needs)
            flags.append(f"--selection={select.product}")
        elif treatment.sized and self.comparison.match:
            method = self.comparison.match
            select = self._select(base, task, method, DEFAULT_P[ESFTS[method]], seed)
            yield select
            needs = (select.product, *needs)
            flags.append(flag("match", str(select.product)))
        given += [self.arguments] if self.arguments else []
        changes = {**self.comparison.overrides, **treatment.overrides, "seed": seed}
        flags = [
            f"--config={self.config}:{','.join(given)}",
            f"--init={base}",
            f"--workdir={run}",
            *flags,
            *(flag(key, value) for key, value in changes.items()),
        ]
        final = run / "final.json"
        yield Part(f"train {run.name}", "train", "experiments.finetune", tuple(flags), final, needs)
        yield self._score(run, spec, f"score {run.name}", (final,))
        if treatment.method in SPECTRA:
            product = run / "adapter" / "spectrum.json"
            words = ("spectrum", f"--run={run}")
            name = f"spectrum {run.name}"
            yield Part(name, "spectrum", "tools.adapter", words, product, (final,))

    def _score(self, run: Path, spec: str, name: str, needs: tuple[Path, ...]) -> Part:
        words = ["score", f"--run={run}", f"--task={spec}", f"--split={SPLIT}"]
        if self.comparison.generate:
            words.append(f"--generate={self.comparison.generate}")
        product = run / "tasks" / f"{self.tasks[spec]}.json"
        return Part(name, "score", "tools.task", tuple(words), product, needs)

    def _select(self, base: Path, task: str, method: str, p: float, seed: int) -> Part:
        score = ESFTS[method]
        random = method == "esft_random"
        name = f"{method}-p{p:g}" + (f"-s{seed}" if random else "")
        product = self.places.selection(base, task, name)
        summary = base / "esft" / task / "summary.json"
        words = [
            "select", f"--summary={summary}", f"--score={score}", f"--p={p:g}", f"--run={base}",
            f"--out={product}",
        ]  # fmt: skip
        words += ["--random", f"--seed={seed}"] if random else []
        title = f"select {base.name} {task} {name}"
        return Part(title, "select", "tools.esft", tuple(words), product, (summary,))

    def _sampling(self) -> tuple[str, ...]:
        return f"--samples={self.comparison.samples}", f"--length={self.comparison.length}"


def _trained(base: Path) -> Path:
    """The file of a base that is written anew when it is trained anew."""
    final = base / "final.json"
    return final if final.exists() else base / "config.json"


def _report(places: Places, bases: Sequence[Path], parts: Sequence[Part]) -> Part:
    given = (*map(str, bases), str(places.runs), f"--out={places.report.parent}")
    needs = tuple(part.product for part in parts if part.kind != "select")
    return Part("report", "report", "tools.evaluate", given, places.report, needs, always=True)
