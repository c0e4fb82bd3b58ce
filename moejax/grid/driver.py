"""The loop that runs what is missing: claims cells, starts them, watches them, tells the truth.

It keeps no state of its own. What is done, failed or missing is read from files before a cell is
started, so a driver may be killed at any moment, started again, or joined by another one.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import signal
import time
from collections.abc import Iterable, Sequence
from types import FrameType
from typing import Any, Protocol

from moejax.grid import attempts
from moejax.grid.claims import HEARTBEAT_SECONDS, SILENT_SECONDS, Claims, Owner
from moejax.grid.exits import EXIT_DONE, EXIT_FAILED, EXIT_MISSING
from moejax.grid.launchers import Handle, Launcher, Spec
from moejax.grid.places import Places
from moejax.grid.status import ACTIVE, DONE, FAILED, MISSING, RUNNING, CellState, read_state

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Runnable(Protocol):
    """What the driver needs of a cell."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def directory(self) -> str:
        """Of its run, below the root."""

    @property
    def argv(self) -> tuple[str, ...]:
        """Flags of `experiments.train`, without `--workdir`."""


@dataclasses.dataclass(frozen=True)
class Policy:
    """Which cells to start, and when to stop.

    Attributes:
      missing: cells that never ran to an end.
      failed: cells that failed.
      rerun: all cells, in fresh directories; the old ones are set aside.
      fail_fast: after a failure nothing new is started, and what runs saves and ends.
      wait: stay until everything has ended; False: end when all is submitted.
    """

    missing: bool = True
    failed: bool = False
    rerun: bool = False
    fail_fast: bool = False
    wait: bool = True


@dataclasses.dataclass(frozen=True)
class Pace:
    """How often things happen, in seconds."""

    poll: float = 0.1
    show: float = 1.0
    recheck: float = 5.0
    heartbeat: float = HEARTBEAT_SECONDS
    silent: float = SILENT_SECONDS


class Display(Protocol):
    """Where the driver tells what happens."""

    def note(self, text: str) -> None:
        """Something happened."""

    def show(self, states: dict[str, CellState], eta: float | None) -> None:
        """How things stand: states by directory, seconds left of all."""

    def close(self) -> None:
        """Nothing more will be shown."""


