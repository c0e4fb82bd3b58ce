"""What can end a run, and the exit code that says so.

`ConfigError` (from `moejax.config`) is the caller's mistake and exits with 2. Everything here
happens to a run that was set up correctly. `docs/training.md` has the table for users.
"""

from __future__ import annotations

import signal

from moejax.config.knobs import ConfigError

EXIT_DONE = 0
EXIT_CRASH = 1
EXIT_USAGE = 2
EXIT_NON_FINITE = 3
EXIT_STORAGE = 4
EXIT_PROCESSES = 5
EXIT_SIGINT = 128 + int(signal.SIGINT)
EXIT_SIGTERM = 128 + int(signal.SIGTERM)


class RunError(Exception):
    """A run ended early for a reason that one line explains."""

    exit_code = EXIT_CRASH
    state = "failed"


class NonFiniteError(RunError):
    """The loss or the gradient norm of a step was not finite; the state before it was kept."""

    exit_code = EXIT_NON_FINITE


class StorageError(RunError):
    """A checkpoint or a file of the run directory could not be written or read back whole."""

    exit_code = EXIT_STORAGE


class Interrupted(RunError):
    """A signal asked the run to stop; what could be saved is saved."""

    state = "interrupted"

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code = EXIT_SIGINT if signum == signal.SIGINT else EXIT_SIGTERM


class LostProcessError(RunError):
    """Another process of the run died, or the connection to it; the newest checkpoint is good."""

    exit_code = EXIT_PROCESSES


def one_line(error: BaseException) -> str:
    """Kind and first line of any exception."""
    said = str(error).strip()
    return f"{type(error).__name__}: {said.splitlines()[0] if said else ''}"[:300]


class OccupiedError(ConfigError):
    """Another process holds the run directory."""


class MismatchError(ConfigError):
    """The run directory belongs to another config; the message holds one line per difference."""

    def __init__(self, message: str) -> None:
        # ConfigError keeps one line only, and a difference has several.
        ValueError.__init__(self, message)
