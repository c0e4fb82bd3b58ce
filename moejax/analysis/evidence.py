"""What figures are made of: the runs, and what is computed from them when a figure asks for it."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from moejax.analysis import text
from moejax.analysis.arrays import ArrayFileError
from moejax.analysis.compare import AXES, Comparison, Selection, compare, rungs, select
from moejax.analysis.finetuning.experts import (
    FOLDER,
    OVERLAP,
    Overlap,
    Use,
    find_uses,
    read_overlap,
    read_use,
)
from moejax.analysis.finetuning.spectra import PLACE, Matrix, read_spectrum
from moejax.analysis.finetuning.study import Study as FineTunings
from moejax.analysis.finetuning.study import make_study
from moejax.analysis.finetuning.tuned import is_tuned
from moejax.analysis.interventions import Sweep, find_sweeps, read_sweep
from moejax.analysis.pruning import Study as Pruned
from moejax.analysis.pruning import find_studies, read_study
from moejax.analysis.records import StepFile
from moejax.analysis.routing.grouped import sequences_of
from moejax.analysis.runs import Run
from moejax.analysis.scaling import (
    Dataset,
    Fit,
    IsoFlop,
    Options,
    Question,
    Study,
    fit,
    from_runs,
    isoflop,
    make_law,
    study,
)
from moejax.analysis.scaling.determinacy import refusal
from moejax.analysis.traces import Labels, Trace, TraceFile, find_traces, read_labels, read_trace
from moejax.analysis.view import View
from moejax.config.knobs import ConfigError

TRACED = 12  # runs whose traces are measured; more are named as left out
MOST_TOKENS = 200_000  # of a trace; of a longer one the first are taken


@dataclasses.dataclass(frozen=True, eq=False)
class Traced:
    """The last trace of a run on one corpus, with its labels and all steps there are.

    `sequence_T` numbers the sequences also where the trace itself does not.
    """

    view: View
    corpus: str
    trace: Trace
    labels: Labels
    steps: tuple[TraceFile, ...]
    sequence_T: NDArray[np.int64]

    @property
    def name(self) -> str:
        """The run's name."""
        return self.view.name


@dataclasses.dataclass(frozen=True, eq=False)
class Scaling:
    """Answers about scaling: `power` is L∞ + A·C^-α of each group, `valleys` IsoFLOP by group.

    `surfaces` is E + A·N^-α + B·D^-β of each group, or why it cannot be fitted.
    """

    power: Study
    valleys: dict[str, IsoFlop]
    surfaces: dict[str, Fit | str]


@dataclasses.dataclass(frozen=True, eq=False)
class Swept:
    """A sweep of interventions and the run that it is of."""

    view: View
    sweep: Sweep


@dataclasses.dataclass(frozen=True, eq=False)
class PrunedRun:
    """A study of pruning and the run that it is of."""

    view: View
    study: Pruned


@dataclasses.dataclass(frozen=True, eq=False)
class Using:
    """Which experts of a run tasks use: by task, and how far they share them."""

    view: View
    uses: tuple[Use, ...]
    overlap: Overlap | None


Need = Callable[[Traced], bool]


