"""What a figure gets: runs measured once, with the style that they keep in the whole report."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

from moejax.analysis.groups import TraceGroups, highest_rank, read_groups
from moejax.analysis.runs import Run
from moejax.analysis.summary import Summary, summarise


@dataclasses.dataclass(frozen=True)
class View:
    """A run, its numbers, its reduced trace, and whether its losses compare with the others'."""

    run: Run
    summary: Summary
    groups: TraceGroups | None
    comparable: bool

    @property
    def name(self) -> str:
        """The run's name: unique in the report, visible characters only."""
        return self.run.name

    @property
    def index(self) -> int:
        """Position in the report; it decides colour, dash and marker."""
        return self.run.index


def views(runs: list[Run]) -> list[View]:
    """Measures every run. Comparable are those on the text and tokenizer that most runs share."""
    top = highest_rank(runs)
    texts = Counter(run.text_id for run in runs)
    common = max(texts, key=lambda text_id: texts[text_id]) if texts else ("", "")
    return [View(run, summarise(run), read_groups(run, top), run.text_id == common) for run in runs]


def ranking(items: list[View]) -> list[View]:
    """The comparable runs with a finite validation loss, lowest first."""
    known = [v for v in items if v.comparable and math.isfinite(v.summary.loss)]
    return sorted(known, key=lambda v: v.summary.loss)
