"""The noise floor, paired differences, and whether a difference can be told from noise."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

from moejax.analysis.intervals import Mean, mean_of, t_quantile

UNKNOWN, WITHIN, BEYOND = "unknown", "within noise", "beyond noise"
BY_PAIRS, BY_FLOOR = "pairs", "noise floor"
FEW = 3  # pairs: with fewer, the t interval is too wide to tell anything (12.7 SE for two)

Key = TypeVar("Key")


@dataclasses.dataclass(frozen=True)
class Noise:
    """What the seed alone does to a loss: `sd` in the loss's unit, with `degrees` of freedom.

    NaN and 0 where no treatment has two seeds.
    """

    sd: float
    degrees: int

    def least_difference(self, n: int, m: int) -> float:
        """The smallest difference between means of `n` and of `m` runs that is beyond noise.

        t(0.975, degrees) * sd * sqrt(1/n + 1/m): the half-width of the 95 % interval of a
        difference of which the truth is 0. Pairing by seed is not used, so it errs on the large
        side.
        """
        if self.degrees < 1 or n < 1 or m < 1:
            return math.nan
        return t_quantile(self.degrees) * self.sd * math.sqrt(1 / n + 1 / m)


@dataclasses.dataclass(frozen=True)
class Difference:
    """A treatment minus the baseline, seed by seed; negative is a lower loss.

    Attributes:
      mean: of the pairs' differences, with its 95 % t interval.
      pairs: (seed, difference).
      unpaired: names of runs, of either side, whose seed the other side does not have.
      least: what `Noise.least_difference` asks for at this number of pairs.
      verdict: UNKNOWN, WITHIN or BEYOND; `rule` is what it was judged by, "" if by nothing.
    """

    mean: Mean
    pairs: tuple[tuple[str, float], ...]
    unpaired: tuple[str, ...]
    least: float
    verdict: str
    rule: str

    @property
    def bound(self) -> float:
        """What the difference was held against: beyond noise is what is larger; NaN: nothing."""
        return self.mean.half_width if self.rule == BY_PAIRS else self.least


def pooled(groups: Sequence[Sequence[float]]) -> Noise:
    """The standard deviation within groups, pooled: sqrt(sum of squares / sum of (n_i - 1)).

    The sum of squares is that of every value's distance from the mean of its own group. It takes
    the noise to be equally large in all groups. Groups of one value add nothing.
    """
    degrees = sum(len(group) - 1 for group in groups if len(group) > 1)
    if not degrees:
        return Noise(math.nan, 0)
    squares = 0.0
    for group in groups:
        if len(group) > 1:
            mean = math.fsum(group) / len(group)
            squares += math.fsum((value - mean) ** 2 for value in group)
    return Noise(math.sqrt(squares / degrees), degrees)


def paired(mine: Mapping[Key, float], theirs: Mapping[Key, float]) -> dict[Key, float]:
    """mine - theirs where both have the key, in the order of `mine`."""
    return {key: mine[key] - theirs[key] for key in mine if key in theirs}


def by_interval(difference: Mean) -> str:
    """WITHIN if the 95 % interval of a difference holds 0, else BEYOND; UNKNOWN without one."""
    return _verdict(difference.mean, difference.half_width)


def difference_of(
    mine: Mapping[str, float], theirs: Mapping[str, float], unpaired: Sequence[str], noise: Noise
) -> Difference:
    """The paired difference of two treatments and its verdict.

    With three pairs or more the paired interval judges (`by_interval`). With one or two it would
    be far too wide, and the noise floor judges, which all treatments share; with none nothing does.

    Args:
      mine, theirs: seed -> loss of the treatment and of the baseline.
      unpaired: names of the runs that have no partner.
    """
    pairs = paired(mine, theirs)
    mean = mean_of(list(pairs.values()))
    least = noise.least_difference(len(pairs), len(pairs))
    if len(pairs) >= FEW:
        verdict, rule = by_interval(mean), BY_PAIRS
    else:
        verdict = _verdict(mean.mean, least)
        rule = "" if verdict == UNKNOWN else BY_FLOOR
    return Difference(mean, tuple(pairs.items()), tuple(unpaired), least, verdict, rule)


def _verdict(difference: float, bound: float) -> str:
    if math.isnan(difference) or math.isnan(bound):
        return UNKNOWN
    return WITHIN if abs(difference) <= bound else BEYOND
