"""What a loss costs one treatment and another: ratios of tokens, FLOPs and time at equal loss."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from moejax.analysis.compare.curves import LARGEST, first_reach
from moejax.analysis.compare.ratios import NO_RATIO, Ratio, ratio_of
from moejax.analysis.compare.schedule import phase_at
from moejax.analysis.compare.screen import machine
from moejax.analysis.compare.treatments import Member, Treatment
from moejax.analysis.intervals import mean_of
from moejax.analysis.summary import speed
from moejax.config.knobs import ConfigError

MEASURED, PINNED = "measured curves", "pinned power law"


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """L(C) = floor + A * C ** -exponent of the baseline's family; A is pinned per run.

    Attributes:
      floor: the loss that no compute gets below, nats per token (L∞).
      exponent: alpha, above 0.

    Raises:
      ConfigError: a floor below 0 or an exponent that is not above 0.
    """

    floor: float
    exponent: float

    def __post_init__(self) -> None:
        if not 0 <= self.floor < math.inf:
            raise ConfigError(f"floor={self.floor}: must be at least 0 nats per token")
        if not 0 < self.exponent < math.inf:
            raise ConfigError(f"exponent={self.exponent}: must be above 0")

    def needed(self, flops: float, loss: float, target: float) -> float:
        """FLOPs at which the law through (flops, loss) has the loss `target`.

        flops * ((loss - floor) / (target - floor)) ** (1 / exponent); NaN where either loss is not
        above the floor, or where the number is beyond any meaning.
        """
        if not (loss > self.floor and target > self.floor and flops > 0):
            return math.nan
        power = math.log((loss - self.floor) / (target - self.floor)) / self.exponent
        found = flops * math.exp(power) if power < 600 else math.inf
        return found if 0 < found < LARGEST else math.nan


@dataclasses.dataclass(frozen=True)
class EqualLoss:
    """What the reference needs for a loss over what the treatment needs for it; above 1 is better.

    Attributes:
      reference: name of the treatment compared with.
      how: MEASURED or PINNED: where the reference's need comes from.
      loss: at which loss, nats per token; the mean over pairs.
      schedule: the smallest fraction of a learning-rate schedule at which a measured curve was
        read; 1: all runs at their end. The further below 1, the more the ratios err (below).
      tokens: ratio of training tokens.
      compute: ratio of measured training FLOPs: the compute multiplier; with a dense reference and
        an MoE treatment it is the efficiency leverage.
      speedup: ratio of training time, each at its own measured tokens per second: the effective
        speedup in wall-clock.
      why: why a ratio is not known; "" if all are.
    """

    reference: str
    how: str
    loss: float
    schedule: float
    tokens: Ratio
    compute: Ratio
    speedup: Ratio
    why: str


def equal_loss(
    reference: Treatment,
    treatment: Treatment,
    target: float | None = None,
    law: PowerLaw | None = None,
) -> EqualLoss:
    """Compares two treatments seed by seed at equal loss.

    Without a law, both needs are read from measured validation curves, at the lowest loss that
    both runs of a pair have reached (the higher one of their final losses), or at `target`. There
    one of the two is at its end and the other, that with the lower final loss, amid its schedule,
    where it has not had the gain of its decay yet: it is charged more than a run planned for this
    loss would need. So the ratio errs against the one with the lower final loss.

    With a law, the treatment's need is what it spent, the target is its final loss, and the
    reference's need is that of the law through the end of its run (`PowerLaw.needed`), as in
    Marin's gates (experiments/grug/moe/agent.md): (C_needed / speed_reference) /
    (C_treatment / speed_treatment). There the speed is tokens per second, which is a time only
    between models of equal FLOPs per token; here each C is first divided by its own run's measured
    FLOPs per token.

    Args:
      reference, treatment: paired by seed.
      target: nats per token; None for the lowest common loss.
      law: None for measured curves.

    Returns:
      Ratios over all pairs; where one pair has no number, none is given and `why` says why.
    """
    mine, theirs = treatment.by_seed, reference.by_seed
    seeds = [seed for seed in mine if seed in theirs]
    how = MEASURED if law is None else PINNED
    if not seeds:
        why = f"no seed in common with {reference.name}"
        ratios = (NO_RATIO, NO_RATIO, NO_RATIO)
        return EqualLoss(reference.name, how, math.nan, math.nan, *ratios, why)
    pairs = [
        _measured(theirs[s], mine[s], target) if law is None else _pinned(theirs[s], mine[s], law)
        for s in seeds
    ]
    return EqualLoss(
        reference=reference.name,
        how=how,
        loss=mean_of([pair.loss for pair in pairs]).mean,
        schedule=min(pair.schedule for pair in pairs),
        tokens=ratio_of([pair.tokens for pair in pairs]),
        compute=ratio_of([pair.compute for pair in pairs]),
        speedup=ratio_of([pair.speedup for pair in pairs]),
        why=next((pair.why for pair in pairs if pair.why), ""),
    )


@dataclasses.dataclass(frozen=True)
class _Pair:
    loss: float
    schedule: float
    tokens: float
    compute: float
    speedup: float
    why: str


def _measured(theirs: Member, mine: Member, target: float | None) -> _Pair:
    curves = (theirs.curve, mine.curve)
    loss = max(float(c.loss_N[-1]) for c in curves) if target is None else target
    tokens = [first_reach(c.tokens_N, c.loss_N, loss) for c in curves]
    flops = [first_reach(c.flops_N, c.loss_N, loss) for c in curves]
    faster, slow = _speed_ratio(theirs, mine)
    problems = [
        f"{member.name}: {reach.why}"
        for reaches in (tokens, flops)
        for member, reach in zip((theirs, mine), reaches, strict=True)
        if reach.why
    ]
    ratio = tokens[0].x / tokens[1].x
    why = problems[0] if problems else slow
    schedule = min(
        _fraction(member, reach.x) for member, reach in zip((theirs, mine), tokens, strict=True)
    )
    return _Pair(loss, schedule, ratio, flops[0].x / flops[1].x, ratio * faster, why)


def _fraction(member: Member, tokens: float) -> float:
    """Fraction of the schedule at which a run had seen so many tokens; NaN where not known."""
    step = float(np.interp(tokens, member.curve.tokens_N, member.curve.step_N))
    return phase_at(member.run, step).fraction


def _pinned(theirs: Member, mine: Member, law: PowerLaw) -> _Pair:
    (tokens, flops, loss), (my_tokens, my_flops, my_loss) = _end(theirs), _end(mine)
    faster, why = _speed_ratio(theirs, mine)
    if not (flops > 0 and my_flops > 0):
        return _Pair(my_loss, 1.0, math.nan, math.nan, math.nan, "compute/flops is not recorded")
    needed = law.needed(flops, loss, my_loss)
    if math.isnan(needed):
        why = f"the law through {loss:.4g} at {flops:.4g} FLOPs has no point at {my_loss:.4g}"
    ratio = needed / flops * tokens / my_tokens
    return _Pair(my_loss, 1.0, ratio, needed / my_flops, ratio * faster, why)


def _end(member: Member) -> tuple[float, float, float]:
    curve = member.curve
    return float(curve.tokens_N[-1]), float(curve.flops_N[-1]), float(curve.loss_N[-1])


def _speed_ratio(theirs: Member, mine: Member) -> tuple[float, str]:
    """My tokens per second over theirs, or NaN and why."""
    if machine(theirs.run) != machine(mine.run):
        return math.nan, f"{mine.name} ran on another machine than {theirs.name}"
    speeds = speed(theirs.run), speed(mine.run)
    if not all(0 < s < math.inf for s in speeds):
        return math.nan, "perf/tokens_per_second is not recorded"
    return speeds[1] / speeds[0], ""
