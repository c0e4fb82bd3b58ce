"""Many small minimisations at once: damped Newton steps inside bounds, one row per problem.

Axis letters of this package: `I` points, `J` cells, `R` problems of a batch (starts, replicates),
`Q` coefficients, `P` exponents or parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_LAMBDA_START, _LAMBDA_LOW, _LAMBDA_HIGH = 1e-2, 1e-12, 1e10


@dataclasses.dataclass(frozen=True, eq=False)
class Local:
    """What an objective looks like around each row of parameters.

    `value_R` the objective; `slope_RP` its gradient; `curve_RPP` a positive semidefinite model of
    its second derivatives; `damp_RPP` what is added, times lambda, where a step fails.
    """

    value_R: Floats
    slope_RP: Floats
    curve_RPP: Floats
    damp_RPP: Floats


Objective = Callable[[Floats, Ints], Local]
"""(parameters_RP, rows_R) to Local; `rows_R`: the problems of the batch that the rows belong to."""


def descend(
    objective: Objective,
    start_RP: Floats,
    low_P: Floats,
    high_P: Floats,
    *,
    steps: int = 200,
    tolerance: float = 1e-11,
) -> tuple[Floats, Floats]:
    """Minimises each row from its start (Levenberg-Marquardt, projected on the bounds).

    A row is done when a full step would change no parameter by more than `tolerance` relative to
    1 + |parameter|, when its value no longer falls, or when no damping yields a better value.

    Returns:
      parameters_RP and value_R at the end.
    """
    at_RP = np.clip(np.array(start_RP, np.float64), low_P, high_P)
    rows_R = np.arange(len(at_RP))
    local = objective(at_RP, rows_R)
    value_R = local.value_R.copy()
    damping_R = np.full(len(at_RP), _LAMBDA_START)
    stale_R = np.zeros(len(at_RP), np.int64)
    for _ in range(steps):
        if not rows_R.size:
            break
        here_RP = at_RP[rows_R]
        step_RP = _step(local, here_RP, low_P, high_P, damping_R[rows_R])
        trial_RP = np.clip(here_RP + step_RP, low_P, high_P)
        moved_RP = np.abs(trial_RP - here_RP) / (1 + np.abs(here_RP))
        trial = objective(trial_RP, rows_R)
        better_R = trial.value_R < local.value_R
        gain_R = np.where(better_R, local.value_R - trial.value_R, 0.0)
        still_R = gain_R <= 1e-14 * np.abs(local.value_R)
        at_RP[rows_R[better_R]] = trial_RP[better_R]
        value_R[rows_R[better_R]] = trial.value_R[better_R]
        factor_R = np.where(better_R, 0.1, 10.0)
        damping_R[rows_R] = np.maximum(damping_R[rows_R] * factor_R, _LAMBDA_LOW)
        stale_R[rows_R] = np.where(better_R & still_R, stale_R[rows_R] + 1, 0)
        done_R = moved_RP.max(-1, initial=0.0) <= tolerance
        done_R |= (stale_R[rows_R] >= 3) | (damping_R[rows_R] > _LAMBDA_HIGH)
        local = _choose(better_R, trial, local, ~done_R)
        rows_R = rows_R[~done_R]
    return at_RP, value_R


def _step(local: Local, at_RP: Floats, low_P: Floats, high_P: Floats, damping_R: Floats) -> Floats:
    """The damped Newton step; parameters that a bound holds back do not take part."""
    held_RP = ((at_RP <= low_P) & (local.slope_RP > 0)) | ((at_RP >= high_P) & (local.slope_RP < 0))
    free_RP = ~held_RP
    matrix_RPP = local.curve_RPP + damping_R[:, None, None] * local.damp_RPP
    matrix_RPP = np.where(free_RP[:, :, None] & free_RP[:, None, :], matrix_RPP, 0.0)
    diagonal_RP = np.einsum("rpp->rp", matrix_RPP).copy()
    # A parameter that does not matter here has an empty row; it then stays where it is.
    floor_R = 1e-300 + 1e-15 * diagonal_RP.max(-1, initial=0.0)
    index = np.arange(at_RP.shape[1])
    matrix_RPP[:, index, index] = np.where(
        diagonal_RP > floor_R[:, None], diagonal_RP * (1 + 1e-15), 1.0
    )
    slope_RP = np.where(free_RP & (diagonal_RP > floor_R[:, None]), local.slope_RP, 0.0)
    # Scaled to a unit diagonal, so that units of parameters do not decide what is singular.
    scale_RP = np.sqrt(np.einsum("rpp->rp", matrix_RPP))
    unit_RPP = matrix_RPP / (scale_RP[:, :, None] * scale_RP[:, None, :])
    unit_RPP[:, index, index] = 1.0 + 1e-14
    solved_RP1 = np.linalg.solve(unit_RPP, (slope_RP / scale_RP)[:, :, None])
    return np.asarray(-solved_RP1[:, :, 0] / scale_RP)


def _choose(
    better_R: NDArray[np.bool_], new: Local, old: Local, keep_R: NDArray[np.bool_]
) -> Local:
    """`new` where better, else `old`, of the rows to keep."""
    picked = []
    for field in dataclasses.fields(Local):
        a, b = getattr(new, field.name), getattr(old, field.name)
        better = better_R.reshape(-1, *[1] * (a.ndim - 1))
        picked.append(np.where(better, a, b)[keep_R])
    return Local(*picked)
