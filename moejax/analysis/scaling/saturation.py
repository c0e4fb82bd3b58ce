"""A count that matters neither near 0 nor far out: the transform of Clark et al. 2022.

    1 / x_hat = 1 / (x + (1 / start - 1 / end)^-1) + 1 / end

x_hat is `start` at x = 0 and approaches `end`. Clark's law and the joint law take x = E - 1
experts, efficiency leverage takes x = A, the activation ratio. A search has ln start and
ln(end / start).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from moejax.analysis.scaling.descent import Floats

START, END = "ln start", "ln (end/start)"


def saturation(x_I: Floats, search_RP: Floats) -> tuple[Floats, Floats]:
    """ln x_hat `[R, I]` and its derivatives `[R, I, 2]` by ln start and ln(end / start)."""
    p, q = search_RP[:, :1], search_RP[:, 1:2]
    rise = -np.expm1(-q)  # 1 - start / end
    knee_R1 = np.exp(p) / rise
    near_RI = 1.0 / (x_I + knee_R1)
    far_R1 = np.exp(-p - q)
    hat_RI = 1.0 / (near_RI + far_R1)
    by_knee_RI = hat_RI * near_RI**2 * knee_R1
    by_start = by_knee_RI + hat_RI * far_R1
    by_end = -by_knee_RI * np.exp(-q) / rise + hat_RI * far_R1
    return np.log(hat_RI), np.stack([by_start, by_end], -1)


def to_search(constants: Mapping[str, float], start: str, end: str) -> dict[str, float]:
    """Constants with the search's two numbers in place of the published two."""
    first, last = np.log(constants[start]), np.log(constants[end])
    return {**constants, START: float(first), END: float(last - first)}
