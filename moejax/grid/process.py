"""One process of a cell, from its start to the line in the history that says how it ended."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from moejax.analysis import text
from moejax.config.files import read_json
from moejax.config.knobs import ConfigError
from moejax.grid import attempts
from moejax.grid.claims import owner_of
from moejax.grid.launchers import child
from moejax.grid.places import Places
from moejax.train.entry import is_done
from moejax.train.errors import EXIT_SIGINT, EXIT_SIGTERM
from moejax.train.rundir import RunDir

GRACE_SECONDS = 60.0
"""From SIGTERM to SIGKILL of a cell that took too long."""

_STOPPED = (EXIT_SIGINT, EXIT_SIGTERM, -signal.SIGINT, -signal.SIGTERM)
# Colours and cursor movements, and titles of windows.
_ESCAPES = re.compile(r"(?:\x1b\[|\x9b)[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?")
_REASON_CHARACTERS = 300


class CellProcess:
    """Starts a cell's command and watches it; the parent's death ends it with its state saved.

    Args:
      places: the root's.
      directory: the cell's.
      command: what to run; its output goes to the cell's log.
      cwd: where.
      launcher: a word for the history.
      timeout: seconds after which the process is stopped and has failed; 0: none.
      cores: numbers of the cores that it may use; empty: those of this process.
      variables: changes of the environment.

    To be used in the main thread: the process is bound to the life of the thread that started it.
    """

    def __init__(
        self,
        places: Places,
        directory: str,
        command: Sequence[str],
        cwd: str,
        *,
        launcher: str,
        timeout: float = 0.0,
        cores: Sequence[int] = (),
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self._places = places
        self._timeout = timeout
        self._began = time.monotonic()
        self._too_long = False
        self._killed = False
        log = places.log(directory)
        log.parent.mkdir(parents=True, exist_ok=True)
        script = str(Path(child.__file__).resolve())
        pinned = ",".join(map(str, cores)) or "-"
        start = [sys.executable, "-I", "-S", script, str(os.getpid()), pinned]
        with open(log, "ab") as file:
            self._log_start = file.tell()
            self._process = subprocess.Popen(
                [*start, *command],
                cwd=cwd,
                env=_environment(variables or {}),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the driver, which tells its cells
            )
        self.pid = self._process.pid
        try:
            process = owner_of(self.pid)
        except ProcessLookupError:  # it is over already; what ended matters to nobody
            process = owner_of(os.getpid())
        self._attempt = attempts.begin(places, directory, process, launcher, self._log_start)

    def poll(self) -> bool:
        """Whether the process has ended, which is then in the history. Ends one that took too long.

        Safe to call again after the end.
        """
        if self._process.poll() is None:
            over = time.monotonic() - self._began - self._timeout
            if self._timeout and over > 0 and not self._too_long:
                self._too_long = True
                self.stop()
            if self._timeout and over > GRACE_SECONDS:
                self.kill()
            return False
        if self._attempt.outcome is None:
            self._note_end(int(self._process.returncode))
        return True

    @property
    def outcome(self) -> str | None:
        """One of `attempts.DONE`, ... after the end."""
        return self._attempt.outcome

    def stop(self) -> None:
        """SIGTERM: training saves and ends."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the process and all it started."""
        self._killed = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def _note_end(self, code: int) -> None:
        outcome, reason = self._judge(code)
        number = self._attempt.number
        attempts.end(self._places, self.directory, number, outcome, code, reason)
        history = attempts.read(self._places, self.directory)
        self._attempt = next((one for one in history if one.number == number), self._attempt)

    def _judge(self, code: int) -> tuple[str, str]:
        """Outcome and reason of an exit code, negative for a signal."""
        if finished(self._places.workdir(self.directory)):
            return attempts.DONE, ""
        if self._too_long:
            saved = "; its state was saved" if code in (EXIT_SIGINT, EXIT_SIGTERM) else ""
            return attempts.FAILED, f"took longer than {self._timeout:g} s{saved}"
        if self._killed:
            return attempts.PREEMPTED, "killed with its driver before it had saved"
        if code in _STOPPED:
            return attempts.PREEMPTED, "stopped by a signal"
        if code < 0:
            known = -code in set(signal.Signals)
            name = signal.Signals(-code).name if known else f"signal {-code}"
            memory = "; the kernel does that when memory runs out" if name == "SIGKILL" else ""
            return attempts.FAILED, f"killed by {name}{memory}"
        said = self._own_reason() or last_line(self._places.log(self.directory), self._log_start)
        if code == 0:
            said = "ended with code 0 but without final.json" + (f": {said}" if said else "")
        return attempts.FAILED, said or f"ended with code {code} and said nothing"

    def _own_reason(self) -> str:
        """What this process itself wrote into status.json."""
        try:
            status = read_json(RunDir(self._places.workdir(self.directory)).status)
        except ConfigError:
            return ""
        own = isinstance(status, dict) and status.get("pid") == self.pid
        return clean(str(status.get("reason") or "")) if own else ""


def finished(workdir: Path) -> bool:
    """Whether a run directory holds a complete run; one that cannot be read does not."""
    try:
        return is_done(RunDir(workdir))
    except (ConfigError, AttributeError):
        return False


def last_line(log: Path, start: int) -> str:
    """The last line with something in it, from byte `start` on."""
    try:
        with open(log, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start, size - 16_384))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((said for line in reversed(lines) if (said := clean(line))), "")


def clean(said: str, most: int = _REASON_CHARACTERS) -> str:
    """One visible line of bounded length, of what a process printed or wrote."""
    return text.clean(" ".join(_ESCAPES.sub("", said).split()), most)


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    """This process' environment with changes, and without what asks for colours in a file."""
    colours = ("FORCE_COLOR", "CLICOLOR_FORCE", "PYTHON_COLORS")
    kept = {name: value for name, value in os.environ.items() if name not in colours}
    return kept | {"NO_COLOR": "1", "PYTHONUNBUFFERED": "1"} | dict(variables)
