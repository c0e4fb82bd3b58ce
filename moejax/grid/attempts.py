"""The history of a cell: when each of its processes began, and how it ended.

Lines are only ever appended, by whoever watches the process. A torn last line (the machine went
down) is passed over.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

from moejax.grid.claims import Owner
from moejax.grid.places import FORMAT_VERSION, Places

DONE, FAILED, PREEMPTED = "done", "failed", "preempted"

_END = ("ended", "exit_code", "outcome", "reason")


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One process of a cell.

    Attributes:
      outcome: None while it runs, or if nobody saw its end.
      log_start: where its part of the cell's log begins, in bytes.
      aside: where its run directory went to make room for a new run; "" while it is in place.
    """

    number: int
    began: float
    process: Owner
    launcher: str
    log_start: int
    ended: float | None = None
    exit_code: int | None = None
    outcome: str | None = None
    reason: str = ""
    aside: str = ""


def begin(places: Places, directory: str, process: Owner, launcher: str, log_start: int) -> Attempt:
    """Notes that a process of the cell has begun; `log_start`: where its part of the log begins."""
    number = max((one.number for one in read(places, directory)), default=0) + 1
    attempt = Attempt(number, time.time(), process, launcher, log_start)
    record = dataclasses.asdict(attempt)
    for key in (*_END, "aside"):
        record.pop(key)
    _append(places.attempts(directory), {"event": "begin", **record})
    return attempt


def end(
    places: Places,
    directory: str,
    number: int,
    outcome: str,
    exit_code: int | None = None,
    reason: str = "",
) -> None:
    """Notes how attempt `number` ended."""
    record = {
        "event": "end",
        "number": number,
        "ended": time.time(),
        "exit_code": exit_code,
        "outcome": outcome,
        "reason": reason,
    }
    _append(places.attempts(directory), record)


def set_aside(places: Places, directory: str, to: Path) -> None:
    """Notes that the run directory of all attempts so far is about to be moved."""
    record = {"event": "aside", "number": len(read(places, directory)), "to": str(to)}
    _append(places.attempts(directory), record)


def read(places: Places, directory: str) -> list[Attempt]:
    """All attempts, oldest first."""
    try:
        lines = places.attempts(directory).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    attempts: dict[int, Attempt] = {}
    for line in lines:
        try:
            record = json.loads(line)
            number = int(record["number"])
            if record["event"] == "begin":
                process = Owner(**record["process"])
                began, launcher = float(record["began"]), str(record["launcher"])
                attempts[number] = Attempt(
                    number, began, process, launcher, int(record["log_start"])
                )
            elif record["event"] == "aside":
                for one in attempts:
                    attempts[one] = dataclasses.replace(attempts[one], aside=str(record["to"]))
            else:
                attempts[number] = dataclasses.replace(
                    attempts[number],
                    **{key: record[key] for key in _END},
                )
        except (ValueError, KeyError, TypeError):
            continue
    return [attempts[number] for number in sorted(attempts)]


def _append(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"format_version": FORMAT_VERSION, **record}, sort_keys=True).encode()
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        size = os.fstat(handle).st_size
        torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
        os.write(handle, (b"\n" if torn else b"") + line + b"\n")
        os.fsync(handle)
    finally:
        os.close(handle)
