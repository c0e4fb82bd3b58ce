"""`--profile=10:15`: an xprof trace of a few steps into the run directory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax

from moejax.config.knobs import ConfigError


def parse_steps(text: str) -> tuple[int, int] | None:
    """`"10:15"` -> (10, 15): trace the steps 10 to 15, the first and the last included.

    Raises:
      ConfigError: not two step numbers in order.
    """
    if not text:
        return None
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None or int(match[1]) < 1 or int(match[1]) > int(match[2]):
        raise ConfigError(f"--profile={text}: expected FIRST:LAST steps, for example 10:15")
    return int(match[1]), int(match[2])


class Profiler:
    """Starts and stops the trace around the steps asked for; compile is never inside."""

    def __init__(self, directory: Path, steps: tuple[int, int] | None) -> None:
        self._directory = directory
        self._steps = steps
        self._running = False

    def missed(self, done: int) -> bool:
        """Whether the steps asked for are among the `done` first ones."""
        return self._steps is not None and self._steps[0] <= done

    def before(self, step: int) -> None:
        """To be called before optimiser step `step` (1 = the first) is dispatched."""
        if self._steps and not self._running and step == self._steps[0]:
            jax.profiler.start_trace(str(self._directory))
            self._running = True

    def after(self, step: int, result: Any) -> bool:
        """To be called with what step `step` returned; True if a trace was written just now."""
        if not self._running or self._steps is None or step < self._steps[1]:
            return False
        jax.block_until_ready(result)
        self.close()
        return True

    def close(self) -> None:
        """Ends a trace that is still running."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
