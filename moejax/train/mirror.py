"""A copy of the run directory in an object store, beside the checkpoints there.

The run directory stays local: it needs append, rename and a lock, and a store has none of them. Its
small files are put into the store as whole objects, so that a machine with nothing but the URL can
go on. At a checkpoint that is part of the save (`commit`): a checkpoint never knows more than the
record beside it. In between a thread does it, and a store that fails is asked again.

In the place of the lock there is `owner.json`, put by each attempt when it begins. An attempt that
finds another's there was replaced while it was believed dead, and stops.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import secrets
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from etils import epath

from moejax.config.files import read_json, write_bytes_atomic
from moejax.config.knobs import ConfigError
from moejax.train.errors import StorageError, one_line
from moejax.train.rundir import FORMAT_VERSION, RunDir
from moejax.train.store import asking
from moejax.train.votes import on_first

_FILES = ("config.json", "env.json", "data.json", "model.json", "log.txt", "final.json")
_METRICS = "metrics.jsonl"
_STATUS = "status.json"
_ARRAYS = ("routing", "trace")
_ARRAY = re.compile(r"\d+\.npz")
_LEAST_SECONDS = 1.0
"""A store takes about one put a second of one object."""


class Mirror:
    """The copy of one run directory; without a store its methods do nothing.

    Process 0 mirrors the run directory, every other process its own log.
    """

    def __init__(self, run_dir: RunDir) -> None:
        self._run_dir = run_dir
        self._to: epath.Path | None = None if run_dir.store is None else run_dir.store / "run"
        self._put_as: dict[Path, tuple[int, int]] = {}
        self._owner = ""
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def pull(self) -> str:
        """Fetches the mirror where it knows more than the directory here: a fresh machine, or one
        that another machine has overtaken. Process 0's, before anything reads the directory.

        Returns:
          What was done, for the log; "" for nothing.

        Raises:
          ConfigError: another run's mirror is there.
          StorageError: the store does not answer, or its record cannot be read.
        """
        if self._to is None:
            return ""
        with asking(self._to, "reading the mirror of the run directory"):
            there = self._read_record("config.json")
            if there is None:
                return ""
            run = self._run_dir
            if run.config.exists():
                ours = read_json(run.config)
                if ours.get("hash") != there.get("hash") and self._trained_there():
                    raise ConfigError(
                        f"{self._to.parent}: holds another run than {run.root} does; use another "
                        "config.checkpoint.dir, or a new --workdir to go on with that run"
                    )
                local = read_json(run.status) if run.status.exists() else {}
                newest = (self._read_record(_STATUS) or {}).get("attempt", 0)
                if local.get("attempt", 0) >= newest:
                    return ""
            # These last: where they are, everything is, and a fetch that died is begun again.
            last = {_STATUS: 1, "config.json": 2}
            names = sorted(self._names_there(), key=lambda name: last.get(name, 0))
            for name in names:
                write_bytes_atomic(run.root / name, (self._to / name).read_bytes())
                self._put_as[run.root / name] = _signature(run.root / name)
        return f"fetched {len(names)} files of the run directory from {self._to}"

    def claim(self) -> None:
        """Says in the store whose the run is now, and what it is; process 0's.

        Raises:
          StorageError: the store does not take it.
        """
        if self._to is None:
            return
        owner = {
            "format_version": FORMAT_VERSION,
            "attempt": secrets.token_hex(8),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        with asking(self._to, "writing (is the bucket there, and may this machine write to it?)"):
            (self._to / "owner.json").write_bytes(json.dumps(owner, indent=2).encode())
        self._owner = str(owner["attempt"])
        self.put_all()

    def follow(self, record: Callable[[str], None], seconds: float) -> None:
        """Starts the thread that mirrors all but the metrics every so many seconds.

        Args:
          record: takes a line about a store that fails, once until it is well again.
        """
        if self._to is None:
            return

        def forever() -> None:
            failing = False
            while not self._closing.wait(max(seconds, _LEAST_SECONDS)):
                try:
                    self._put_changed(metrics=False)
                    failing = False
                except Exception as error:
                    if not failing:
                        record(f"WARNING: mirroring failed, will try again ({one_line(error)})")
                    failing = True

        self._thread = threading.Thread(target=forever, name="mirror", daemon=True)
        self._thread.start()

    def commit(self) -> None:
        """Returns when the store has the whole run directory as it is now; all processes call it.

        Raises:
          StorageError: the store does not take it, or another attempt has the run.
        """
        if self._to is not None:
            on_first(self.put_all)

    def put_all(self) -> None:
        """`commit` of one process: process 0's directory, or another's log.

        Raises:
          StorageError: the store does not take it, or another attempt has the run.
        """
        if self._to is not None:
            with asking(self._to, "mirroring the run directory"):
                self._put_changed(metrics=True)

    def close(self) -> str:
        """Ends the thread after a last try; returns what could not be mirrored, or ""."""
        self._closing.set()
        if self._thread is None:
            return ""
        self._thread.join()
        self._thread = None
        try:
            self.put_all()
        except StorageError as error:
            return str(error)
        return ""

    def says_done(self) -> bool:
        """Whether the mirror knows that the run is done. True without a store.

        Raises:
          StorageError: the store does not answer.
        """
        if self._to is None:
            return True
        with asking(self._to, "reading the mirror of the run directory"):
            return (self._read_record(_STATUS) or {}).get("state") == "done"

    def _put_changed(self, *, metrics: bool) -> None:
        """Puts what changed since it was put. The status comes last: what it says is there, is."""
        run = self._run_dir
        with self._lock:
            if not run.writes:
                self._put(run.log)
                return
            if not self._owner:  # not claimed yet: what is there is not ours to change
                return
            self._require_ours()
            paths = [run.root / name for name in _FILES]
            for kind in _ARRAYS:
                paths += sorted((run.root / kind).glob("*.npz"))
            if metrics:
                paths.append(run.metrics)
            with ThreadPoolExecutor(max_workers=8) as several:
                list(several.map(self._put, paths))
            self._put(run.status)

    def _put(self, path: Path) -> None:
        assert self._to is not None
        if not path.exists():
            return
        # Taken before the content: what is written in between is put the next time.
        now = _signature(path)
        if self._put_as.get(path) != now:
            name = path.relative_to(self._run_dir.root).as_posix()
            (self._to / name).write_bytes(path.read_bytes())
            self._put_as[path] = now

    def _require_ours(self) -> None:
        owner = self._read_record("owner.json") or {}
        if owner.get("attempt") != self._owner:
            raise StorageError(
                f"{self._to}: the run was taken over by pid {owner.get('pid')} on host "
                f"{owner.get('host')} since {owner.get('since')}; this attempt ends"
            )

    def _trained_there(self) -> bool:
        assert self._to is not None
        return (self._to / _METRICS).exists() or self._run_dir.checkpoints.exists()

    def _names_there(self) -> list[str]:
        """What of a run directory the mirror holds; nothing else is ever fetched."""
        assert self._to is not None
        top = {entry.name for entry in self._to.iterdir()}
        names = [name for name in (*_FILES, _METRICS, _STATUS) if name in top]
        for kind in top & set(_ARRAYS):
            entries = (entry.name for entry in (self._to / kind).iterdir())
            names += sorted(f"{kind}/{entry}" for entry in entries if _ARRAY.fullmatch(entry))
        return names

    def _read_record(self, name: str) -> dict[str, Any] | None:
        assert self._to is not None
        try:
            text = (self._to / name).read_bytes()
        except FileNotFoundError:
            return None
        record = json.loads(text)
        if not isinstance(record, dict) or record.get("format_version") != FORMAT_VERSION:
            raise StorageError(f"{self._to / name}: is not of format_version {FORMAT_VERSION}")
        return record


def _signature(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size
