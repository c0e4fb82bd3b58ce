"""Compares runs at equal tokens, FLOPs or time, and by what they need for an equal loss."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from moejax.analysis import text
from moejax.analysis.compare.curves import first_reach
from moejax.analysis.compare.equal_loss import EqualLoss, PowerLaw, equal_loss
from moejax.analysis.compare.noise import Difference, Noise, difference_of, pooled
from moejax.analysis.compare.readings import (
    TOLERANCE,
    Reading,
    common_budget,
    read_at,
    schedule_notes,
)
from moejax.analysis.compare.screen import Exclusion, Selection, select
from moejax.analysis.compare.spikes import spike_score
from moejax.analysis.compare.treatments import Treatment
from moejax.analysis.intervals import Mean, mean_of
from moejax.analysis.runs import Run
from moejax.analysis.summary import speed
from moejax.config.knobs import ConfigError

EARLY = 0.9  # of a schedule: a loss reached before that had little or none of its decay


@dataclasses.dataclass(frozen=True)
class Size:
    """How large a model is; means over its runs. One number alone ranks models wrongly.

    Attributes:
      total_parameters, active_parameters: as configured (`nominal`), by the counts of model.json.
      measured_active_parameters: at the experts that tokens chose, at the last evaluation.
      flops_per_token: training FLOPs at nominal activation.
      measured_flops_per_token: measured, at the last evaluation.
      spent_flops_per_token: measured, the mean over training; what equal FLOPs are made of.
    """

    total_parameters: float
    active_parameters: float
    measured_active_parameters: float
    flops_per_token: float
    measured_flops_per_token: float
    spent_flops_per_token: float


@dataclasses.dataclass(frozen=True)
class ToTarget:
    """What the runs of a treatment needed for the target loss; means over all of them.

    The means are NaN unless all of the `runs` reached it; `why` is the first one's reason.
    """

    runs: int
    reached: int
    tokens: Mean
    flops: Mean
    seconds: Mean
    why: str


@dataclasses.dataclass(frozen=True)
class Row:
    """A treatment.

    Attributes:
      name, kind, dense: its name, its routers in words, whether it has no routed experts.
      runs: names of its comparable runs.
      size: total and active parameters and FLOPs per token.
      readings: its runs at the budget; those not read are in `Comparison.excluded`.
      loss: mean of the readings' losses; n = 0 where nothing could be read.
      difference: from the baseline in pairs; None for the baseline and where nothing was read.
      to_target: tokens, FLOPs and seconds to the target loss.
      equal_loss: against the baseline; None for the baseline.
      leverage: of an MoE treatment against the dense one of the comparison; else None.
      tokens_per_second: mean over runs of each run's median.
      spike_score: the worst run's, of the training loss.
    """

    name: str
    kind: str
    dense: bool
    runs: tuple[str, ...]
    size: Size
    readings: tuple[Reading, ...]
    loss: Mean
    difference: Difference | None
    to_target: ToTarget
    equal_loss: EqualLoss | None
    leverage: EqualLoss | None
    tokens_per_second: float
    spike_score: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Treatments at equal `at` ("tokens", "flops" or "time"), the baseline first, then by loss.

    Attributes:
      budget: how many tokens, FLOPs or seconds.
      target: the loss of `to_target`, nats per token.
      tolerance: the difference of schedule fractions up to which readings compare.
      noise: the noise floor at the budget.
      excluded: runs that were left out, altogether or at this budget, a line each.
      notes: what a reader must know, a sentence each.
    """

    at: str
    budget: float
    target: float
    tolerance: float
    baseline: str
    dense: str
    noise: Noise
    rows: tuple[Row, ...]
    excluded: tuple[Exclusion, ...]
    notes: tuple[str, ...]


def compare(
    runs: Sequence[Run],
    *,
    baseline: str = "",
    at: str = "tokens",
    budget: float | None = None,
    target: float | None = None,
    tolerance: float = TOLERANCE,
    law: PowerLaw | None = None,
) -> Comparison:
    """Compares the finished runs on the baseline's text with the baseline.

    Args:
      runs: loaded run directories (`moejax.analysis.runs.load_runs`).
      baseline: name of a configuration or of one of its runs; "": the first dense one, else the
        first.
      at: "tokens", "flops" (measured training FLOPs) or "time" (seconds in training steps).
      budget: at how many of them losses are read; None: where the baseline ends, or up to
        `tolerance` less if another run ends there.
      target: a loss in nats per token; None: the highest of the baseline's losses at the budget for
        `to_target`, and the lowest common loss of each pair for `equal_loss`.
      tolerance: 0..1; a run whose reading is further than this from the baseline's fraction of the
        learning-rate schedule is left out at this budget. 1 lets all in.
      law: of the baseline's family; None: what the baseline needs for a loss is measured.

    Raises:
      ConfigError: nothing to compare, an unknown baseline, or a number out of range.
    """
    selection = select(runs, baseline, at)
    _check(budget, target, tolerance)
    budget = common_budget(selection, at, tolerance) if budget is None else budget
    readings, excluded = read_at(selection, at, budget, tolerance)
    first = selection.baseline
    goal = max(r.loss for r in readings[first.name]) if target is None else target
    dense = _dense(selection)
    noise = pooled([[r.loss for r in own] for own in readings.values()])
    rows = [
        Row(
            name=one.name,
            kind=one.kind,
            dense=one.dense,
            runs=tuple(member.name for member in one.members),
            size=_size(one),
            readings=readings[one.name],
            loss=mean_of([reading.loss for reading in readings[one.name]]),
            difference=None if one is first else _difference(first, one, readings, noise),
            to_target=_to_target(one, goal),
            equal_loss=None if one is first else equal_loss(first, one, target, law),
            leverage=equal_loss(dense, one, target, law) if dense and not one.dense else None,
            tokens_per_second=_mean([speed(member.run) for member in one.members]),
            spike_score=_worst([_spikes(member.run) for member in one.members]),
        )
        for one in selection.treatments
    ]
    others = sorted(rows[1:], key=lambda row: (row.loss.n == 0, row.loss.mean, row.name))
    return Comparison(
        at=at,
        budget=budget,
        target=goal,
        tolerance=tolerance,
        baseline=first.name,
        dense=dense.name if dense else "",
        noise=noise,
        rows=(rows[0], *others),
        excluded=(*selection.excluded, *excluded),
        notes=tuple(_notes(selection, rows, noise)),
    )


