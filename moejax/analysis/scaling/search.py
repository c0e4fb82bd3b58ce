"""The search for a law's constants: starts, the two objectives, and how many starts agree."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from moejax.analysis.scaling.descent import Floats
from moejax.analysis.scaling.huber import solve_huber
from moejax.analysis.scaling.laws import Additive, Law
from moejax.analysis.scaling.points import Points
from moejax.analysis.scaling.separable import Solved, project, solve
from moejax.config.knobs import ConfigError

METHODS = ("vp", "huber")
BOOTSTRAPS = ("residuals", "cells")
CLUSTERS = ("cell", "run")
MAX_STARTS = 64
MAX_NUMBERS = 4_000_000
_SAME = 1e-6
"""Two starts reached the same optimum if their objectives differ by less, relatively."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How to fit. `vp`: least squares of relative errors by variable projection; `huber`: Huber's
    loss on ln loss, width `delta` (None: the law's own), all parameters searched together.

    `bootstrap`: as in `resampling`.
    `cluster="run"` treats runs of one cell as independent: narrower, and right only where the law
    has no misfit. `replicates=0` leaves intervals out.
    """

    method: str = "vp"
    delta: float | None = None
    bootstrap: str = "residuals"
    cluster: str = "cell"
    replicates: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        choices = (("method", METHODS), ("bootstrap", BOOTSTRAPS), ("cluster", CLUSTERS))
        for name, allowed in choices:
            if getattr(self, name) not in allowed:
                raise ConfigError(f"--{name}={getattr(self, name)}: must be {' or '.join(allowed)}")
        if self.delta is not None and not 0 < self.delta < math.inf:
            raise ConfigError(f"--delta={self.delta:g}: must be above 0")
        if self.seed < 0:
            raise ConfigError(f"--seed={self.seed}: must be at least 0")
        if not 0 <= self.replicates <= 100_000:
            raise ConfigError(f"--replicates={self.replicates}: must be in [0, 100000]")


def law_coefficients(solved: Solved) -> Floats:
    """The law's own coefficients `[R, Q]`: those of the shifted columns without the shift."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        size_RQ = np.exp(np.log(np.abs(solved.coefficient_RQ)) - solved.shift_RQ)
    return np.asarray(np.sign(solved.coefficient_RQ) * size_RQ)


def search(law: Law, points: Points, options: Options) -> tuple[Solved, int, int]:
    """The best optimum of all starts; how many starts were run and how many came to it."""
    target_I = law.target(points)
    start_SP = np.clip(law.starts(points), law.low_P, law.high_P)
    first = law.scale(target_I)
    # Every start is scored where it stands; the best of them are run.
    with np.errstate(over="ignore", invalid="ignore"):
        made = law.design(points)(start_SP)
        rows = (len(start_SP), len(points))
        scored = project(
            made.phi_RIQ * first[:, None], np.broadcast_to(target_I * first, rows), law.nonnegative
        )
    value_S = np.einsum("ri,ri->r", scored.residual_RI, scored.residual_RI)
    keep = np.argsort(np.where(np.isfinite(value_S), value_S, np.inf), kind="stable")[:MAX_STARTS]
    if options.method == "huber":
        coefficient_SQ, shift_SQ = scored.coefficient_RQ[keep], made.shift_RQ[keep]
        begin = Solved(coefficient_SQ, shift_SQ, start_SP[keep], value_S[keep])
        found = huber(law, points, options, np.log(points.column(law.response)), begin)
        return _best(found)
    found = least_squares(law, points, target_I, first, start_SP[keep])
    best, starts, reached = _best(found)
    # Errors relative to the measured loss would favour runs that came out low; two more passes with
    # errors relative to the fitted loss undo that.
    for _ in range(2):
        fitted_I = law.design(points)(best.exponent_RP).value(best.coefficient_RQ)[0]
        best = least_squares(law, points, target_I, law.scale(fitted_I), best.exponent_RP)
    return best, starts, reached


def _best(found: Solved) -> tuple[Solved, int, int]:
    value_R = np.where(np.isfinite(found.value_R), found.value_R, np.inf)
    pick = int(value_R.argmin())
    same = value_R <= value_R[pick] * (1 + _SAME) + 1e-20
    return _rows(found, slice(pick, pick + 1)), len(value_R), int(same.sum())


def _rows(solved: Solved, rows: slice) -> Solved:
    fields = dataclasses.fields(Solved)
    return Solved(*(getattr(solved, field.name)[rows] for field in fields))


def _pieces(law: Law, rows: int, points: int) -> list[slice]:
    """Rows in pieces whose arrays of derivatives stay within `MAX_NUMBERS`."""
    each = points * len(law.coefficients) * max(len(law.exponents), 1)
    length = max(1, MAX_NUMBERS // each)
    return [slice(first, first + length) for first in range(0, rows, length)]


def _joined(parts: list[Solved]) -> Solved:
    fields = dataclasses.fields(Solved)
    return Solved(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields))


def least_squares(
    law: Law,
    points: Points,
    target: Floats,
    scale: Floats,
    start_RP: Floats,
    tolerance: float = 1e-11,
) -> Solved:
    """Variable projection from every start; `target` and `scale` `[I]` or `[R, I]`."""
    shape = (len(start_RP), len(points))
    target_RI, scale_RI = np.broadcast_to(target, shape), np.broadcast_to(scale, shape)
    return _joined(
        [
            solve(
                law.design(points),
                target_RI[rows],
                scale_RI[rows],
                start_RP[rows],
                law.low_P,
                law.high_P,
                law.nonnegative,
                tolerance,
            )
            for rows in _pieces(law, *shape)
        ]
    )


def huber(
    law: Law,
    points: Points,
    options: Options,
    log_target: Floats,
    begin: Solved,
    weight: Floats | None = None,
) -> Solved:
    """Huber's loss from every row of `begin`; `log_target` `[I]` or `[R, I]`.

    Raises:
      ConfigError: the law is no sum of positive terms.
    """
    if not isinstance(law, Additive):
        raise ConfigError(
            f"--method=huber: the {law.name} law is linear in logarithms; "
            "nearest valid: --method=vp"
        )
    shape = (len(begin.exponent_RP), len(points))
    target_RI = np.broadcast_to(log_target, shape)
    weight_RI = np.broadcast_to(1.0 if weight is None else weight, shape)
    return _joined(
        [
            solve_huber(
                law.terms(points),
                target_RI[rows],
                weight_RI[rows],
                _rows(begin, rows),
                law.low_P,
                law.high_P,
                law.delta if options.delta is None else options.delta,
                -np.inf if law.pinned in (None, 0.0) else math.log(law.offset),
                law.mask(points),
            )
            for rows in _pieces(law, *shape)
        ]
    )
