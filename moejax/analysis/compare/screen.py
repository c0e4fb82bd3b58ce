"""Which runs compare with the baseline, and for each of the others the reason, in one line."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from moejax.analysis import text
from moejax.analysis.compare.curves import AXES, LARGEST, Curve, read_curve
from moejax.analysis.compare.treatments import (
    Member,
    Treatment,
    common_name,
    seed_of,
    treatment_key,
    unique_names,
)
from moejax.analysis.provenance import origin
from moejax.analysis.runs import Run
from moejax.config.knobs import ConfigError, nearest

UNFINISHED, CONFIG, METRICS, NOT_FINITE = "unfinished", "config", "metrics", "not finite"
TOKENIZER, DATA, EVALUATION, MACHINE = "tokenizer", "data", "evaluation", "machine"
REPEATED, SCHEDULE, RANGE = "repeated", "schedule", "not reached"


@dataclasses.dataclass(frozen=True)
class Exclusion:
    """A run that is left out: `cause` is one of the words above, `reason` a line for people."""

    run: str
    cause: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Selection:
    """Runs that compare, as treatments, the baseline first; and those that do not.

    `chosen`: whether the baseline was chosen here and not by the caller.
    """

    treatments: tuple[Treatment, ...]
    excluded: tuple[Exclusion, ...]
    chosen: bool

    @property
    def baseline(self) -> Treatment:
        """What the others are compared with."""
        return self.treatments[0]


def select(runs: Sequence[Run], baseline: str = "", axis: str = "tokens") -> Selection:
    """Finished, readable runs on the baseline's text, by treatment.

    Args:
      runs: loaded run directories.
      baseline: name of a treatment, or of one of its runs; "": the first dense treatment, or the
        first of all where none is dense.
      axis: one of `AXES`; comparing at equal time also asks for the baseline's machine.

    Raises:
      ConfigError: no run is left, no such baseline, or it is itself left out.
    """
    if axis not in AXES:
        hint = nearest(axis, AXES) or f"; known: {', '.join(AXES)}"
        raise ConfigError(f"at={text.clean(axis, 80)}: unknown axis{hint}")
    excluded: dict[str, Exclusion] = {}
    found: dict[str, list[Member]] = {}
    for run in runs:
        curve = read_curve(run)
        problems = _own_problems(run, curve, axis)
        if problems:
            excluded[run.name] = _exclusion(run, problems)
        else:
            found.setdefault(treatment_key(run), []).append(Member(run, seed_of(run), curve))
    names = unique_names([common_name([m.name for m in group]) for group in found.values()])
    groups = [Treatment(n, tuple(g)) for n, g in zip(names, found.values(), strict=True)]
    first = _find(groups, baseline, excluded)
    ordered = [first, *(group for group in groups if group is not first)]
    kept = []
    for group in ordered:
        members = []
        for member in group.members:
            problems = _problems_beside(member.run, first.members[0], axis)
            if problems:
                excluded[member.name] = _exclusion(member.run, problems)
            else:
                members.append(member)
        for member in _repeated(members):
            what = f"repeats {_seed(member)} of {text.shorten(group.name, 60)}: the last one counts"
            excluded[member.name] = Exclusion(member.name, REPEATED, what)
        members = [member for member in members if member.name not in excluded]
        if members:
            kept.append(Treatment(group.name, tuple(members)))
    order = [excluded[run.name] for run in runs if run.name in excluded]
    return Selection(tuple(kept), tuple(order), not baseline)


def _find(groups: Sequence[Treatment], baseline: str, excluded: dict[str, Exclusion]) -> Treatment:
    """The treatment of that name, or with a run of that name."""
    shown = text.clean(baseline, 120)
    if not groups:
        first = next(iter(excluded.values()), None)
        why = f": {first.run}: {first.reason}" if first else ""
        raise ConfigError(f"no run that can be compared{why}")
    if not baseline:
        return next((group for group in groups if group.dense), groups[0])
    for group in groups:
        if baseline == group.name:
            return group
    for group in groups:
        if any(baseline == member.name for member in group.members):
            return group
    if baseline in excluded:
        raise ConfigError(f"baseline={shown}: is left out itself: {excluded[baseline].reason}")
    names = [group.name for group in groups]
    hint = nearest(baseline, names) or f"; there are: {text.listing(names)}"
    raise ConfigError(f"baseline={shown}: no such run or configuration{text.clean(hint)}")


def _exclusion(run: Run, problems: Sequence[tuple[str, str]]) -> Exclusion:
    return Exclusion(run.name, problems[0][0], "; ".join(what for _, what in problems))


def _own_problems(run: Run, curve: Curve, axis: str) -> list[tuple[str, str]]:
    """(cause, reason) of all that is wrong with a run by itself."""
    found = []
    if run.state != "done":
        step, total = run.status.number("step"), run.status.number("total_steps")
        where = f" at step {text.fixed(step, 0)} of {text.fixed(total, 0)}" if step >= 0 else ""
        found.append((UNFINISHED, f"unfinished: {text.shorten(run.state, 40)}{where}"))
    if not treatment_key(run):
        found.append((CONFIG, "config.json is not readable: what was trained is not known"))
    if not all(run.text_id):
        missing = "text" if not run.text_id[0] else "tokenizer"
        found.append((DATA, f"data.json names no {missing}"))
    bad_N = ~(np.abs(curve.loss_N) < LARGEST)  # NaN too
    if "eval/loss" not in run.metrics.eval.data:
        found.append((METRICS, "no eval/loss in metrics.jsonl"))
    elif bad_N.any():
        step = int(run.metrics.eval["step"][bad_N][0])
        found.append((NOT_FINITE, f"eval/loss is not finite at step {step:,}"))
    else:
        for column in dict.fromkeys(("tokens", axis)):
            if not curve.axis(column)[-1] > 0:
                what = f"{AXES[column]} is missing from an evaluation, or does not grow"
                found.append((METRICS, what))
    return found


def _problems_beside(run: Run, baseline: Member, axis: str) -> list[tuple[str, str]]:
    """(cause, reason) of all that keeps a run from comparing with the baseline's first run."""
    found, other = [], baseline.run
    (manifest, tokenizer), (its_manifest, its_tokenizer) = run.text_id, other.text_id
    if tokenizer != its_tokenizer:
        pair = f"{tokenizer[:12]}, the baseline's is {its_tokenizer[:12]}"
        what = f"other tokenizer, {pair}: losses per token do not compare (bits per byte do)"
        found.append((TOKENIZER, what))
    if manifest != its_manifest:
        what = f"other text, manifest {manifest[:12]}, the baseline's is {its_manifest[:12]}"
        found.append((DATA, what))
    mine, its = (r.metrics.eval.last("eval/tokens") for r in (run, other))
    if mine != its and (np.isfinite(mine) or np.isfinite(its)):
        counts = f"{text.fixed(mine, 0)} tokens, the baseline on {text.fixed(its, 0)}"
        found.append((EVALUATION, f"validated on {counts}"))
    if axis == "time" and machine(run) != machine(other):
        pair = f"{machine(run) or 'unknown'}, the baseline's is {machine(other) or 'unknown'}"
        found.append((MACHINE, f"other machine, {text.clean(pair)}: times do not compare"))
    return found


def machine(run: Run) -> str:
    """Platform, devices, cores and processor that env.json names; "" if it names none."""
    return origin(run)["platform"]


def _repeated(members: Sequence[Member]) -> list[Member]:
    """All but the last of those with one seed."""
    last = {member.seed: member for member in members}
    return [member for member in members if last[member.seed] is not member]


def _seed(member: Member) -> str:
    return f"seed {member.seed}" if member.seed else "an unknown seed"
