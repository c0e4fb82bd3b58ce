"""Several architectures side by side: each alone, with one irreducible loss, and with it pinned."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from moejax.analysis import text
from moejax.analysis.scaling import determinacy
from moejax.analysis.scaling.additive import Power
from moejax.analysis.scaling.descent import Floats
from moejax.analysis.scaling.fitting import Estimate, Fit, fit
from moejax.analysis.scaling.laws import Additive, Law
from moejax.analysis.scaling.points import Points, make_points
from moejax.analysis.scaling.resampling import interval
from moejax.analysis.scaling.search import Options
from moejax.analysis.scaling.shared import Shared, at_floors
from moejax.config.knobs import ConfigError, nearest

PINS = (0.0, 0.25, 0.5, 0.75, 0.9)
"""Shares of the least loss at which the irreducible loss is pinned for the sensitivity table."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """A constant of `group` minus that of `baseline`; `verdict`: above, below, cannot tell."""

    group: str
    baseline: str
    name: str
    floor: str
    estimate: Estimate

    @property
    def verdict(self) -> str:
        """Whether the 95 % interval of the difference leaves out 0."""
        if not self.estimate.known:
            return "cannot tell: no interval"
        if self.estimate.low > 0:
            return "above"
        return "below" if self.estimate.high < 0 else "cannot tell"


@dataclasses.dataclass(frozen=True)
class Pin:
    """Exponents `name -> group -> value` with the irreducible loss pinned at `floor`, and misfit.

    By least squares, whatever the method asked for. `rmse` is the root mean square of relative
    errors over all groups: a floor that fits much worse than others is not the data's.
    """

    floor: float
    exponents: Mapping[str, Mapping[str, float]]
    rmse: float


@dataclasses.dataclass(frozen=True)
class Leverage:
    """C_baseline / C_group at equal loss, where the group's run has `c` FLOPs and this loss.

    Above 1: the baseline needs more. `inside`: whether the baseline's FLOPs lie in its own data.
    """

    group: str
    baseline: str
    floor: str
    c: float
    loss: float
    estimate: Estimate
    inside: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """What sets groups apart: the fit with one irreducible loss, and what follows from all fits."""

    baseline: str
    shared: Fit | None
    shared_flags: tuple[str, ...]
    why_not_shared: str
    pins: tuple[Pin, ...]
    differences: tuple[Difference, ...]
    leverage: tuple[Leverage, ...]


def baseline_of(points: Points, asked: str = "") -> str:
    """The group that others are compared with: as asked, else `dense`, else the first.

    Raises:
      ConfigError: no such group.
    """
    groups = points.groups
    if asked and asked not in groups:
        hint = nearest(asked, groups) or f"; there are {text.listing(groups)}"
        raise ConfigError(f"--baseline={text.clean(asked)}: no such group{hint}")
    return asked or ("dense" if "dense" in groups else groups[0])


def compare(
    law: Law, points: Points, options: Options, own: Mapping[str, Fit], baseline: str
) -> Comparison:
    """Fits all groups together with one irreducible loss, and sets every group off the baseline.

    Args:
      law: the law of each group.
      points: of all groups.
      options: how to fit.
      own: fits of groups alone, those that could be.
      baseline: as `baseline_of` says.
    """
    shared, why_not_shared = _shared(law, points, options)
    pins = _pins(law, shared) if shared is not None and isinstance(law, Additive) else ()
    return Comparison(
        baseline,
        shared,
        () if shared is None else determinacy.flags(shared),
        why_not_shared,
        pins,
        tuple(_differences(law, own, shared, baseline)),
        tuple(_leverage(law, points, own, shared, baseline)),
    )


def _shared(law: Law, points: Points, options: Options) -> tuple[Fit | None, str]:
    """The fit with one constant; groups need only what the law needs with its constant given."""
    if not isinstance(law, Additive):
        return None, f"the {law.name} law has no irreducible loss"
    if law.pinned is not None:
        return None, f"{law.every_coefficient[0]} is pinned"
    if law.name not in ("power", "chinchilla"):
        return None, f"the {law.name} law is fitted to each group alone"
    pinned = dataclasses.replace(law, pinned=0.0)
    groups = tuple(g for g in points.groups if not determinacy.refusal(pinned, points.in_group(g)))
    if len(groups) < 2:
        return None, "fewer than two groups can be fitted"
    together = points.take(np.array([g in groups for g in points.group_I], bool))
    both = Shared(base=law, groups=groups)
    if len(together.cells) < both.parameters:
        cells = len(together.cells)
        return None, f"{cells} treatments for {both.parameters} constants with one in common"
    return fit(both, together, options, hold_out=False), ""


def _pins(law: Additive, shared: Fit) -> tuple[Pin, ...]:
    groups, points = groups_of(shared), shared.points
    best = shared.values[law.every_coefficient[0]]
    floors = sorted({*(share * float(points.loss_I.min()) for share in PINS), best})
    found = {g: at_floors(law, points.in_group(g), np.array(floors)) for g in groups}
    total_F = np.sum([value_F for _, value_F in found.values()], axis=0)
    return tuple(
        Pin(
            floor,
            {
                name: {group: float(found[group][0][i, p]) for group in groups}
                for p, name in enumerate(law.exponents)
            },
            float(np.sqrt(2 * total_F[i] / len(points))),
        )
        for i, floor in enumerate(floors)
    )


def _differences(
    law: Law, own: Mapping[str, Fit], shared: Fit | None, baseline: str
) -> list[Difference]:
    """Exponents of every group minus the baseline's, for own and shared floors."""
    found = []
    names = [name for name in law.exponents if not name.startswith("ln ")]
    if not isinstance(law, Additive):
        names = list(law.coefficients)
    if baseline in own:
        other = own[baseline]
        for group, one in own.items():
            if group == baseline:
                continue
            for name in names:
                draws = _minus(one.draws[name], other.draws[name])
                value = one.values[name] - other.values[name]
                estimate = Estimate(value, *interval(draws))
                found.append(Difference(group, baseline, name, _floor(law), estimate))
    if shared is not None and baseline in groups_of(shared):
        draws_of, values = shared.draws, shared.values
        for group in groups_of(shared):
            if group == baseline:
                continue
            for name in names:
                here, there = f"{name}[{group}]", f"{name}[{baseline}]"
                draws = draws_of[here] - draws_of[there]
                estimate = Estimate(values[here] - values[there], *interval(draws))
                found.append(Difference(group, baseline, name, "shared", estimate))
    return found


