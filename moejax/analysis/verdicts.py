"""What the comparison allows to say: claims that hold, that do not, or that it cannot tell."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from moejax.analysis import text
from moejax.analysis.compare import BEYOND, UNKNOWN, Comparison, Row
from moejax.analysis.compare.noise import BY_FLOOR, BY_PAIRS
from moejax.analysis.evidence import Evidence, Scaling
from moejax.analysis.figures.scaling_law import estimate
from moejax.analysis.view import View

HOLDS, DOES_NOT, CANNOT_TELL = "holds", "does not", "cannot tell at this scale"
MOST = 6  # configurations told one by one


@dataclasses.dataclass(frozen=True)
class Claim:
    """A sentence about the runs, the numbers that decide it, and the verdict."""

    claim: str
    because: str
    verdict: str

    def __str__(self) -> str:
        return f"{self.claim} {self.because}: {self.verdict}."


def claims(evidence: Evidence) -> list[Claim]:
    """Claims about loss at equal budgets, about rarity and compute, and about scaling."""
    found = [
        _difference(comparison, row)
        for comparison in evidence.comparisons
        if comparison.at in ("tokens", "flops")
        for row in [r for r in comparison.rows if r.difference and r.difference.mean.n][:MOST]
    ]
    rarities = [_rarity(name, views) for name, views in _by_treatment(evidence)]
    found += [claim for claim in rarities if claim][:MOST]
    return [*found, *_exponents(evidence.scaling)]


def _difference(comparison: Comparison, row: Row) -> Claim:
    gap = row.difference
    assert gap is not None
    at = "equal FLOPs" if comparison.at == "flops" else f"equal {comparison.at}"
    claim = f"At {at}, {row.name} has a lower loss than {comparison.baseline}."
    pairs = text.count(gap.mean.n, "seed")
    because = f"Difference {gap.mean.mean:+.4f} nats"
    because += f" ± {gap.bound:.4f}" if gap.rule == BY_PAIRS else ""
    because += f" over {pairs}"
    if gap.verdict == UNKNOWN:
        because += ", and no configuration has a second seed to tell the noise"
    elif gap.rule == BY_FLOOR:
        because += f"; beyond the noise of seeds from {gap.bound:.4f}"
    if gap.verdict != BEYOND:
        return Claim(claim, because, CANNOT_TELL)
    return Claim(claim, because, HOLDS if gap.mean.mean < 0 else DOES_NOT)


def _by_treatment(evidence: Evidence) -> list[tuple[str, list[View]]]:
    """Runs that differ in their seed only are together; one that does not compare is alone."""
    selection = evidence.selection
    treatment = {
        member.name: one.name
        for one in (selection.treatments if selection else ())
        for member in one.members
    }
    found: dict[str, list[View]] = {}
    for view in evidence.runs:
        found.setdefault(treatment.get(view.run.name, view.name), []).append(view)
    return list(found.items())


def _rarity(name: str, views: Sequence[View]) -> Claim | None:
    """Whether the rarest tokens get more units than the commonest: the ends of the frequency bins.

    Only of routers that can give tokens different amounts. It holds if it does for every seed.
    """
    found = [view.groups.rarity for view in views if view.groups is not None]
    gaps = [
        gap
        for gap in found
        if gap and math.isfinite(gap.half_width) and (gap.mean != 0 or gap.half_width != 0)
    ]
    if not gaps:
        return None
    claim = f"{name} gives rare tokens more hidden units than common ones."
    shown = " and ".join(f"{gap.mean:+.1f} ± {gap.half_width:.1f}" for gap in gaps)
    because = (
        f"Ranks {gaps[0].of} get {shown} units per layer against ranks {gaps[0].minus}, with "
        "sequences of the text as independent draws"
    )
    because += f", over {text.count(len(gaps), 'seed')}" if len(gaps) > 1 else ""
    verdicts = {
        CANNOT_TELL if abs(gap.mean) <= gap.half_width else HOLDS if gap.mean > 0 else DOES_NOT
        for gap in gaps
    }
    return Claim(claim, because, verdicts.pop() if len(verdicts) == 1 else CANNOT_TELL)


def _exponents(scaling: Scaling | str) -> Sequence[Claim]:
    """Whether a group's loss falls faster with compute than the baseline's, by their α."""
    if isinstance(scaling, str) or scaling.power.comparison is None:
        return []
    own = {g: part.fit for g, part in scaling.power.parts.items() if part.fit is not None}
    base = scaling.power.comparison.baseline
    if base not in own:
        return []
    found = []
    for group, fit in own.items():
        mine, theirs = fit.estimates.get("alpha"), own[base].estimates.get("alpha")
        if group == base or mine is None or theirs is None:
            continue
        claim = f"The loss of {group} falls faster with compute than that of {base}."
        because = f"α {estimate(mine)} against {estimate(theirs)}"
        if not (mine.known and theirs.known):
            because += ", without an interval of both"
        if mine.low > theirs.high:
            verdict = HOLDS
        else:
            verdict = DOES_NOT if mine.high < theirs.low else CANNOT_TELL
        found.append(Claim(claim, because, verdict))
    return found
