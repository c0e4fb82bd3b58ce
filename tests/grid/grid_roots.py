"""A root with cells that a stand-in trains, a driver in this process, and drivers to kill."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moejax.grid.driver import Driver, Pace, Policy
from moejax.grid.launchers.local import Local
from moejax.grid.places import Places
from moejax.grid.status import CellState, read_states

HERE = Path(__file__).resolve().parent
STANDIN = (sys.executable, "-S", str(HERE / "standin_train.py"))
MISSING = Policy()
FAST = Pace(poll=0.01, show=0.0, recheck=0.05, heartbeat=0.05)


@dataclasses.dataclass(frozen=True)
class Row:
    """A cell as the driver sees it."""

    name: str
    directory: str
    argv: tuple[str, ...]


def cell(name: str, **options: Any) -> Row:
    return Row(name, f"{name}-0123456789", tuple(f"--{key}={options[key]}" for key in options))


class Silent:
    """A display that remembers."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.shown: list[dict[str, CellState]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def show(self, states: dict[str, CellState], eta: float | None) -> None:
        self.shown.append(states)

    def close(self) -> None:
        pass


class Root:
    """A grid's root under test."""

    def __init__(self, path: Path, *cells: Row) -> None:
        self.places = Places(path)
        self.cells = cells
        self.display = Silent()

    def local(self, **options: Any) -> Local:
        return Local(self.places, **{"parallel": 1, "train": STANDIN, **options})

    def run(self, policy: Policy = MISSING, cells: Any = None, **options: Any) -> int:
        """A driver in this process."""
        display = self.display = Silent()
        chosen = self.cells if cells is None else cells
        return Driver(chosen, self.places, self.local(**options), display, policy, FAST).run()

    def states(self) -> dict[str, CellState]:
        found = read_states(self.places, [cell.directory for cell in self.cells])
        return {cell.name: found[cell.directory] for cell in self.cells}

    def kinds(self) -> dict[str, str]:
        return {name: state.state for name, state in self.states().items()}

    def ledger(self, event: str = "") -> list[dict[str, Any]]:
        path = self.places.root / "ledger.txt"
        lines = (
            [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        )
        return [line for line in lines if event in ("", line["event"])]

    def finals(self) -> dict[str, Any]:
        paths = {
            cell.name: self.places.workdir(cell.directory) / "final.json" for cell in self.cells
        }
        return {name: json.loads(path.read_text()) for name, path in paths.items()}

    def never_twice(self) -> None:
        """No cell began again once it was done, and no two processes met in a directory."""
        done: set[str] = set()
        for line in self.ledger():
            assert line["event"] not in ("again", "occupied"), line
            assert not (line["event"] == "start" and line["cell"] in done), line
            if line["event"] == "done":
                assert line["cell"] not in done
                done.add(line["cell"])


class Zygote:
    """Forks drivers in a moment: importing what they import takes seconds."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "driver_process.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])},
        )

    def drive(self, root: Root, parallel: int = 1) -> Forked:
        """A driver in a process of its own."""
        assert self._process.stdin and self._process.stdout
        cells = [dataclasses.asdict(cell) for cell in root.cells]
        number = time.monotonic_ns()
        log = root.places.root / f"driver.{number}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        order = {"root": str(root.places.root), "cells": cells, "parallel": parallel}
        print(json.dumps(order | {"log": str(log)}), file=self._process.stdin, flush=True)
        return Forked(int(self._process.stdout.readline()), log)

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=30)


@dataclasses.dataclass
class Forked:
    """A driver that the zygote started; `log` is what it printed, the exit code at the end."""

    pid: int
    log: Path

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def alive(self) -> bool:
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except (FileNotFoundError, ProcessLookupError):
            return False

    def code(self, seconds: float = 60) -> int:
        """Waits for its end."""
        wait_until(lambda: not self.alive(), seconds, self.log.read_text)
        return int(self.log.read_text().split()[-1])

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        wait_until(lambda: not self.alive(), 10)


def wait_until(
    fact: Callable[[], Any], seconds: float = 30, story: Callable[[], str] = lambda: "too late"
) -> None:
    deadline = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < deadline, story()
        time.sleep(0.01)
