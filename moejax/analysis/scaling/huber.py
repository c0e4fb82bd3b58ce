"""Huber's loss on the log of the loss, all parameters searched together.

Approach 3 as published (Hoffmann et al. 2022, appendix D.3; delta 1e-3), with the sum over points.
The law is summed as a log-sum-exp of its terms, so that coefficients are positive by construction.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from moejax.analysis.scaling.descent import Floats, Ints, Local, descend
from moejax.analysis.scaling.separable import Solved

# ln of a coefficient in units of its column: e^-40 of the loss is no term any more.
_LOW, _HIGH = -40.0, 40.0


def huber(residual: Floats, delta: float) -> Floats:
    """r^2 / 2 where |r| <= delta, else delta (|r| - delta / 2)."""
    size = np.abs(residual)
    return np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta))


def solve_huber(
    terms: Callable[[Floats], tuple[Floats, Floats]],
    log_target_RI: Floats,
    weight_RI: Floats,
    start: Solved,
    low_P: NDArray[np.float64],
    high_P: NDArray[np.float64],
    delta: float,
    log_offset: float = -np.inf,
    mask_IQ: NDArray[np.bool_] | None = None,
) -> Solved:
    """Minimises sum_i weight_i Huber_delta(ln law_i - ln target_i): the sum, not the mean.

    The width of Huber's loss is first the spread of the residuals and then narrowed to `delta`:
    near-absolute loss has creases that a search from afar gets caught in.

    Args:
      terms: exponents `[R, P]` to the log of each column `[R, I, Q]` and its derivatives
        `[R, I, Q, P]`.
      log_target_RI: ln of what the law should give.
      weight_RI: how often each point counts.
      start: where each row begins; coefficients of 0 begin as very small ones.
      low_P: least exponents.
      high_P: greatest exponents.
      delta: where Huber's loss turns from square to absolute, in units of ln loss.
      log_offset: ln of a fixed term (a pinned irreducible loss); -inf for none.
      mask_IQ: which points a column concerns; None: all.
    """
    columns = start.coefficient_RQ.shape[1]
    floor = np.exp(_LOW + 1)
    first_RK = np.concatenate(
        [np.log(np.maximum(start.coefficient_RQ, floor)), start.exponent_RP], axis=1
    )
    low_K = np.concatenate([np.full(columns, _LOW), low_P])
    high_K = np.concatenate([np.full(columns, _HIGH), high_P])

    def model(at_RK: Floats) -> tuple[Floats, Floats]:
        """ln law `[R, I]` and its derivatives `[R, I, K]`."""
        log_RIQ, dlog_RIQP = terms(at_RK[:, columns:])
        centre_RQ = log_RIQ.mean(1)
        dlog_RIQP = dlog_RIQP - dlog_RIQP.mean(1, keepdims=True)
        log_RIQ = log_RIQ - centre_RQ[:, None, :] + at_RK[:, None, :columns]
        if mask_IQ is not None:
            log_RIQ = np.where(mask_IQ, log_RIQ, -np.inf)
        top_RI = np.maximum(log_RIQ.max(-1), log_offset)
        part_RIQ = np.exp(log_RIQ - top_RI[:, :, None])
        total_RI = part_RIQ.sum(-1) + np.exp(log_offset - top_RI)
        share_RIQ = part_RIQ / total_RI[:, :, None]
        slope_RIP = sum(share_RIQ[:, :, q, None] * dlog_RIQP[:, :, q] for q in range(columns))
        return np.log(total_RI) + top_RI, np.concatenate([share_RIQ, slope_RIP], axis=2)

    def objective(width: float) -> Callable[[Floats, Ints], Local]:
        def at(at_RK: Floats, rows_R: Ints) -> Local:
            log_RI, jacobian_RIK = model(at_RK)
            residual_RI = log_RI - log_target_RI[rows_R]
            weight = weight_RI[rows_R]
            size_RI = np.abs(residual_RI)
            pull_RI = weight * np.clip(residual_RI, -width, width)
            near_RI = weight * (size_RI <= width)
            majorant_RI = weight * np.minimum(1.0, width / np.maximum(size_RI, 1e-300))
            return Local(
                value_R=(weight * huber(residual_RI, width)).sum(-1),
                slope_RP=(pull_RI[:, None, :] @ jacobian_RIK)[:, 0],
                curve_RPP=_gram(jacobian_RIK, near_RI),
                damp_RPP=_gram(jacobian_RIK, majorant_RI),
            )

        return at

    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        at_RK = first_RK
        spread = np.abs(model(first_RK)[0] - log_target_RI).max(initial=delta)
        width = float(min(spread, 1.0))
        while width > 3 * delta:
            at_RK, _ = descend(objective(width), at_RK, low_K, high_K, steps=20, tolerance=1e-4)
            width /= 3
        at_RK, value_R = descend(objective(delta), at_RK, low_K, high_K, steps=300)
        shift_RQ = terms(at_RK[:, columns:])[0].mean(1)
    return Solved(np.exp(at_RK[:, :columns]), shift_RQ, at_RK[:, columns:], value_R)


def _gram(jacobian_RIK: Floats, weight_RI: Floats) -> Floats:
    weighted = jacobian_RIK * weight_RI[:, :, None]
    return np.matmul(weighted.transpose(0, 2, 1), jacobian_RIK)
