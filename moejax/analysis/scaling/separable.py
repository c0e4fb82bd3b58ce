"""Variable projection: a search over exponents alone, the linear coefficients solved in each place.

The loss of an additive law is linear in its coefficients once the exponents are known, so they are
projected out (Golub and Pereyra 1973; the derivative is Kaufman's 1975). What is left to search has
one dimension per exponent and is far better conditioned than the same law searched in full.
Coefficients that must not be negative are solved by non-negative least squares.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from moejax.analysis.scaling.descent import Floats, Ints, Local, descend


@dataclasses.dataclass(frozen=True, eq=False)
class Design:
    """Columns of a law at some exponents, and their derivatives.

    Columns are divided by exp(shift), which keeps `phi` near 1: a coefficient found with them is
    the law's own times exp(shift).
    """

    phi_RIQ: Floats
    dphi_RIQP: Floats
    shift_RQ: Floats

    def value(self, coefficient_RQ: Floats) -> Floats:
        """The sum of columns `[R, I]`."""
        return np.asarray((self.phi_RIQ @ coefficient_RQ[:, :, None])[:, :, 0])

    def change(self, coefficient_RQ: Floats) -> Floats:
        """Its derivatives by the exponents `[R, I, P]`, shifts held."""
        total = np.zeros((*self.phi_RIQ.shape[:2], self.dphi_RIQP.shape[3]))
        for q in range(self.phi_RIQ.shape[2]):  # several times faster than einsum
            total += coefficient_RQ[:, None, q, None] * self.dphi_RIQP[:, :, q]
        return total


@dataclasses.dataclass(frozen=True, eq=False)
class Projection:
    """The best coefficients for given columns, what they leave, and the span of columns in use."""

    coefficient_RQ: Floats
    residual_RI: Floats
    basis_RIQ: Floats


@dataclasses.dataclass(frozen=True, eq=False)
class Solved:
    """Solutions of a batch; `value_R` is half of the weighted sum of squares.

    Coefficients belong to shifted columns (`Design`): the law's own are coefficient * exp(-shift).
    """

    coefficient_RQ: Floats
    shift_RQ: Floats
    exponent_RP: Floats
    value_R: Floats


def project(phi_RIQ: Floats, target_RI: Floats, nonnegative: bool) -> Projection:
    """Least squares of `target` on the columns, exactly, with coefficients >= 0 if asked.

    The non-negative solution is the best feasible one among the least-squares solutions on subsets
    of the columns; laws have few columns, so the subsets are tried. Columns that depend on others
    to rounding get the coefficient 0.
    """
    columns = phi_RIQ.shape[2]
    found = _on_subset(phi_RIQ, target_RI, tuple(range(columns)))
    if not nonnegative:
        return found
    bad_R = (found.coefficient_RQ < 0).any(-1)
    if not bad_R.any():
        return found
    rows = np.flatnonzero(bad_R)
    best = Projection(
        np.zeros((rows.size, columns)),
        target_RI[rows].copy(),
        np.zeros_like(phi_RIQ[rows]),
    )
    value_R = np.einsum("ri,ri->r", best.residual_RI, best.residual_RI)
    for size in range(1, columns):
        for subset in itertools.combinations(range(columns), size):
            tried = _on_subset(phi_RIQ[rows], target_RI[rows], subset)
            new_R = np.einsum("ri,ri->r", tried.residual_RI, tried.residual_RI)
            take_R = (tried.coefficient_RQ >= 0).all(-1) & (new_R < value_R)
            value_R[take_R] = new_R[take_R]
            for field in dataclasses.fields(Projection):
                getattr(best, field.name)[take_R] = getattr(tried, field.name)[take_R]
    for field in dataclasses.fields(Projection):
        getattr(found, field.name)[rows] = getattr(best, field.name)
    return found


def _on_subset(phi_RIQ: Floats, target_RI: Floats, subset: tuple[int, ...]) -> Projection:
    columns = list(subset)
    basis, triangle = np.linalg.qr(phi_RIQ[:, :, columns])
    size = np.abs(np.einsum("rqq->rq", triangle))
    dependent = size <= 1e-13 * np.linalg.norm(triangle, axis=1)
    if dependent.any():
        basis = np.where(dependent[:, None, :], 0.0, basis)
        index = np.arange(len(columns))
        triangle[:, index, index] = np.where(dependent, 1.0, triangle[:, index, index])
    inner = basis.transpose(0, 2, 1) @ target_RI[:, :, None]
    coefficient = np.zeros((len(phi_RIQ), phi_RIQ.shape[2]))
    coefficient[:, columns] = np.linalg.solve(triangle, inner)[:, :, 0]
    full_basis = np.zeros_like(phi_RIQ)
    full_basis[:, :, columns] = basis
    residual = target_RI - (basis @ inner)[:, :, 0]
    return Projection(coefficient, residual, full_basis)


def solve(
    design: Callable[[Floats], Design],
    target_RI: Floats,
    scale_RI: Floats,
    start_RP: Floats,
    low_P: NDArray[np.float64],
    high_P: NDArray[np.float64],
    nonnegative: bool,
    tolerance: float = 1e-11,
) -> Solved:
    """Minimises 1/2 sum_i (scale_i (target_i - law_i))^2 over exponents and coefficients.

    Args:
      design: columns at exponents `[R, P]`.
      target_RI: what the law should give; one row for each start or replicate.
      scale_RI: 1 / the size of an error of one unit, times the square root of a weight.
      start_RP: where each row's search begins.
      low_P: least exponents.
      high_P: greatest exponents.
      nonnegative: whether coefficients must be >= 0.
      tolerance: of `descend`.
    """
    scaled_RI = target_RI * scale_RI

    def objective(exponent_RP: Floats, rows_R: Ints) -> Local:
        made = design(exponent_RP)
        scale = scale_RI[rows_R]
        found = project(made.phi_RIQ * scale[:, :, None], scaled_RI[rows_R], nonnegative)
        change_RIP = made.change(found.coefficient_RQ) * -scale[:, :, None]
        inside_RQP = found.basis_RIQ.transpose(0, 2, 1) @ change_RIP
        jacobian_RIP = change_RIP - found.basis_RIQ @ inside_RQP
        curve_RPP = jacobian_RIP.transpose(0, 2, 1) @ jacobian_RIP
        return Local(
            value_R=0.5 * np.einsum("ri,ri->r", found.residual_RI, found.residual_RI),
            slope_RP=(found.residual_RI[:, None, :] @ jacobian_RIP)[:, 0],
            curve_RPP=curve_RPP,
            damp_RPP=_diagonal(curve_RPP),
        )

    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        exponent_RP, value_R = descend(objective, start_RP, low_P, high_P, tolerance=tolerance)
        made = design(exponent_RP)
        final = project(made.phi_RIQ * scale_RI[:, :, None], scaled_RI, nonnegative)
    return Solved(final.coefficient_RQ, made.shift_RQ, exponent_RP, value_R)


def _diagonal(matrix_RPP: Floats) -> Floats:
    return np.einsum("rpp->rp", matrix_RPP)[:, :, None] * np.eye(matrix_RPP.shape[1])
