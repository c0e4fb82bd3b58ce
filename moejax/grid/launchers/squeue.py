"""Whether Slurm still knows a job: by `squeue`, which needs no accounting data base."""

from __future__ import annotations

import os
import subprocess
import time

from moejax.grid.claims import Job

ASK_SECONDS = 10.0
"""Between two calls of `squeue`, which asks the cluster's only controller."""


class Squeue:
    """Remembers the answer for `ask_seconds`."""

    def __init__(self, ask_seconds: float = ASK_SECONDS) -> None:
        self._ask_seconds = ask_seconds
        self._asked = -float("inf")
        self._numbers: frozenset[str] | None = None

    def active(self, job: Job) -> bool | None:
        """Whether a job waits or runs; None where that cannot be asked from here.

        Clusters may hide the jobs of other users, so theirs are never called gone.
        """
        if job.system != "slurm" or job.user != str(os.getuid()):
            return None
        if time.monotonic() - self._asked >= self._ask_seconds:
            self._asked = time.monotonic()
            self._numbers = _numbers(job.user)
        return None if self._numbers is None else job.number in self._numbers

    def forget(self) -> None:
        """Asks anew the next time."""
        self._asked = -float("inf")


def _numbers(user: str) -> frozenset[str] | None:
    """Numbers of a user's jobs, elements of arrays as NUMBER_INDEX; None: no answer."""
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--user={user}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return frozenset(done.stdout.split()) if done.returncode == 0 else None
