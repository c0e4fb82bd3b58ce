"""Means over tokens whose uncertainty is that of whole sequences."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from moejax.analysis.intervals import t_quantile
from moejax.analysis.records import Estimate


def clustered_mean(sum_S: NDArray[np.float64], count_S: NDArray[np.float64]) -> Estimate:
    """The mean over all tokens, with a 95 % interval that takes sequences as drawn, not tokens.

    Tokens of a sequence share a text: they are not independent draws. The mean is a ratio of sums
    over sequences, `m = sum_s x_s / sum_s n_s`, with standard error
    `sqrt(S/(S-1) sum_s (x_s - m n_s)^2) / sum_s n_s` (linearised ratio estimator; cluster-robust)
    and Student's t of S - 1 degrees of freedom.

    Args:
      sum_S: sum of the quantity over the scored tokens of each sequence.
      count_S: how many those are; sequences of none have no say.

    Returns:
      Its bounds are NaN below two sequences, all of it is NaN for none.
    """
    scored_S = count_S > 0
    sum_S, count_S = sum_S[scored_S], count_S[scored_S]
    sequences, tokens = len(sum_S), float(count_S.sum())
    if not sequences:
        return Estimate(math.nan, math.nan, math.nan)
    mean = float(sum_S.sum()) / tokens
    if sequences == 1:
        return Estimate(mean, math.nan, math.nan)
    squares = float(np.square(sum_S - mean * count_S).sum())
    error = math.sqrt(sequences / (sequences - 1) * squares) / tokens
    half = t_quantile(sequences - 1) * error
    return Estimate(mean, mean - half, mean + half)