class Driver:
    """Runs some cells of one root to their end. Single-threaded; use it in the main thread."""

    def __init__(
        self,
        cells: Iterable[Runnable],
        places: Places,
        launcher: Launcher,
        display: Display,
        policy: Policy = Policy(),
        pace: Pace = Pace(),
    ) -> None:
        self._cells = {cell.directory: cell for cell in cells}
        self._places = places
        self._launcher = launcher
        self._display = display
        self._policy = policy
        self._pace = pace
        self._claims = Claims(
            places,
            Owner.this(),
            job_active=launcher.job_active,
            every=pace.heartbeat,
            silent=pace.silent,
        )
        self._claims.sweep()
        self._running: dict[str, Handle] = {}
        self._waiting: collections.deque[str] = collections.deque(self._cells)
        self._due = dict.fromkeys(self._cells, 0.0)
        self._states = {name: self._look(name) for name in self._cells}
        self._before = {name: state.attempt for name, state in self._states.items()}
        self._started: set[str] = set()
        self._signals: list[int] = []
        self._stops = 0
        self._failed_fast = False
        self._shown = -float("inf")

    def run(self) -> int:
        """Runs the cells; returns one of the codes of `exits`, or 128 + a signal's number."""
        previous = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        try:
            self._loop()
        except BaseException:
            self._leave_nothing_behind()
            raise
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            self._claims.close()
            self._display.close()
        self._states = {name: self._look(name) for name in self._cells}
        return self._verdict()

    @property
    def states(self) -> dict[str, CellState]:
        """As far as they are known, by directory."""
        return dict(self._states)

    def _loop(self) -> None:
        while True:
            if self._claims.beat():
                self._check_claims()
            self._collect()
            if self._signals or self._failed_fast:
                self._waiting.clear()
                self._stop_running()
            else:
                self._start_more()
            if not self._waiting and (not self._running or not self._policy.wait):
                return
            self._show()
            time.sleep(self._pace.poll)

    # ---- starting

    def _start_more(self) -> None:
        free = self._launcher.free()
        specs: list[Spec] = []
        now = time.monotonic()
        for _ in range(len(self._waiting)):
            if len(specs) >= free:
                break
            directory = self._waiting.popleft()
            if self._due[directory] > now:
                self._waiting.append(directory)
                continue
            spec = self._prepare(directory)
            if spec is not None:
                specs.append(spec)
        if specs:
            self._submit(specs)

    def _prepare(self, directory: str) -> Spec | None:
        """Claims a cell and makes it ready to start; None if it is not to be started (now)."""
        state = self._states[directory] = self._look(directory)
        if state.state in ACTIVE:
            self._later(directory)
            return None
        if not self._wanted(directory, state):
            return None
        claim = self._claims.take(directory)
        if claim is None:
            self._later(directory)
            return None
        # Between the look and the claim another driver may have run it.
        state = read_state(self._places, directory, None)
        if state.state == RUNNING or not self._wanted(directory, state):
            self._claims.give_back(directory)
            self._later(directory)
            return None
        workdir = self._places.workdir(directory)
        if self._policy.rerun and workdir.exists():
            aside = self._places.set_aside(directory)
            aside.parent.mkdir(parents=True, exist_ok=True)
            attempts.set_aside(self._places, directory, aside)
            os.rename(workdir, aside)
            self._display.note(f"{self._cells[directory].name}: the old run is in {aside}")
        cell = self._cells[directory]
        return Spec(cell.name, directory, tuple(cell.argv), str(workdir), claim.token)

    def _submit(self, specs: Sequence[Spec]) -> None:
        try:
            handles = self._launcher.submit(specs)
        except BaseException:
            for spec in specs:
                self._claims.give_back(spec.directory)
            raise
        for handle in handles:
            self._running[handle.directory] = handle
            self._started.add(handle.directory)
            if handle.job is not None:
                self._claims.name_job(handle.directory, handle.job)
            state = self._states[handle.directory] = self._look(handle.directory)
            again = f", attempt {state.attempt}" if state.attempt > 1 else ""
            job = f" as job {handle.job.number}" if handle.job else ""
            self._display.note(f"{self._cells[handle.directory].name}: started{job}{again}")

    def _wanted(self, directory: str, state: CellState) -> bool:
        """Whether this driver is to start a cell that nobody runs."""
        policy = self._policy
        if directory in self._started:
            return False
        if state.state in MISSING:
            return policy.missing or policy.rerun
        # Another driver with the same wish may have tried it since this one began.
        fresh = state.attempt == self._before[directory]
        wish = policy.rerun or (policy.failed and state.state == FAILED)
        return wish and fresh

    def _later(self, directory: str) -> None:
        if not self._policy.wait:
            return
        self._due[directory] = time.monotonic() + self._pace.recheck
        self._waiting.append(directory)

    # ---- watching

    def _collect(self) -> None:
        for directory, handle in list(self._running.items()):
            if not self._launcher.ended(handle):
                continue
            del self._running[directory]
            self._claims.give_back(directory)
            state = self._states[directory] = self._look(directory)
            self._display.note(f"{self._cells[directory].name}: {self._ending(directory, state)}")
            if state.state == FAILED and self._policy.fail_fast and not self._failed_fast:
                self._failed_fast = True
                self._display.note("--fail-fast: the other cells save and end")

    def _ending(self, directory: str, state: CellState) -> str:
        if state.state == DONE:
            return "done" if state.loss is None else f"done, loss {state.loss:.4f}"
        reason = f": {state.reason}" if state.reason else ""
        return f"{state.state}{reason} (log: {self._places.log(directory)})"

    def _check_claims(self) -> None:
        """Stops what another driver took over, believing this one dead."""
        for directory, handle in self._running.items():
            if handle.job is None and not self._claims.still_mine(directory):
                self._display.note(f"{self._cells[directory].name}: taken over by another driver")
                self._launcher.stop(handle)

    def _look(self, directory: str) -> CellState:
        return read_state(self._places, directory, self._claims)

    def _show(self) -> None:
        now = time.monotonic()
        if now - self._shown < self._pace.show:
            return
        self._shown = now
        for directory in self._running:
            self._states[directory] = self._look(directory)
        self._display.show(self._states, remaining(self._states.values()))

    # ---- ending

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._signals.append(number)

    def _stop_running(self) -> None:
        """The first signal asks every cell to save, the second kills them."""
        wanted = min(2, max(len(self._signals), int(self._failed_fast)))
        if self._stops >= wanted or not self._running:
            return
        self._stops = wanted
        kill = wanted == 2
        if self._signals:
            name = signal.Signals(self._signals[-1]).name
            what = "killing them" if kill else "they save and end; once more kills them"
            self._display.note(f"{name}: {len(self._running)} cells run; {what}")
        for handle in self._running.values():
            self._launcher.stop(handle, kill=kill)

    def _leave_nothing_behind(self) -> None:
        """After an error of the driver itself: the cells of this machine save and end."""
        mine = [handle for handle in self._running.values() if handle.job is None]
        for handle in mine:
            self._launcher.stop(handle)
        while mine := [handle for handle in mine if not self._launcher.ended(handle)]:
            if self._signals:
                for handle in mine:
                    self._launcher.stop(handle, kill=True)
            time.sleep(self._pace.poll)

    def _verdict(self) -> int:
        if self._signals:
            return 128 + self._signals[0]
        return verdict(self._states.values())


def verdict(states: Iterable[CellState]) -> int:
    """The exit code that tells how some cells stand."""
    kinds = {state.state for state in states}
    if FAILED in kinds:
        return EXIT_FAILED
    return EXIT_DONE if kinds <= {DONE} else EXIT_MISSING


def remaining(states: Iterable[CellState]) -> float | None:
    """Seconds until nothing is left to run, cells to come taken for average ones; None: unknown."""
    known: list[float] = []
    left, coming, parallel = 0.0, 0, 0
    for state in states:
        if state.state == DONE and (state.wall or state.seconds):
            known.append(state.wall or state.seconds or 0.0)
        elif state.state in ACTIVE:
            parallel += 1
            if state.eta is None:
                coming += 1
            else:
                left += state.eta
                known.append(state.eta + (state.wall or state.seconds or 0.0))
        elif state.state in MISSING:
            coming += 1
    if not known or not (parallel or coming):
        return None
    mean: float = sum(known) / len(known)
    return (left + coming * mean) / max(1, parallel)


def to_json(cells: Iterable[Runnable], states: dict[str, CellState]) -> list[dict[str, Any]]:
    """States for programs, in the order of the grid."""
    return [
        {"name": cell.name, "directory": cell.directory, **states[cell.directory].to_json()}
        for cell in cells
    ]
