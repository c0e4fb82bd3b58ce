"""Runs of a ladder, by how many tokens they were trained on: each length has its own baseline."""

from __future__ import annotations

from collections.abc import Sequence

from moejax.analysis.compare.screen import select
from moejax.analysis.compare.treatments import Treatment
from moejax.analysis.runs import Run
from moejax.config.knobs import ConfigError

APART = 1.5  # times as many tokens: no budget at which both have come to the end of their schedule


def rungs(runs: Sequence[Run]) -> list[list[Run]]:
    """Splits runs where training lengths leave a gap of `APART`, if that leaves what to compare.

    A treatment's length is that of its longest run that compares. Where fewer than two rungs
    have two treatments, all runs are one list: then lengths are a matter of `compare`'s budget.
    Runs that do not compare, and rungs of a single treatment, are in no list of several.

    Returns:
      Lists of runs, the shortest first.
    """
    try:
        treatments = select(runs).treatments
    except ConfigError:
        return [list(runs)]
    found: list[list[Treatment]] = []
    for one in sorted(treatments, key=_tokens):
        if found and _tokens(one) < APART * _tokens(found[-1][-1]):
            found[-1].append(one)
        else:
            found.append([one])
    several = [rung for rung in found if len(rung) > 1]
    if len(several) < 2:
        return [list(runs)]
    kept = []
    for rung in several:
        names = {member.name for one in rung for member in one.members}
        kept.append([run for run in runs if run.name in names])
    return kept


def _tokens(one: Treatment) -> float:
    return max(float(member.curve.tokens_N[-1]) for member in one.members)
