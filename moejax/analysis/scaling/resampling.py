"""What-if losses for the bootstrap: runs of one cell (the seeds of a treatment) stay together.

`residuals` keeps the design, because sizes are chosen and not drawn: every cell gets one new error,
as large as the residuals say errors are. `cells` draws whole cells with replacement, as is usual in
the literature; it needs many cells, for a draw that misses some sizes cannot be fitted.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from moejax.analysis.scaling.descent import Floats, Ints


@dataclasses.dataclass(frozen=True, eq=False)
class Replicates:
    """Targets `[R, I]` and weights `[R, I]` to fit again, and how many draws were unusable."""

    target_RI: Floats
    weight_RI: Floats
    unusable: int = 0


def residual_replicates(
    fitted_I: Floats,
    residual_I: Floats,
    unit_I: Floats,
    basis_IP: Floats,
    cell_I: Ints,
    replicates: int,
    rng: np.random.Generator,
) -> Replicates:
    """Fitted values plus one new error for every cell, of the size that the residuals tell.

    Residuals are smaller than errors, because the fit follows the data. If every cell has one error
    of variance s^2, the means of residuals over cells are A u, where A = M (1 - H) Z with the hat
    matrix H, the cells' indicators Z and their means M; so s^2 is the sum of their squares over
    |A|^2, which is cells minus parameters in a balanced design. Errors are normal, and a whole
    replicate is scaled by sqrt(df / chi2_df), because s is itself known from df = cells minus
    parameters differences only: in a linear model with a balanced design this gives Student's t
    interval of every constant, however few the cells.

    Args:
      fitted_I: targets as fitted.
      residual_I: (target - fitted) / unit.
      unit_I: size of an error of 1.
      basis_IP: orthonormal basis of the derivatives of fitted / unit.
      cell_I: the cell of each point, 0..J-1.
      replicates: how many.
      rng: where the random numbers come from.

    Raises:
      ValueError: no degree of freedom is left.
    """
    runs_J = np.bincount(cell_I)
    freedom = len(runs_J) - basis_IP.shape[1]
    if freedom < 1:
        raise ValueError("the fit leaves no degree of freedom")
    sum_JP = np.stack([np.bincount(cell_I, column) for column in basis_IP.T], 1)
    mean_JP = sum_JP / runs_J[:, None]
    # |1 - U V'|^2 without the matrix itself, which has a row and a column for every cell.
    square = len(runs_J) - 2 * (mean_JP * sum_JP).sum()
    square += ((mean_JP.T @ mean_JP) * (sum_JP.T @ sum_JP)).sum()
    mean_J = np.bincount(cell_I, residual_I) / runs_J
    size = math.sqrt(float(mean_J @ mean_J) / max(float(square), 1e-12))
    draw_RJ = size * rng.standard_normal((replicates, len(runs_J)))
    draw_RJ *= np.sqrt(freedom / rng.chisquare(freedom, (replicates, 1)))
    target_RI = fitted_I + draw_RJ[:, cell_I] * unit_I
    return Replicates(target_RI, np.ones_like(target_RI))


def cell_replicates(
    target_I: Floats, cell_I: Ints, needed: int, replicates: int, rng: np.random.Generator
) -> Replicates:
    """Whole cells drawn with replacement; draws of fewer than `needed` different ones are left out.

    Raises:
      ValueError: more than a tenth of the draws are unusable.
    """
    cells = int(cell_I.max()) + 1
    count_RJ = rng.multinomial(cells, np.full(cells, 1 / cells), replicates)
    usable_R = (count_RJ > 0).sum(1) >= needed
    unusable = int(replicates - usable_R.sum())
    if unusable > replicates / 10:
        raise ValueError(
            f"{unusable} of {replicates} draws have fewer than {needed} cells; "
            "nearest valid: --bootstrap=residuals"
        )
    weight_RI = count_RJ[usable_R][:, cell_I].astype(np.float64)
    return Replicates(np.broadcast_to(target_I, weight_RI.shape), weight_RI, unusable)


def interval(draw_R: Floats, confidence: float = 0.95) -> tuple[float, float]:
    """The percentile interval of draws; NaN where there are none."""
    if not draw_R.size or np.isnan(draw_R).all():
        return float("nan"), float("nan")
    tail = (1 - confidence) / 2
    # The draw at or beyond the quantile: never between two, one of which may be infinite.
    low = np.nanquantile(draw_R, tail, method="lower")
    return float(low), float(np.nanquantile(draw_R, 1 - tail, method="higher"))
