"""Losses read at a budget, and the runs that cannot be read there or would mislead."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from moejax.analysis import text
from moejax.analysis.compare.curves import NOT_REACHED, amount, value_at
from moejax.analysis.compare.schedule import Phase, phase_at, same_phase
from moejax.analysis.compare.screen import RANGE, SCHEDULE, Exclusion, Selection
from moejax.analysis.compare.treatments import Member
from moejax.config.knobs import ConfigError

TOLERANCE = 0.01


@dataclasses.dataclass(frozen=True)
class Reading:
    """A run at the budget: loss in nats per token, counters so far, place in its schedule.

    `schedule` is the fraction of its steps; `at_peak`: the learning rate has not begun to fall.
    """

    run: str
    seed: str
    loss: float
    tokens: float
    flops: float
    seconds: float
    schedule: float
    at_peak: bool


def common_budget(selection: Selection, at: str, tolerance: float) -> float:
    """Where the baseline ends, or a little less: runs of one length differ by a short window."""
    end = min(float(m.curve.axis(at)[-1]) for m in selection.baseline.members)
    ends = (float(m.curve.axis(at)[-1]) for one in selection.treatments for m in one.members)
    return min(e for e in ends if e >= (1 - tolerance) * end)


def read_at(
    selection: Selection, at: str, budget: float, tolerance: float
) -> tuple[dict[str, tuple[Reading, ...]], list[Exclusion]]:
    """Readings by treatment, and the runs that have none at this budget or a misleading one.

    Raises:
      ConfigError: no run of the baseline has been measured there.
    """
    found: dict[str, list[tuple[Member, Reading]]] = {}
    excluded = []
    for one in selection.treatments:
        own = found.setdefault(one.name, [])
        for member in one.members:
            reading = _reading(member, at, budget)
            if reading is None:
                excluded.append(Exclusion(member.name, RANGE, _range(member, at, budget)))
            else:
                own.append((member, reading))
    base = found[selection.baseline.name]
    if not base:
        ends = [float(m.curve.axis(at)[-1]) for m in selection.baseline.members]
        shown, end = amount(at, budget), amount(at, max(ends))
        raise ConfigError(
            f"budget={shown}: not reached by the baseline; nearest valid value: {end}"
        )
    reference = max((reading for _, reading in base), key=lambda reading: reading.schedule)
    kept = {}
    for name, own in found.items():
        same = [same_phase(_phase(r), _phase(reference), tolerance) for _, r in own]
        kept[name] = tuple(r for (_, r), good in zip(own, same, strict=True) if good)
        excluded += [
            Exclusion(m.name, SCHEDULE, _amid(r, reference, at, budget))
            for (m, r), good in zip(own, same, strict=True)
            if not good
        ]
    return kept, excluded


def _phase(reading: Reading) -> Phase:
    return Phase(reading.schedule, reading.at_peak)


def _reading(member: Member, at: str, budget: float) -> Reading | None:
    curve = member.curve
    x_N = curve.axis(at)
    loss = value_at(x_N, curve.loss_N, budget)
    if math.isnan(loss):
        return None
    counters = (curve.tokens_N, curve.flops_N, curve.seconds_N, curve.step_N)
    tokens, flops, seconds, step = (float(np.interp(budget, x_N, c)) for c in counters)
    phase = phase_at(member.run, step)
    place = (phase.fraction, phase.at_peak)
    return Reading(member.name, member.seed, loss, tokens, flops, seconds, *place)


def _range(member: Member, at: str, budget: float) -> str:
    x_N = member.curve.axis(at)
    if budget > x_N[-1]:
        return f"{NOT_REACHED}: it ended after {amount(at, float(x_N[-1]))}"
    start = float(x_N[x_N > 0][0])
    return f"not measured there: its first evaluation is at {amount(at, start)}"


def _amid(reading: Reading, reference: Reading, at: str, budget: float) -> str:
    mine, its = text.percent(reading.schedule), text.percent(reference.schedule)
    train = f"train it for {amount('tokens', reading.tokens)} to compare"
    if reading.schedule > reference.schedule:
        train = "the baseline is amid its own"
    return (
        f"other fraction of the schedule: at {amount(at, budget)} it is at {mine} of its "
        f"learning-rate schedule (loss {reading.loss:.4f} there), the baseline at {its}: {train}"
    )


def schedule_notes(readings: Sequence[Reading]) -> list[str]:
    """What to say where losses were read at different fractions of their schedules."""
    fractions = [reading.schedule for reading in readings]
    if max(fractions) - min(fractions) <= TOLERANCE:
        return []
    low, high = text.percent(min(fractions)), text.percent(max(fractions))
    where = f"Losses were read at {low} to {high} of the learning-rate schedules"
    if all(reading.at_peak for reading in readings):
        return [f"{where}, all of them before the rate began to fall."]
    return [f"{where}: earlier ones have had less of their decay, which alone makes them higher."]