def _check(budget: float | None, target: float | None, tolerance: float) -> None:
    if budget is not None and not 0 < budget < math.inf:
        raise ConfigError(f"budget={budget}: must be above 0")
    if target is not None and not math.isfinite(target):
        raise ConfigError(f"target={target}: must be a loss in nats per token")
    if not 0 <= tolerance <= 1:
        raise ConfigError(f"tolerance={tolerance}: must be in [0, 1]")


def _dense(selection: Selection) -> Treatment | None:
    """The dense treatment that leverage is against: the baseline, else the only one there is."""
    found = [one for one in selection.treatments if one.dense]
    return found[0] if selection.baseline.dense or len(found) == 1 else None


def _difference(
    first: Treatment, one: Treatment, readings: Mapping[str, Sequence[Reading]], noise: Noise
) -> Difference | None:
    theirs, mine = readings[first.name], readings[one.name]
    if not mine:
        return None
    a, b = ({r.seed: r.loss for r in side if r.seed} for side in (mine, theirs))
    both = a.keys() & b.keys()
    unpaired = [reading.run for reading in (*mine, *theirs) if reading.seed not in both]
    return difference_of(a, b, unpaired, noise)


def _to_target(one: Treatment, target: float) -> ToTarget:
    columns: dict[str, Mean] = {}
    reached, why = len(one.members), ""
    for at in ("tokens", "flops", "time"):
        found = [first_reach(m.curve.axis(at), m.curve.loss_N, target) for m in one.members]
        columns[at] = _mean_of_all([reach.x for reach in found])
        if at == "tokens":
            reached = sum(not reach.why for reach in found)
            why = next((reach.why for reach in found if reach.why), "")
    return ToTarget(
        len(one.members), reached, columns["tokens"], columns["flops"], columns["time"], why
    )


def _size(one: Treatment) -> Size:
    runs = [member.run for member in one.members]
    spent = [m.curve.flops_N[-1] / m.curve.tokens_N[-1] for m in one.members]

    def model(key: str) -> float:
        return _mean([run.model.number(key) for run in runs])

    return Size(
        total_parameters=model("total_parameters"),
        active_parameters=model("active_parameters"),
        measured_active_parameters=_mean(
            [run.final.number("measured", "active_parameters") for run in runs]
        ),
        flops_per_token=model("flops_per_token"),
        measured_flops_per_token=_mean(
            [run.final.number("measured", "flops_per_token") for run in runs]
        ),
        spent_flops_per_token=_mean([float(value) for value in spent]),
    )


def _spikes(run: Run) -> float:
    return spike_score(run.metrics.train["train/loss"])


def _mean_of_all(values: Sequence[float]) -> Mean:
    """NaN where any is: a mean over those alone that reached a target would be of lucky ones."""
    if all(map(math.isfinite, values)):
        return mean_of(values)
    return Mean(len(values), math.nan, math.nan, math.nan)


def _mean(values: Sequence[float]) -> float:
    """NaN where any is."""
    return float(np.mean(values))


def _worst(values: Sequence[float]) -> float:
    return max((v for v in values if math.isfinite(v)), default=math.nan)


def _notes(selection: Selection, rows: Sequence[Row], noise: Noise) -> list[str]:
    first = selection.baseline
    found = []
    if selection.chosen:
        why = "the first dense configuration" if first.dense else "the first configuration"
        found.append(f"No baseline was named: {first.name} is {why}.")
    for row in rows:
        if row.difference and row.difference.unpaired:
            shown = text.listing(row.difference.unpaired)
            found.append(f"{row.name} minus {first.name}: {shown} without a partner of equal seed.")
    batches = {one.name: _batches(one) for one in selection.treatments}
    if other := [name for name, own in batches.items() if own != batches[first.name]]:
        found.append(
            f"Other data settings or batch size than the baseline: {text.listing(other)}. There "
            "an equal seed is not an equal order of the data."
        )
    found += schedule_notes([reading for row in rows for reading in row.readings])
    if not noise.degrees:
        found.append("No configuration has two seeds here: how much a seed changes is not known.")
    early = [r.name for r in rows if r.equal_loss and r.equal_loss.schedule < EARLY]
    if early:
        found.append(
            f"Against {text.listing(early)}, one run reached the common loss long before its end, "
            "without the gain of its learning-rate decay: the multipliers flatter the one with the "
            "higher final loss."
        )
    judged = sum(bool(row.difference and row.difference.rule) for row in rows)
    if judged > 4:
        found.append(
            f"{judged} comparisons at 95 % each: about one in twenty is beyond noise by chance."
        )
    return found


def _batches(one: Treatment) -> str:
    config = one.members[0].run.config
    data = config.get("config", "data")
    kept = {k: v for k, v in data.items() if k != "cache_dir"} if isinstance(data, dict) else {}
    sizes = [config.get("config", "train", key) for key in ("batch_size", "accumulate")]
    return repr((sorted(kept.items(), key=lambda pair: pair[0]), sizes))