class Evidence:
    """The runs of a report. Comparisons, traces and fits are made once, at the first use."""

    def __init__(self, runs: Sequence[View], paths: Sequence[str | os.PathLike[str]] = ()) -> None:
        self.runs = tuple(runs)
        self.paths = tuple(paths)

    # ---- comparisons ----

    @functools.cached_property
    def trained(self) -> list[Run]:
        """Runs that began with weights of their own: curves of fine-tunings, which begin with
        another model's, do not compare with theirs at equal tokens."""
        return [view.run for view in self.runs if not is_tuned(view.run)]

    @functools.cached_property
    def selection(self) -> Selection | None:
        """Runs by treatment; None where no run can be compared."""
        try:
            return select(self.trained)
        except ConfigError:
            return None

    @functools.cached_property
    def comparisons(self) -> tuple[Comparison, ...]:
        """At equal tokens, then FLOPs, then time; on each, one per training length, shortest first.

        Where nothing can be compared, the axis or the length is absent.
        """
        found = []
        lengths = rungs(self.trained)
        for axis in AXES:
            for runs in lengths:
                try:
                    found.append(compare(runs, at=axis))
                except ConfigError:
                    continue
        return tuple(found)

    @functools.cached_property
    def scaling(self) -> Scaling | str:
        """A power law in C per group of runs and the budgets' valleys, or why there are none."""
        try:
            dataset = from_runs(self.paths)
        except ConfigError as error:
            return str(error)
        return Scaling(
            study(dataset, Question(make_law("power"), by_group=True)),
            _valleys(dataset),
            surfaces(dataset),
        )

    def look(self, run_name: str) -> int:
        """The look of a treatment's first run, so that it is drawn alike everywhere."""
        return next((view.index for view in self.runs if view.name == run_name), 0)

    # ---- interventions ----

    @functools.cached_property
    def sweeps(self) -> list[Swept]:
        """The newest readable sweep of each intervention and corpus of each run."""
        found = []
        for view in self.runs:
            by_place: dict[tuple[str, str], list[StepFile]] = {}
            for file in find_sweeps(view.run.root):
                by_place.setdefault((file.folder, file.corpus), []).append(file)
            for files in by_place.values():
                one = _newest(view, files, "interventions", read_sweep)
                found += [] if one is None else [Swept(view, one)]
        return found

    @functools.cached_property
    def pruned(self) -> list[PrunedRun]:
        """The newest readable study of pruning of each router's fate and corpus of each run."""
        found = []
        for view in self.runs:
            by_place: dict[tuple[str, str], list[StepFile]] = {}
            for file in find_studies(view.run.root):
                by_place.setdefault((file.folder, file.corpus), []).append(file)
            for files in by_place.values():
                one = _newest(view, files, "pruning", read_study)
                found += [] if one is None else [PrunedRun(view, one)]
        return found

    # ---- fine-tunings ----

    @functools.cached_property
    def finetuning(self) -> FineTunings:
        """Fine-tuned runs with their scores, and the bases that they started from."""
        return make_study(self.runs)

    @functools.cached_property
    def expert_uses(self) -> list[Using]:
        """Scores of experts on tasks of every run that has any."""
        found = []
        for view in self.runs:
            files = find_uses(view.run.root)
            uses = [one for path in files if (one := _noted(view, path, read_use)) is not None]
            place = view.run.root / FOLDER / OVERLAP
            overlap = _noted(view, place, read_overlap)
            if uses or overlap is not None:
                found.append(Using(view, tuple(uses), overlap))
        return found

    def spectrum(self, view: View) -> tuple[Matrix, ...]:
        """Spectra of what fine-tuning added to a run's matrices; none where they are not there."""
        return _noted(view, view.run.root.joinpath(*PLACE), read_spectrum) or ()

    # ---- traces ----

    @functools.cached_property
    def corpora(self) -> dict[str, list[Traced]]:
        """The last trace of each MoE run by corpus, of the first `TRACED` runs that have one."""
        found: dict[str, list[Traced]] = {}
        for view in self.runs:
            by_corpus: dict[str, list[TraceFile]] = {}
            for file in find_traces(view.run.root):
                by_corpus.setdefault(file.corpus, []).append(file)
            for corpus, files in by_corpus.items():
                traced = found.setdefault(corpus, [])
                if len(traced) < TRACED and (one := _last(view, corpus, files)) is not None:
                    traced += [one] if one.trace.num_layers else []  # a dense model routes nothing
        return {corpus: traced for corpus, traced in found.items() if traced}

    def traced(self, need: Need = lambda _: True) -> list[Traced]:
        """Traces of MoE runs on the one corpus that most runs have, of those that fit the need.

        All are of one corpus, so that runs compare. Of several that equally many runs have, one
        traced on purpose comes before the trainer's own, and then the one with most tokens.
        """
        fitting = {
            corpus: own
            for corpus, traces in sorted(self.corpora.items())
            if (own := [one for one in traces if need(one)])
        }

        def rank(corpus: str) -> tuple[int, bool, int]:
            own = fitting[corpus]
            return len(own), corpus != "", min(one.trace.num_tokens for one in own)

        return fitting[max(fitting, key=rank)] if fitting else []


