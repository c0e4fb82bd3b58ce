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
    """A run, its numbers, its reduced trace, and what of it compares with the others.

    `comparable`: the text and tokenizer of most runs, so losses per token compare. `same_text`: the
    text of most runs, so bits per byte compare.
    """

    run: Run
    summary: Summary
    groups: TraceGroups | None
    comparable: bool
    same_text: bool

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
    common = _most_common([run.text_id for run in runs])
    text = next((run.text_hash for run in runs if run.text_id == common), "")
    return [
        View(
            run,
            summarise(run),
            read_groups(run, top),
            comparable=run.text_id == common,
            same_text=run.text_hash == text,
        )
        for run in runs
    ]


def _most_common(ids: list[tuple[str, str]]) -> tuple[str, str]:
    """The id of most runs, the first on a tie; runs without one never outvote the others."""
    counted = Counter(i for i in ids if any(i)) or Counter(ids)
    return max(counted, key=lambda i: counted[i]) if counted else ("", "")


def ranking(items: list[View]) -> list[View]:
    """The comparable runs with a finite validation loss, lowest first."""
    known = [v for v in items if v.comparable and math.isfinite(v.summary.loss)]
    return sorted(known, key=lambda v: v.summary.loss)
