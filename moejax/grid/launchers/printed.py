"""Cells as shell commands, to be started by other means."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any, TextIO

from moejax.grid.claims import Job
from moejax.grid.launchers import Handle, Spec


class Printer:
    """A launcher that writes out what `render` makes of the cells, and starts nothing."""

    name = "print"
    starts = False

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream

    def render(self, specs: Sequence[Spec]) -> str:
        """A line of shell for each cell, which runs in any directory."""
        here = shlex.quote(os.getcwd())
        lines = []
        for spec in specs:
            words = [sys.executable, "-m", "experiments.train", *spec.argv]
            lines.append(f"cd {here} && {shlex.join([*words, f'--workdir={spec.workdir}'])}\n")
        return "".join(lines)

    def free(self) -> int:
        return sys.maxsize

    def submit(self, specs: Sequence[Spec]) -> Sequence[Handle]:
        print(self.render(specs), end="", file=self._stream or sys.stdout, flush=True)
        return []

    def ended(self, handle: Any) -> bool:
        raise NotImplementedError(f"--launcher={self.name} starts nothing")

    def stop(self, handle: Any, *, kill: bool = False) -> None:
        raise NotImplementedError(f"--launcher={self.name} starts nothing")

    def job_active(self, job: Job) -> bool | None:
        return None
