"""The loop that runs the parts of a comparison, one after the other, each in a process of its own.

It keeps no state but `parts.json`: which command made which file, and how long it took. Killed and
started again it goes on: what is done is left alone, and training resumes by itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from moejax.analysis import text
from moejax.config import ConfigError, read_json, write_json
from moejax.grid.finetuning.parts import Part, Places
from moejax.grid.launchers import child
from moejax.grid.process import last_line
from moejax.train.entry import is_done
from moejax.train.rundir import RunDir

FORMAT_VERSION = 1
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How the parts ended: names of those that failed with a reason, and that were not run."""

    done: int
    failed: dict[str, str]
    skipped: tuple[str, ...]
    stopped: int = 0
    """The signal that ended the loop; 0: none."""


class Record:
    """`parts.json`: command and seconds of every part that is done."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._parts: dict[str, Any] = {}
        if path.exists():
            read = read_json(path)
            version = read.get("format_version") if isinstance(read, dict) else None
            if version != FORMAT_VERSION or not isinstance(read.get("parts"), dict):
                raise ConfigError(
                    f"{path}: is no record of parts of this version; choose another --out"
                )
            self._parts = read["parts"]

    def done(self, part: Part) -> bool:
        """Whether its file is there, and nothing that its command read has changed since."""
        known = self._parts.get(part.name)
        if not isinstance(known, dict) or known.get("command") != list(part.command):
            return False
        if part.kind == "train" and not is_done(RunDir(part.product.parent)):
            return False
        if not part.product.exists():
            return False
        needs = (need.stat().st_mtime_ns for need in part.needs if need.exists())
        return all(changed <= int(known.get("began_ns", 0)) for changed in needs)

    def add(self, part: Part, began_ns: int, seconds: float) -> None:
        """A part that was begun at a time (of `time.time_ns`) is done."""
        before = self._parts.get(part.name)
        # A run that was done already takes seconds: that tells nothing about the others.
        if isinstance(before, dict) and before.get("command") == list(part.command):
            seconds = max(seconds, float(before.get("seconds", 0.0)))
        self._parts[part.name] = {
            "command": list(part.command),
            "kind": part.kind,
            "began_ns": began_ns,
            "seconds": round(seconds, 3),
        }
        write_json(self._path, {"format_version": FORMAT_VERSION, "parts": self._parts})

    def seconds(self, kind: str) -> list[float]:
        """What parts of a kind took so far."""
        return [
            float(one["seconds"])
            for one in self._parts.values()
            if isinstance(one, dict) and one.get("kind") == kind
        ]


def run_parts(parts: Sequence[Part], places: Places, say: Say, every: float = 60.0) -> Outcome:
    """Runs what is not done, in order; a failure ends only what needs its file.

    Args:
      parts: as `parts_of` orders them.
      places: of the comparison.
      say: told when a part begins and ends, with the time that is left, and what a long one is
        doing every so many seconds.
      every: those seconds.
    """
    record = Record(places.record)
    failed: dict[str, str] = {}
    skipped: list[str] = []
    broken: set[Path] = set()
    done = 0
    with _signals() as received:
        for number, part in enumerate(parts, start=1):
            lost = [need for need in part.needs if need in broken]
            if lost and not part.always:
                skipped.append(part.name)
                broken.add(part.product)
                continue
            if record.done(part):
                done += 1
                continue
            left = [one for one in parts[number - 1 :] if not record.done(one)]
            say(f"[{number}/{len(parts)}] {part.name}{eta(left, record)}")
            began, began_ns = time.monotonic(), time.time_ns()
            reason = _run(part, places, received, lambda word: say(f"    {word}"), every)
            if received:
                return Outcome(done, failed, tuple(skipped), received[0])
            if reason:
                failed[part.name] = reason
                broken.add(part.product)
                say(f"    failed: {reason} (log: {places.log(part)})")
                continue
            seconds = time.monotonic() - began
            record.add(part, began_ns, seconds)
            done += 1
            say(f"    done in {text.duration(seconds)}")
    return Outcome(done, failed, tuple(skipped))


def eta(left: Sequence[Part], record: Record) -> str:
    """`, ETA 12 min` for the parts that are left; "" where no part of some kind was timed."""
    total = 0.0
    for part in left:
        known = record.seconds(part.kind)
        if not known:
            return ""
        total += sum(known) / len(known)
    return f", ETA {text.duration(total)}"


def _run(part: Part, places: Places, received: Sequence[int], say: Say, every: float) -> str:
    """Runs one command to its end; returns why it failed, or ""."""
    log = places.log(part)
    log.parent.mkdir(parents=True, exist_ok=True)
    script = str(Path(child.__file__).resolve())
    # The child ends, with its state saved, when this process does, however that ends.
    start = [sys.executable, "-I", "-S", script, str(os.getpid()), "-"]
    with open(log, "ab") as file:
        file.write(f"$ python {shlex.join(part.command)}\n".encode())
        file.flush()
        begin = file.tell()
        process = subprocess.Popen(
            [*start, sys.executable, *part.command],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    shown, told = time.monotonic(), 0
    while process.poll() is None:
        if len(received) > told:
            told = len(received)
            if told > 1:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            else:
                say("saving; once more kills it")
                process.terminate()
        if time.monotonic() - shown >= every:
            shown = time.monotonic()
            said = last_line(log, begin)
            say(said) if said else None
        time.sleep(0.1)
    if process.returncode:
        return last_line(log, begin) or f"ended with code {process.returncode} and said nothing"
    return "" if part.product.exists() else f"ended without {part.product}"


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals that arrive, in a list, instead of what they would do."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(number)

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
