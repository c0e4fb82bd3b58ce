"""metrics.jsonl: append-only, durable at checkpoints, truncated on resume."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, Protocol

from moejax.config.files import write_bytes_atomic
from moejax.train.errors import StorageError

Line = dict[str, Any]


class Record(Protocol):
    """What takes metrics lines and can make them durable."""

    lines: int

    def write(self, line: Line) -> None:
        """Takes one line."""

    def flush(self) -> None:
        """Makes what was taken visible."""

    def sync(self) -> None:
        """Makes what was taken durable."""

    def close(self) -> None:
        """Flushes and lets go."""


class NoMetrics:
    """The record of a process that writes none: process 0 has it."""

    lines = 0

    def write(self, line: Line) -> None:
        pass

    def flush(self) -> None:
        pass

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


class MetricsFile:
    """The machine-readable record of a run, one flat JSON object per line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.lines = len(read_lines(path))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (lives as long as the run)

    def write(self, line: Line) -> None:
        """Appends a line. A value that is not finite becomes null: NaN is not JSON."""
        plain = {key: None if _not_finite(value) else value for key, value in line.items()}
        self._file.write(json.dumps(plain, allow_nan=False) + "\n")
        self.lines += 1

    def flush(self) -> None:
        """Hands what was written to the system, for a reader that follows the run."""
        self._file.flush()

    def sync(self) -> None:
        """Returns when everything written is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flushes and closes."""
        self._file.close()


def read_lines(path: Path) -> list[Line]:
    """The lines of a metrics file. A torn last line (the process died while writing) is dropped.

    Raises:
      StorageError: a line before the last is not a JSON object with a step.
    """
    if not path.exists():
        return []
    pieces = path.read_bytes().split(b"\n")
    tail = pieces.pop()
    lines: list[Line] = []
    for number, piece in enumerate(pieces, start=1):
        try:
            line = json.loads(piece)
            _ = line["step"]
        except (ValueError, KeyError, TypeError) as error:
            if number == len(pieces) and not tail:  # torn, then closed by a newline
                break
            raise StorageError(f"{path}: line {number} is damaged ({error})") from error
        lines.append(line)
    return lines


def truncate(path: Path, step: int, evaluated_step: int) -> int:
    """Cuts a metrics file back to a checkpoint; returns the lines kept.

    Train lines after `step` go, and so do evaluations after `evaluated_step`: an evaluation that
    the checkpoint does not know is redone, with the same numbers.
    """
    kept = []
    for line in read_lines(path):
        is_eval = any(key.startswith("eval/") for key in line)
        if line["step"] <= (min(step, evaluated_step) if is_eval else step):
            kept.append(line)
    if path.exists():
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in kept)
        write_bytes_atomic(path, text.encode())
    return len(kept)


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
