"""The spike score of a training loss: how often it jumps far above its own recent past."""

from __future__ import annotations

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike

WINDOW, THRESHOLD = 128, 6.0
_CHUNK = 4096  # windows at a time: long runs do not become large arrays


def spike_score(value_N: ArrayLike, window: int = WINDOW, threshold: float = THRESHOLD) -> float:
    """Fraction of values above mean + `threshold` * standard deviation of the `window` before them.

    No unit, 0..1; 0 is calm. Bad: above about 0.001. The convention is that of OLMo-core's
    stability monitor (128 values, 6 population standard deviations, upwards only; a window without
    any spread has no spike); OLMo 2 (arXiv 2501.00656) has a wider window and a higher threshold.
    The score of other conventions is another number: compare it only with itself.

    Args:
      value_N: `[N]` in the order of training; what is not finite is left out.
      window: values of the past, at least 2.

    Returns:
      NaN if no value has a full window behind it.

    Raises:
      ValueError: `window` below 2.
    """
    if window < 2:
        raise ValueError(f"window={window}: at least 2")
    value = np.asarray(value_N, np.float64)
    value = value[np.isfinite(value)]
    judged = value.size - window
    if judged < 1:
        return math.nan
    past = sliding_window_view(value[:-1], window)
    spikes = 0
    for start in range(0, judged, _CHUNK):
        piece = past[start : start + _CHUNK]
        now = value[window + start : window + start + len(piece)]
        mean, sd = piece.mean(1), piece.std(1)
        # Equal values have a standard deviation of rounding errors, not of 0.
        spread = sd > 1e-12 * np.abs(mean)
        spikes += int((spread & (now > mean + threshold * sd)).sum())
    return spikes / judged
