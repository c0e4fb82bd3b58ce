"""Cells as shell commands, to be started by other means."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence

from moejax.grid.launchers import Spec


class Printer:
    """Starts nothing: writes out what somebody else is to start. Others have another `render`."""

    name = "print"

    def render(self, specs: Sequence[Spec]) -> str:
        """A line of shell for each cell, which runs in any directory."""
        here = shlex.quote(os.getcwd())
        lines = []
        for spec in specs:
            words = [sys.executable, "-m", "experiments.train", *spec.argv]
            lines.append(f"cd {here} && {shlex.join([*words, f'--workdir={spec.workdir}'])}\n")
        return "".join(lines)
