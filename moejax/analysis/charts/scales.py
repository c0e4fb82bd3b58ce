"""Colour scales of heat maps: a few levels with edges that a legend can name."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moejax.analysis import text
from moejax.analysis.charts import theme

BLANK = -1


@dataclasses.dataclass(frozen=True)
class Scale:
    """Levels between `edges` (ascending; one level more than edges), each a colour and a label.

    `colors` are names of `theme.LEVELS`. `zero` names the level of an exact 0 where that means
    something of its own (an expert without tokens); it is then the last colour.
    """

    edges: tuple[float, ...]
    colors: tuple[str, ...]
    labels: tuple[str, ...]
    zero: bool = False

    def level(self, value: ArrayLike) -> NDArray[np.int64]:
        """The level of each value, and `BLANK` for NaN."""
        found = np.asarray(value, np.float64)
        levels = np.searchsorted(self.edges, np.nan_to_num(found), "right")
        if self.zero:
            levels = np.where(found == 0, len(self.colors) - 1, levels)
        return np.where(np.isnan(found), BLANK, levels).astype(np.int64)


LOAD = Scale(
    theme.HEAT_EDGES,
    (*(f"h{i}" for i in range(len(theme.HEAT))), "dead"),
    (*theme.HEAT_LABELS, "no token"),
    zero=True,
)


def difference(half: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0)) -> Scale:
    """Diverging around 0, in the colours of the load: blue is less, orange is more."""
    edges = (*(-e for e in reversed(half)), *half)
    return Scale(edges, tuple(f"h{i}" for i in range(len(edges) + 1)), _between(edges, signed=True))


def sequential(low: float, high: float) -> Scale:
    """From `low` (pale) to `high` (strong) in as many even steps as there are colours."""
    count = len(theme.SEQUENCE)
    if not high > low:
        high = low + (abs(low) or 1.0)
    edges = tuple(float(v) for v in np.linspace(low, high, count + 1)[1:-1])
    return Scale(edges, tuple(f"q{i}" for i in range(count)), _between(edges))


def of_values(values: ArrayLike) -> Scale:
    """`sequential` over the 2nd to 98th percentile of the finite values, so no outlier rules."""
    found = np.asarray(values, np.float64)
    found = found[np.isfinite(found)]
    if not found.size:
        return sequential(0.0, 1.0)
    low, high = np.quantile(found, (0.02, 0.98))
    return sequential(float(low), float(high))


def _between(edges: tuple[float, ...], signed: bool = False) -> tuple[str, ...]:
    shown = [("+" if signed and e > 0 else "") + text.short(e, 2) for e in edges]
    inner = [f"{a} – {b}" for a, b in itertools.pairwise(shown)]
    return (f"< {shown[0]}", *inner, f"> {shown[-1]}")
