"""How a grid is shown: a table that changes in place, or plain lines where no terminal is."""

from __future__ import annotations

import collections
import sys
import time
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from moejax.grid.driver import Display, Runnable
from moejax.grid.process import clean
from moejax.grid.status import (
    ACTIVE,
    CLAIMED,
    DONE,
    FAILED,
    MISSING,
    PREEMPTED,
    RUNNING,
    STATES,
    CellState,
)
from moejax.train.progress import clock_text

HEADER = ("cell", "state", "step", "loss", "tok/s", "ETA", "try", "where", "reason")
_RIGHT = {"step", "loss", "tok/s", "ETA", "try"}
_ORDER = {RUNNING: 0, CLAIMED: 1, FAILED: 2, PREEMPTED: 3, DONE: 5}
_STYLES = {RUNNING: "cyan", CLAIMED: "cyan", FAILED: "red", PREEMPTED: "yellow", DONE: "green"}
_ROWS_AROUND = 8
"""Lines of a terminal that the live table leaves for what stands around it."""


def row(name: str, state: CellState) -> tuple[str, ...]:
    """The columns of `HEADER` for one cell."""
    step = f"{state.step}/{state.total_steps}" if state.total_steps else ""
    speed = state.state in ACTIVE and state.tokens_per_second is not None
    where = f"{state.host}:{state.pid}" if state.state in ACTIVE and state.pid else ""
    where = f"job {state.job}" if state.job and state.state in ACTIVE else where
    reason = state.reason
    if not reason and state.state in ACTIVE and state.last_error:
        reason = f"before: {state.last_error}"
    columns = (
        name,
        state.state,
        step,
        "" if state.loss is None else f"{state.loss:.4f}",
        f"{state.tokens_per_second:,.0f}" if speed else "",
        "" if state.eta is None or state.state not in ACTIVE else clock_text(state.eta),
        str(state.attempt or ""),
        where,
        reason,
    )
    return tuple(clean(text) for text in columns)


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Aligned plain text, without control characters."""
    lines = [HEADER, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
    text = []
    for line in lines:
        cells = [
            cell.rjust(width) if head in _RIGHT else cell.ljust(width)
            for head, cell, width in zip(HEADER, line, widths, strict=True)
        ]
        text.append("  ".join(cells).rstrip())
    return "\n".join(text)


def summary(states: Sequence[CellState], eta: float | None = None) -> str:
    """`12/40 done, 2 running, 1 failed, 25 pending, ETA 1:23:00`."""
    count = collections.Counter(state.state for state in states)
    parts = [f"{count[DONE]}/{len(states)} done"]
    parts += [f"{count[kind]} {kind}" for kind in reversed(STATES) if kind != DONE and count[kind]]
    if eta is not None and count[DONE] < len(states):
        parts.append(f"ETA {clock_text(eta)}")
    return ", ".join(parts)


class PlainDisplay:
    """Lines without control characters: what happens at once, how things stand now and then."""

    def __init__(self, cells: Sequence[Runnable], stream: TextIO, every: float) -> None:
        self._cells = cells
        self._stream = stream
        self._every = every
        self._last = time.monotonic()

    def note(self, text: str) -> None:
        print(_indent(text) + clean(text, 2000), file=self._stream, flush=True)

    def show(self, states: dict[str, CellState], eta: float | None) -> None:
        now = time.monotonic()
        if now - self._last < self._every:
            return
        self._last = now
        self.note(summary(list(states.values()), eta))
        for cell in self._cells:
            state = states[cell.directory]
            if state.state == RUNNING:
                _, _, step, loss, speed, left, *_ = row(cell.name, state)
                said = [f"loss {loss}"] if loss else []
                said += [f"{speed} tok/s"] if speed else []
                said += [f"ETA {left}"] if left else []
                progress = f"step {step}" if step else "starting"
                self.note(f"  {cell.name}: {', '.join([progress, *said])}")

    def close(self) -> None:
        self._stream.flush()


class LiveDisplay:
    """A table that changes in place, with what happened above it."""

    def __init__(self, cells: Sequence[Runnable], stream: TextIO) -> None:
        self._cells = cells
        self._console = Console(file=stream)
        # No thread: the driver starts processes, whose life is bound to its only thread.
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._live.start()

    def note(self, text: str) -> None:
        self._console.print(Text(clean(text, 2000)))

    def show(self, states: dict[str, CellState], eta: float | None) -> None:
        shown = [cell for cell in self._cells if states[cell.directory].state not in MISSING[:1]]
        shown.sort(key=lambda cell: _ORDER.get(states[cell.directory].state, 4))
        most = max(1, self._console.height - _ROWS_AROUND)
        grid = Table(box=None, pad_edge=False)
        for head in HEADER:
            grid.add_column(head, justify="right" if head in _RIGHT else "left", no_wrap=True)
        for cell in shown[:most]:
            state = states[cell.directory]
            style = _STYLES.get(state.state, "")
            grid.add_row(*(Text(text, style=style) for text in row(cell.name, state)))
        hidden = f" ({len(shown) - most} rows more: grid status)" if len(shown) > most else ""
        grid.caption = Text(summary(list(states.values()), eta) + hidden)
        self._live.update(grid, refresh=True)

    def close(self) -> None:
        self._live.stop()


def _indent(text: str) -> str:
    return text[: len(text) - len(text.lstrip(" "))]


def make_display(cells: Sequence[Runnable], every: float, stream: TextIO | None = None) -> Display:
    """A live table if `stream` (default stderr) is a terminal, else lines every `every` seconds."""
    stream = sys.stderr if stream is None else stream
    able = stream.isatty() and not Console(file=stream).is_dumb_terminal
    return LiveDisplay(cells, stream) if able else PlainDisplay(cells, stream, every)