def _valleys(dataset: Dataset) -> dict[str, IsoFlop]:
    points = dataset.points
    if not all(map(points.has, ("n", "d", "c"))):
        return {}
    return {group: isoflop(points.in_group(group)) for group in points.groups}


def surfaces(dataset: Dataset, options: Options | None = None) -> dict[str, Fit | str]:
    """L(N, D) = E + A·N^-α + B·D^-β of each group, or in one line why it cannot be fitted."""
    law, options = make_law("chinchilla"), options or Options()
    points = dataset.points.ordered()
    found: dict[str, Fit | str] = {}
    for i, group in enumerate(points.groups):
        own = points.in_group(group)
        # As in `study`: groups are different runs, so their errors are drawn independently.
        seeded = dataclasses.replace(options, seed=options.seed + 1000 * (i + 1))
        found[group] = refusal(law, own) or fit(law, own, seeded)
    return found


Read = TypeVar("Read")


def _newest(
    view: View, files: Sequence[StepFile], top: str, read: Callable[[Path], Read]
) -> Read | None:
    for file in reversed(files):
        try:
            return read(file.path)
        except ConfigError as error:
            where = f"{top}/{file.folder}/{file.corpus}/{file.path.name}"
            what = str(error).replace(str(file.path), file.path.name)
            view.run.note("warning", text.clean(where), text.clean(what))
    return None


def _noted(view: View, path: Path, read: Callable[[Path], Read]) -> Read | None:
    """What `read` makes of a file of a run; where it refuses, a note of the run."""
    try:
        return read(path)
    except ConfigError as error:
        where = path.relative_to(view.run.root).as_posix()
        what = str(error).replace(str(path), path.name)
        view.run.note("warning", text.clean(where), text.clean(what))
        return None


def _last(view: View, corpus: str, files: Sequence[TraceFile]) -> Traced | None:
    """The newest that can be read; the others are noted by `groups`, which reads them first."""
    for file in reversed(files):
        try:
            trace = head(read_trace(file.path))
            break
        except ArrayFileError as error:
            view.run.note(
                "warning", f"trace/{corpus}/{file.path.name}".replace("//", "/"), str(error)
            )
    else:
        return None
    try:
        place = file.labels if file.labels.is_file() else view.run.root / "data.json"
        labels = read_labels(place)
    except ConfigError as error:
        view.run.note("warning", place.name, f"no names for the trace: {error}")
        labels = Labels()
    return Traced(view, corpus, trace, labels, tuple(files), sequences(trace))


def head(trace: Trace) -> Trace:
    """The first `MOST_TOKENS` tokens."""
    if trace.num_tokens <= MOST_TOKENS:
        return trace
    cut: dict[str, Any] = {
        name: array[:MOST_TOKENS] if name.endswith("_T") else array[:, :MOST_TOKENS]
        for name, array in trace.arrays().items()
        if "T" in name.rpartition("_")[2]
    }
    return dataclasses.replace(trace, **cut)


def sequences(trace: Trace) -> NDArray[np.int64]:
    """Sequence of each token; by positions, else one for all, where the trace does not say."""
    if trace.sequence_T is not None:
        return trace.sequence_T.astype(np.int64)
    if trace.position_T is not None:
        return sequences_of(trace.position_T)
    return np.zeros(trace.num_tokens, np.int64)


def spread_layers(count: int, most: int) -> list[int]:
    """At most `most` of the layers 0..count-1, evenly spread, the first and the last included."""
    return sorted({round(v) for v in np.linspace(0, count - 1, min(count, most)).tolist()})
