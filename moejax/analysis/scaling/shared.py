"""One law for several groups that have the irreducible loss in common and nothing else."""

from __future__ import annotations

import dataclasses

import numpy as np

from moejax.analysis.scaling.additive import Power
from moejax.analysis.scaling.descent import Floats
from moejax.analysis.scaling.laws import Additive
from moejax.analysis.scaling.points import Points
from moejax.analysis.scaling.separable import solve

_PROFILE, _OWN_STARTS = 24, 8


@dataclasses.dataclass(frozen=True)
class Shared(Additive):
    """`base` for each of `groups`, with one constant for all; names are `alpha[top_p]`.

    Groups on the same text have the same entropy to end at, if they end there: sharing it takes out
    of every exponent what the data cannot tell from a different floor.
    """

    base: Additive = Power()
    groups: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.base.name

    @property
    def version(self) -> int:
        return self.base.version

    @property
    def formula(self) -> str:
        return f"{self.base.formula}, {self.every_coefficient[0]} shared"

    @property
    def needs(self) -> dict[str, int]:
        return dict(self.base.needs)

    @property
    def every_coefficient(self) -> tuple[str, ...]:
        first, *others = self.base.every_coefficient
        return first, *(f"{name}[{group}]" for group in self.groups for name in others)

    @property
    def exponents(self) -> tuple[str, ...]:
        return tuple(f"{name}[{group}]" for group in self.groups for name in self.base.exponents)

    @property
    def low_P(self) -> Floats:
        return np.tile(self.base.low_P, len(self.groups))

    @property
    def high_P(self) -> Floats:
        return np.tile(self.base.high_P, len(self.groups))

    @property
    def delta(self) -> float:
        return self.base.delta

    def powers(self, exponent_RP: Floats, points: Points) -> tuple[Floats, Floats]:
        own = len(self.base.exponents)
        logs, slopes = [], []
        for i in range(len(self.groups)):
            log_RIQ, dlog_RIQP = self.base.powers(exponent_RP[:, i * own : (i + 1) * own], points)
            wide = np.zeros((*log_RIQ.shape, exponent_RP.shape[1]))
            wide[..., i * own : (i + 1) * own] = dlog_RIQP
            logs.append(log_RIQ)
            slopes.append(wide)
        return np.concatenate(logs, 2), np.concatenate(slopes, 2)

    def mask(self, points: Points) -> np.ndarray:
        columns = len(self.base.every_coefficient) - 1
        of_I = np.array([self.groups.index(group) for group in points.group_I])
        own_IQ = np.repeat(of_I[:, None] == np.arange(len(self.groups)), columns, axis=1)
        if self.pinned is None:
            own_IQ = np.concatenate([np.ones((len(points), 1), bool), own_IQ], 1)
        return own_IQ

    def starts(self, points: Points) -> Floats:
        """The best exponents of each group alone, at the constants that suit all groups best.

        At a given constant the groups have nothing in common, so each is searched alone for a row
        of constants; the constants with the smallest sums of squares are where to start.
        """
        floor_F = points.loss_I.min() * np.linspace(0.0, 0.995, _PROFILE)
        if self.pinned is not None:
            floor_F = np.array([self.pinned])
        found = [at_floors(self.base, points.in_group(group), floor_F) for group in self.groups]
        order = np.argsort(sum(value_F for _, value_F in found), kind="stable")[:8]
        return np.concatenate([exponent_FP for exponent_FP, _ in found], 1)[order]


def at_floors(law: Additive, points: Points, floor_F: Floats) -> tuple[Floats, Floats]:
    """The law with its constant pinned at each of `floor_F`, by least squares of relative errors.

    Returns:
      exponents `[F, P]` and half the sums of squares `[F]`.
    """
    pinned = dataclasses.replace(law, pinned=0.0)
    every_SP = pinned.starts(points)
    start_SP = every_SP[:: -(-len(every_SP) // _OWN_STARTS)]
    target_RI = np.repeat(points.loss_I - floor_F[:, None], len(start_SP), 0)
    found = solve(
        pinned.design(points),
        target_RI,
        np.broadcast_to(1 / points.loss_I, target_RI.shape),
        np.tile(start_SP, (len(floor_F), 1)),
        pinned.low_P,
        pinned.high_P,
        True,
        tolerance=1e-7,
    )
    value_FS = found.value_R.reshape(len(floor_F), -1)
    exponent_FSP = found.exponent_RP.reshape(*value_FS.shape, -1)
    return exponent_FSP[np.arange(len(floor_F)), value_FS.argmin(1)], value_FS.min(1)
