"""Progress: a bar with ETA on a terminal, plain lines otherwise, and nothing when asked."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

_SMOOTHING = 0.1


@dataclasses.dataclass(frozen=True)
class StepReport:
    """What is known about a step when it is shown.

    `loss` is nats per token, `mfu` a fraction of `mfu_of` (what peak it is measured against).
    """

    step: int
    loss: float
    tokens_per_second: float
    step_seconds: float
    mfu: float
    mfu_of: str


class Progress:
    """Base and silent version. One instance may accompany several runs, one after the other."""

    def __init__(self) -> None:
        self._planned: dict[str, int] = {}
        self._finished_seconds: list[float] = []
        self._rate = 0.0
        self.name = ""
        self.total = 0
        self.done = 0

    def plan(self, steps: Mapping[str, int]) -> None:
        """Announces all runs to come, in order, with their steps: enables an overall ETA."""
        self._planned = dict(steps)

    def data(self, stage: str, done: int, total: int) -> None:
        """Data is being prepared: `done` of `total` units of a stage (`moejax.data.prepare`)."""

    def begin(self, name: str, total: int, done: int) -> None:
        """A run starts at step `done` of `total`."""
        self.name, self.total, self.done, self._rate = name, total, done, 0.0

    def phase(self, text: str) -> None:
        """What is going on between steps: "compiling", "evaluating", "" for training."""

    def step(self, report: StepReport) -> None:
        """A step's metrics have arrived."""
        seconds = report.step_seconds
        self._rate += (seconds - self._rate) * (_SMOOTHING if self._rate else 1.0)
        self.done = report.step

    def note(self, text: str) -> None:
        """One line for the reader."""

    def end(self) -> None:
        """The current run is over (done or not)."""
        self._planned.pop(self.name, None)
        if self._rate:
            self._finished_seconds.append(self._rate)

    def skip(self, name: str) -> None:
        """A planned run was done already."""
        self._planned.pop(name, None)

    def close(self) -> None:
        """Nothing will be shown any more."""

    def eta(self) -> str:
        """Time left of this run."""
        return clock_text(self._rate * (self.total - self.done)) if self._rate else "--:--"

    def overall_eta(self) -> str:
        """Time left of all planned runs, those to come guessed at the mean pace so far."""
        if not self._rate:
            return "--:--"
        paces = [*self._finished_seconds, self._rate]
        ahead = sum(steps for name, steps in self._planned.items() if name != self.name)
        left = self._rate * (self.total - self.done) + ahead * sum(paces) / len(paces)
        return clock_text(left)


class PlainProgress(Progress):
    """A line every `every_seconds`, without control characters: for files and pipes."""

    def __init__(self, stream: TextIO, every_seconds: float) -> None:
        super().__init__()
        self._stream = stream
        self._every = every_seconds
        self._last = -float("inf")
        self._stage = ""

    def data(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage == self._stage and now - self._last < self._every:
            return
        self._stage, self._last = stage, now
        self.note(f"data: {stage}" + (f" {100 * done // total}%" if done and total else ""))

    def begin(self, name: str, total: int, done: int) -> None:
        super().begin(name, total, done)
        self._last = -float("inf")

    def step(self, report: StepReport) -> None:
        super().step(report)
        now = time.monotonic()
        if now - self._last < self._every and report.step < self.total:
            return
        self._last = now
        text = f"step {report.step}/{self.total}  {describe(report)}  ETA {self.eta()}"
        if self._planned:
            text += f"  all runs {self.overall_eta()}"
        self.note(text)

    def note(self, text: str) -> None:
        prefix = f"[{self.name}] " if self.name else ""
        print(prefix + text, file=self._stream, flush=True)

    def end(self) -> None:
        super().end()
        self.name = ""


class TerminalProgress(Progress):
    """Bars: one for the run, one for all planned runs."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._console = Console(file=stream)
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[info]}"),
            console=self._console,
            transient=False,
        )
        self._run: TaskID | None = None
        self._all: TaskID | None = None
        self._data: TaskID | None = None
        self._before = 0
        self._latest = ""
        self._bars.start()

    def data(self, stage: str, done: int, total: int) -> None:
        if self._data is None:
            self._data = self._bars.add_task("data", total=1, info="")
        fields: dict[str, Any] = {"completed": done, "total": max(total, 1), "info": escape(stage)}
        self._bars.update(self._data, **fields)

    def plan(self, steps: Mapping[str, int]) -> None:
        super().plan(steps)
        self._all = self._bars.add_task("all runs", total=sum(steps.values()), info="")

    def begin(self, name: str, total: int, done: int) -> None:
        super().begin(name, total, done)
        if self._data is not None:
            self._bars.remove_task(self._data)
            self._data = None
        self._latest = ""
        fields: dict[str, Any] = {"total": total, "completed": done, "info": "starting"}
        self._run = self._bars.add_task(escape(name), **fields)

    def phase(self, text: str) -> None:
        self._show(text)

    def step(self, report: StepReport) -> None:
        super().step(report)
        self._latest = describe(report, short=True)  # eighty columns hold no more
        self._show(f"{self._latest}  ETA {self.eta()}")

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def end(self) -> None:
        if self._run is not None:
            ended = "done" if self.done == self.total else "stopped"
            self._show(f"{ended}  {self._latest}".rstrip())
        self._before += self.total
        self._run = None
        super().end()

    def skip(self, name: str) -> None:
        self._before += self._planned.get(name, 0)
        super().skip(name)
        self.done = 0
        self._show("")

    def close(self) -> None:
        self._bars.stop()

    def _show(self, info: str) -> None:
        if self._run is not None:
            self._bars.update(self._run, completed=self.done, info=escape(info))
        if self._all is not None:
            overall = f"ETA {self.overall_eta()}"
            self._bars.update(self._all, completed=self._before + self.done, info=overall)


def make_progress(every_seconds: float, stream: TextIO | None = None) -> Progress:
    """Bars if `stream` (default stderr) is a terminal, plain lines otherwise."""
    stream = sys.stderr if stream is None else stream
    return TerminalProgress(stream) if stream.isatty() else PlainProgress(stream, every_seconds)


def describe(report: StepReport, *, short: bool = False) -> str:
    """Loss, speed and utilisation in a few words; `short` leaves out what the MFU refers to."""
    text = f"loss {report.loss:.4f}  {report.tokens_per_second:,.0f} tok/s"
    if report.mfu == report.mfu:  # NaN where no peak is known
        text += f"  MFU {100 * report.mfu:.1f}%" + ("" if short else f" of {report.mfu_of}")
    return text


def clock_text(seconds: float) -> str:
    """`75` -> `1:15`, `4000` -> `1:06:40`."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"
