"""`metrics.jsonl` as columns: tolerant of a torn tail and of corrupt lines, and telling of both."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MAX_COLUMNS = 1000
MAX_LINE_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Columns:
    """Rows of one kind in step order; a column is float64, NaN where a row had no such number."""

    data: dict[str, NDArray[np.float64]] = dataclasses.field(default_factory=dict)
    rows: int = 0

    def __getitem__(self, key: str) -> NDArray[np.float64]:
        """The column `[rows]`; all NaN if no row has it."""
        return self.data.get(key, np.full(self.rows, np.nan))

    def last(self, key: str) -> float:
        """The newest finite value of a column, or NaN."""
        column = self[key]
        finite = column[np.isfinite(column)]
        return float(finite[-1]) if finite.size else float("nan")


@dataclasses.dataclass(frozen=True)
class Metrics:
    """Train and eval rows of a run, and what was wrong with the file, one sentence each."""

    train: Columns = dataclasses.field(default_factory=Columns)
    eval: Columns = dataclasses.field(default_factory=Columns)
    problems: tuple[str, ...] = ()


def read_metrics(path: Path) -> Metrics:
    """Reads a metrics file of any health; a missing or empty one has no rows and says so."""
    try:
        with open(path, "rb") as file:
            return _Reader().read(file)
    except FileNotFoundError:
        return Metrics(problems=("no such file: no curves and no evaluations",))
    except OSError as error:
        return Metrics(problems=(f"cannot be read ({error.strerror}): no curves",))


class _Reader:
    """Collects rows by step, so that a step repeated after a resume keeps its newest values."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[int, dict[str, float]]] = {"train": {}, "eval": {}}
        self.keys: set[str] = set()
        self.problems: list[str] = []
        self.bad: list[int] = []
        self.backwards = 0
        self.not_finite: dict[str, list[int]] = {}
        self.newest = {"train": -1, "eval": -1}

    def read(self, lines: Iterable[bytes]) -> Metrics:
        number = 0
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            row = _parse(line) if len(line) <= MAX_LINE_BYTES else None
            if row is not None:
                self.add(*row)
            elif not line.endswith(b"\n"):
                self.problems.append(
                    f"line {number} is torn (the writer stopped in the middle): left out"
                )
            else:
                self.bad.append(number)
        self.report(number)
        return Metrics(self.columns("train"), self.columns("eval"), tuple(self.problems))

    def add(self, step: int, row: dict[str, object]) -> None:
        kinds = [k for k in ("train", "eval") if any(key.startswith(f"{k}/") for key in row)]
        # A line with neither (only perf/ or time/) belongs to training.
        for kind in kinds or ["train"]:
            if step < self.newest[kind]:
                self.backwards += 1
            self.newest[kind] = step
            self.rows[kind].setdefault(step, {}).update(self.numbers(row, step))

    def numbers(self, row: dict[str, object], step: int) -> dict[str, float]:
        values = {}
        for key, value in row.items():
            if key not in self.keys:
                if len(self.keys) >= MAX_COLUMNS:
                    continue
                self.keys.add(key)
            if value is None or (isinstance(value, str) and value.lower() in _NOT_FINITE):
                value = float("nan")
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            values[key] = _to_float(value)
            if not math.isfinite(values[key]):
                self.not_finite.setdefault(key, []).append(step)
        return values

    def columns(self, kind: str) -> Columns:
        rows = self.rows[kind]
        steps = sorted(rows)
        keys = sorted({key for row in rows.values() for key in row})
        data = {key: np.array([rows[step].get(key, math.nan) for step in steps]) for key in keys}
        return Columns(data, len(steps))

    def report(self, lines: int) -> None:
        if self.bad:
            first = ", ".join(map(str, self.bad[:3])) + (" ..." if len(self.bad) > 3 else "")
            self.problems.append(
                f"{len(self.bad)} of {lines} lines are corrupt (line {first}): left out"
            )
        if self.backwards:
            self.problems.append(
                f"the step goes backwards {self.backwards} times: the newest values are kept"
            )
        for key in sorted(self.not_finite):
            if key.endswith("/loss"):
                steps = self.not_finite[key]
                self.problems.append(
                    f"{key} is not finite in {len(steps)} rows, first at step {steps[0]}"
                )
        if len(self.keys) >= MAX_COLUMNS:
            self.problems.append(f"more than {MAX_COLUMNS} different keys: the rest is left out")
        if not any(self.rows.values()):
            self.problems.append("holds no row: no curves and no evaluations")


_NOT_FINITE = {"nan", "inf", "-inf", "infinity", "-infinity"}


def _to_float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer of more than 308 digits is JSON too
        return math.inf


def _parse(line: bytes) -> tuple[int, dict[str, object]] | None:
    """The step and the row, or None for a line that is not a JSON object with a usable step."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = row.get("step") if isinstance(row, dict) else None
    if isinstance(step, bool) or not isinstance(step, int | float):
        return None
    return (int(step), row) if 0 <= step < 1 << 53 and step == int(step) else None
