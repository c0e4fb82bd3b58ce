"""One process per run directory, however it ends: a kernel lock that dies with its owner."""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import socket
from pathlib import Path

from moejax.train.errors import OccupiedError


class RunLock:
    """An exclusive `flock` on `run.lock`, with the holder's host, pid and start time inside.

    There is no stale lock: the kernel releases it with the process, and the file's content is only
    for the message. The file stays behind on purpose (removing it would race).
    """

    def __init__(self, workdir: Path) -> None:
        self._path = workdir / "run.lock"
        self._file: int | None = None

    def __enter__(self) -> RunLock:
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _describe(os.pread(handle, 4096, 0))
            os.close(handle)
            raise OccupiedError(
                f"{self._path.parent}: the run directory is in use by {holder}; wait for it, stop "
                "it, or choose another --workdir"
            ) from None
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        text = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": now})
        os.ftruncate(handle, 0)
        os.pwrite(handle, text.encode(), 0)
        self._file = handle
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _describe(content: bytes) -> str:
    try:
        holder = json.loads(content)
        return f"pid {holder['pid']} on host {holder['host']} since {holder['since']}"
    except (ValueError, KeyError, TypeError):  # read in the instant before the holder wrote it
        return "another process"
