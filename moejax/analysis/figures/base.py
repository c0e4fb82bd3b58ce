"""What a figure is, and the few helpers that figures share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from moejax.analysis.charts.spec import Axis, Drawable
from moejax.analysis.view import View

Row = Sequence[object]
DRAWN = 12  # runs in figures whose marks would hide each other; the CSV has all
LOG_FROM = 20.0  # an axis whose data span more than this factor is logarithmic


@dataclasses.dataclass(frozen=True)
class Figure:
    """A section of the report: charts in tabs, a caption on what to look for, the numbers.

    `tabs` are (label, charts); one tab has no tab bar. `rows` is the CSV, header first. `empty`
    says why there is nothing to draw: the figure is then one line in the list of those not drawn.
    """

    key: str
    title: str
    caption: str
    rows: tuple[Row, ...]
    tabs: tuple[tuple[str, tuple[Drawable, ...]], ...] = ()
    empty: str = ""

    @property
    def charts(self) -> list[tuple[str, Drawable]]:
        """(tab, chart) of all tabs, in order."""
        return [(label, chart) for label, charts in self.tabs for chart in charts]


def missing(key: str, title: str, why: str) -> Figure:
    """A figure whose data do not exist in these runs: `why` is one sentence."""
    return Figure(key, title, "", (), empty=why)


def positive_axis(low: float, high: float, label: str) -> Axis:
    """Logarithmic where positive data span more than a factor of 20."""
    return Axis(label, log=low > 0 and high / low > LOG_FROM)


def drawn_note(all_runs: Sequence[View], drawn: Sequence[View]) -> str:
    """Says so where a picture does not show every run."""
    if len(all_runs) == len(drawn):
        return ""
    return f" The picture shows the first {len(drawn)} of {len(all_runs)} runs; the CSV has all."


def finite(value: float, digits: int = 6) -> float:
    """`value` for a CSV: rounded to `digits` significant digits, NaN kept."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else math.nan
