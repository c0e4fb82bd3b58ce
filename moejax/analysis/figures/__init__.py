"""The figures of the report, in reading order.

A figure is one small file here with `build(runs: Sequence[View]) -> Figure`, and one line below.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from moejax.analysis.figures import domains, frequency, layers, load, loss, token_class
from moejax.analysis.figures.base import Figure
from moejax.analysis.view import View

FIGURES: tuple[Callable[[Sequence[View]], Figure], ...] = (
    loss.build,
    layers.build,
    load.build,
    token_class.build,
    frequency.build,
    domains.build,
)