def groups_of(shared: Fit) -> tuple[str, ...]:
    """The groups of a fit with one constant."""
    return shared.law.groups if isinstance(shared.law, Shared) else ()


def _floor(law: Law) -> str:
    """Where a group's irreducible loss comes from when it is fitted alone."""
    return "pinned" if isinstance(law, Additive) and law.pinned is not None else "own"


def _minus(one_R: Floats, other_R: Floats) -> Floats:
    """Differences of independent draws; empty where either fit has none."""
    count = min(len(one_R), len(other_R))
    return one_R[:count] - other_R[:count]


def _leverage(
    law: Law, points: Points, own: Mapping[str, Fit], shared: Fit | None, baseline: str
) -> list[Leverage]:
    """At three numbers of FLOPs of each group, for power laws in C."""
    if not isinstance(law, Power) or law.x != "c":
        return []
    sources: list[tuple[str, dict[str, Floats]]] = []
    if shared is not None:
        sources.append(("shared", {g: _curve(shared, g) for g in groups_of(shared)}))
    sources.append((_floor(law), {g: _curve(f, "") for g, f in own.items()}))
    found = []
    for floor, curves in sources:
        if baseline not in curves:
            continue
        base_c = points.in_group(baseline).c_I
        for group in curves:
            if group == baseline:
                continue
            c_I = points.in_group(group).c_I
            for c in np.geomspace(c_I.min(), c_I.max(), 3):
                loss_R = _loss(curves[group], float(c))
                needed_R = _needed(curves[baseline], loss_R)
                ratio_R = needed_R / float(c)
                inside = bool(base_c.min() <= needed_R[0] <= base_c.max())
                estimate = Estimate(float(ratio_R[0]), *interval(ratio_R[1:]))
                found.append(
                    Leverage(group, baseline, floor, float(c), float(loss_R[0]), estimate, inside)
                )
    return found


def _curve(one: Fit, group: str) -> Floats:
    """(L_inf, A, alpha) `[3, 1 + R]`: the optimum first, then the bootstrap."""
    tail = f"[{group}]" if group else ""
    values, draws = one.values, one.draws
    names = ("L_inf", f"A{tail}", f"alpha{tail}")
    return np.stack([np.concatenate([[values[n]], draws[n]]) for n in names])


def _loss(curve: Floats, c: float) -> Floats:
    floor_R, a_R, alpha_R = curve
    return np.asarray(floor_R + a_R * c**-alpha_R)


def _needed(curve: Floats, loss_R: Floats) -> Floats:
    """FLOPs at which a power law reaches a loss; infinite where it never does."""
    floor_R, a_R, alpha_R = curve
    count = min(len(floor_R), len(loss_R))
    above_R = loss_R[:count] - floor_R[:count]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        reached_R = (a_R[:count] / above_R) ** (1 / alpha_R[:count])
    return np.where(above_R > 0, reached_R, math.inf)


def line_of(one: Fit, group: str, c_X: Floats) -> tuple[Floats, Floats, Floats]:
    """A group's fitted loss along C with its 95 % band, `[X]` each, for a figure."""
    points = make_points(c=c_X, n=c_X, d=c_X, group=[group] * len(c_X))
    here_X, draw_RX = one.predict(points)
    bounds = [interval(draw_RX[:, i]) for i in range(len(c_X))]
    low, high = np.array(bounds).reshape(-1, 2).T
    return here_X, low, high
