"""Rows: what a ratio is, what it came to in one process, and in several.

A `Comparison` is planned before anything is timed; a row is a dict, because it goes to a file.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from tools.benchmarks.timing import Basis, Candidate, Timing, spread

Row = dict[str, Any]

IDENTITY = ("suite", "case", "backend", "metric")
"""What tells one row from another."""


@dataclasses.dataclass(frozen=True)
class Case:
    """What is computed.

    Attributes:
      name: as in the targets.
      shape: sizes with their axis letters.
      dropless: every assignment is computed; None where nothing is routed.
    """

    name: str
    shape: str
    dropless: bool | None = True


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A ratio of two candidates' times.

    Attributes:
      case, backend, metric: what it is called.
      of, to: candidates' names.
      kind: `speed` is the time of `to` over that of `of` (more is better), `time` the inverse.
      work: of a speed, FLOPs of `of` over FLOPs of `to`, which makes it a ratio of FLOP/s; of a
        time, how often `of` is done.
      basis: the time that counts. The CPU time of a process that waits for a GPU says nothing.
    """

    case: Case
    backend: str
    metric: str
    of: str
    to: str
    kind: Literal["speed", "time"] = "speed"
    work: float = 1.0
    basis: Basis = "cpu"

    def value(self, of: float, to: float) -> float:
        """The ratio of two times."""
        return self.work * (to / of if self.kind == "speed" else of / to)

    def row(self, suite: str, timings: Mapping[str, Timing]) -> Row:
        """The ratio in this process."""
        of, to = timings[self.of], timings[self.to]
        counts = of.of(self.basis), to.of(self.basis)
        each = [self.value(*pair) for pair in zip(*counts, strict=True)]
        return known(
            suite,
            self.case,
            self.backend,
            self.metric,
            self.value(*map(statistics.median, counts)),
            basis=self.basis,
            wall_ratio=self.value(statistics.median(of.wall), statistics.median(to.wall)),
            min_ratio=self.value(min(of.wall), min(to.wall)),
            spread=spread(each),
        )


@dataclasses.dataclass
class Workload:
    """What a suite times together, the ratios it asks for, and rows that need no timing.

    Attributes:
      notes: what else there is to know, by candidate's name, for the JSON file.
      warm_up: calls of each candidate before it is measured; None: as many as were asked for.
    """

    candidates: list[Candidate] = dataclasses.field(default_factory=list)
    comparisons: list[Comparison] = dataclasses.field(default_factory=list)
    rows: list[Row] = dataclasses.field(default_factory=list)
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)
    warm_up: int | None = None

    def time(self, candidate: Candidate) -> str:
        """Adds a candidate and returns its name."""
        self.candidates.append(candidate)
        return candidate.name


def known(suite: str, case: Case, backend: str, metric: str, ratio: float, **fields: Any) -> Row:
    """A row with a number; `fields`: basis, wall_ratio, min_ratio, spread."""
    return _row(suite, case, backend, metric) | {"ratio": ratio} | fields


def unknown(suite: str, case: Case, backend: str, metric: str, reason: str, **fields: Any) -> Row:
    """A row without one, and why."""
    return _row(suite, case, backend, metric) | {"note": reason} | fields


def _row(suite: str, case: Case, backend: str, metric: str) -> Row:
    return {
        "suite": suite,
        "case": case.name,
        "backend": backend,
        "metric": metric,
        "shape": case.shape,
        "dropless": case.dropless,
        "basis": "cpu",
        "ratio": None,
        "wall_ratio": None,
        "min_ratio": None,
        "spread": 0.0,
        "note": "",
    }


def combine(processes: Sequence[Iterable[Row]]) -> list[Row]:
    """The rows of several processes as one: medians of their ratios, and how far these lie apart.

    With fewer than three processes the spread is the largest that one of them saw between its own
    rounds (`spread_over` says which it is).
    """
    found: dict[tuple[str, ...], list[Row]] = {}
    for rows in processes:
        for row in rows:
            found.setdefault(tuple(row[key] for key in IDENTITY), []).append(row)
    return [_combined(rows) for rows in found.values()]


def _combined(rows: list[Row]) -> Row:
    measured = [row for row in rows if row["ratio"] is not None]
    lost = next((row for row in rows if row["ratio"] is None), None)
    if lost is not None:  # a peer that disagreed once is no peer
        return lost | {"processes": len(measured), "spread_over": "processes"}
    merged = dict(measured[0])
    for key in ("ratio", "wall_ratio", "min_ratio"):
        values = [row[key] for row in measured if row[key] is not None]
        merged[key] = statistics.median(values) if values else None
    several = len(measured) >= 3
    ratios = [row["ratio"] for row in measured]
    return merged | {
        "ratios": ratios,
        "processes": len(measured),
        "spread": spread(ratios) if several else max(row["spread"] for row in measured),
        "spread_over": "processes" if several else "rounds",
    }
