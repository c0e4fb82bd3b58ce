"""What a run says: knobs of logging, log.txt, and the fan-out of metrics to sinks."""

from __future__ import annotations

import dataclasses
import datetime
import re
from pathlib import Path
from typing import Any, Protocol

from moejax.config.knobs import knob
from moejax.train.progress import Progress

_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """What is written beside the numbers themselves; only `every` changes metrics.jsonl."""

    every: int = knob(1, unit="steps", doc="a train line of metrics every so many steps", low=1)
    console_seconds: float = knob(
        10.0, unit="seconds", doc="between two plain progress lines", low=0.0
    )
    heartbeat_seconds: float = knob(
        10.0, unit="seconds", doc="between two heartbeats in status.json", low=0.0
    )
    tensorboard: bool = knob(True, doc="write TensorBoard event files under tb/")
    wandb: str = knob("off", doc="Weights & Biases", choices=("off", "offline", "online"))
    wandb_project: str = knob("moejax", doc="W&B project")


class Sink(Protocol):
    """Takes flat metrics lines (always with `step` and `tokens`)."""

    def write(self, line: dict[str, Any]) -> None:
        """Takes one line."""

    def flush(self) -> None:
        """Makes what was taken visible."""

    def close(self) -> None:
        """Flushes and lets go."""


class RunLog:
    """log.txt (plain text, with time stamps) and the same lines on the console."""

    def __init__(self, path: Path, progress: Progress) -> None:
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (lives as long as the run)
        self._progress = progress

    def say(self, text: str) -> None:
        """Writes a line to both."""
        self.record(text)
        self._progress.note(text)

    def record(self, text: str) -> None:
        """Writes a line to log.txt only."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._file.write(f"{now} {_ANSI.sub('', text)}\n")
        self._file.flush()

    def close(self) -> None:
        """Closes log.txt."""
        self._file.close()
