"""Who runs which cell: one claim file per cell, and one heartbeat file per process that claims.

A claim appears by `link`, whole or not at all, so one of many takers wins. It is dead when its
owner is: on the same machine that is known at once, from pid and start time (a recycled pid has
another). Elsewhere only the heartbeat tells, and clocks of different machines may differ: what
counts is how long *this* process has seen no change, by its own monotonic clock. A claim of a batch
job is alive as long as the batch system knows the job.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from moejax.config.files import write_bytes_atomic
from moejax.config.knobs import ConfigError
from moejax.grid.places import FORMAT_VERSION, Places

HEARTBEAT_SECONDS = 10.0
SILENT_SECONDS = 180.0
"""Well above a minute, for which NFS may show an old file."""


@dataclasses.dataclass(frozen=True)
class Owner:
    """A process that can be told from every other one.

    `space` says where `pid` means something: boot id and pid namespace, because containers of one
    machine share the former only. `started` is in clock ticks since the boot. `name` is its
    heartbeat file's.
    """

    name: str
    host: str
    space: str
    pid: int
    started: int

    @staticmethod
    def this() -> Owner:
        """This process."""
        return owner_of(os.getpid())

    def alive(self) -> bool | None:
        """Whether it runs; None where that cannot be seen from here."""
        if self.space != _space():
            return None
        return _start_of(self.pid) == self.started


@dataclasses.dataclass(frozen=True)
class Job:
    """A job of a batch system: it may wait there while no process of it exists. `user`: its uid."""

    system: str
    number: str
    user: str

    @staticmethod
    def mine(system: str, number: str) -> Job:
        """A job that this user submitted."""
        return Job(system, number, str(os.getuid()))


@dataclasses.dataclass(frozen=True)
class Claim:
    """Content of a claim file; `token` is this claim's alone, `since` Unix seconds."""

    directory: str
    token: str
    owner: Owner
    since: float
    job: Job | None = None

    def to_bytes(self) -> bytes:
        """JSON."""
        record = {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}
        return (json.dumps(record, indent=2, sort_keys=True) + "\n").encode()

    @staticmethod
    def from_bytes(data: bytes) -> Claim:
        """Reads `to_bytes` back; ValueError, KeyError or TypeError if it is something else."""
        record = json.loads(data)
        if record["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format_version {record['format_version']!r}")
        job = None if record["job"] is None else Job(**record["job"])
        owner = Owner(**record["owner"])
        return Claim(record["directory"], record["token"], owner, float(record["since"]), job)


def owner_of(pid: int) -> Owner:
    """A process of this machine, now.

    Raises:
      ProcessLookupError: there is none.
    """
    started = _start_of(pid)
    if started is None:
        raise ProcessLookupError(f"pid {pid}: no such process")
    return Owner(secrets.token_hex(8), socket.gethostname(), _space(), pid, started)


class Claims:
    """The claims below one root, as one process sees and makes them.

    Args:
      places: the root's.
      owner: in whose name to claim; None: only to look.
      job_active: whether a batch job still waits or runs; None if that cannot be asked from here.
      every: seconds between two heartbeats.
      silent: seconds without one, seen from here, after which an owner elsewhere is dead.
    """

    def __init__(
        self,
        places: Places,
        owner: Owner | None = None,
        *,
        job_active: Callable[[Job], bool | None] = lambda job: None,
        every: float = HEARTBEAT_SECONDS,
        silent: float = SILENT_SECONDS,
    ) -> None:
        self._places = places
        self._owner = owner
        self._job_active = job_active
        self._every = every
        self._silent = silent
        self._beats = 0
        self._last_beat = -float("inf")
        self._mine: dict[str, str] = {}
        self._seen: dict[str, tuple[bytes, float]] = {}

    def beat(self) -> bool:
        """Shows that this process lives; returns whether it was time to."""
        if self._owner is None or time.monotonic() - self._last_beat < self._every:
            return False
        self._beats += 1
        self._last_beat = time.monotonic()
        record = {
            "beat": self._beats,
            "time": time.time(),
            "owner": dataclasses.asdict(self._owner),
        }
        text = json.dumps(record)
        write_bytes_atomic(self._places.beats / self._owner.name, text.encode(), durable=False)
        return True

    def sweep(self) -> None:
        """Removes heartbeat files of processes of this machine that are dead."""
        for path in self._places.beats.glob("*"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                if Owner(**json.loads(path.read_bytes())["owner"]).alive() is False:
                    path.unlink()

    def take(self, directory: str) -> Claim | None:
        """Claims a cell that nobody runs; None if somebody does."""
        if self._owner is None:
            raise ValueError("these claims were opened to look only")
        self.beat()
        claim = Claim(directory, secrets.token_hex(8), self._owner, time.time())
        with exclusively(self._places):
            there = self.holder(directory)
            if there is not None and not (self.dead(there) and self._bury(there)):
                return None
            if not self._put(claim):
                return None
        self._mine[directory] = claim.token
        return claim

    def take_over(self, directory: str, token: str, job: Job) -> Claim | None:
        """Makes the claim with this token this process'; None if it is not there any more.

        This is how a batch job begins what somebody claimed when submitting it.
        """
        assert self._owner is not None
        self.beat()
        with exclusively(self._places):
            there = self.holder(directory)
            if there is None or there.token != token:
                return None
            claim = dataclasses.replace(there, owner=self._owner, job=job, since=time.time())
            write_bytes_atomic(self._places.claim(directory), claim.to_bytes())
        self._mine[directory] = token
        return claim

    def name_job(self, directory: str, job: Job) -> None:
        """Notes which job will run a claimed cell, unless the job has begun already."""
        with exclusively(self._places):
            there = self.holder(directory)
            if there is not None and there.token == self._mine.get(directory) and not there.job:
                there = dataclasses.replace(there, job=job)
                write_bytes_atomic(self._places.claim(directory), there.to_bytes())

    def holder(self, directory: str) -> Claim | None:
        """The claim on a cell, dead or alive.

        Raises:
          ConfigError: the file holds something else.
        """
        path = self._places.claim(directory)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            return Claim.from_bytes(data)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}: is no claim ({error}); remove it by hand") from error

    def dead(self, claim: Claim) -> bool:
        """Whether nobody runs what is claimed."""
        alive = claim.owner.alive()
        if alive:
            return False
        if claim.job is not None and self._job_active(claim.job) is not False:
            return False
        return alive is False or self._silent_for(claim.owner) > self._silent

    def held(self, directory: str) -> bool:
        """Whether somebody who is not known to be dead has a claim on a cell."""
        claim = self.holder(directory)
        return claim is not None and not self.dead(claim)

    def still_mine(self, directory: str) -> bool:
        """Whether nobody took the claim away, believing this process dead."""
        there = self.holder(directory)
        return there is not None and there.token == self._mine.get(directory)

    def give_back(self, directory: str) -> None:
        """Ends this process' claim on a cell, if it still has it."""
        if directory in self._mine and self.still_mine(directory):
            self._places.claim(directory).unlink(missing_ok=True)
        self._mine.pop(directory, None)

    def close(self) -> None:
        """Gives everything back but what batch jobs go on with; ends the heartbeat."""
        for directory in list(self._mine):
            there = self.holder(directory)
            if there is not None and there.job is None:
                self.give_back(directory)
        if self._owner is not None:
            (self._places.beats / self._owner.name).unlink(missing_ok=True)

    def _silent_for(self, owner: Owner) -> float:
        """Seconds since this process saw the owner's heartbeat change."""
        try:
            beat = (self._places.beats / owner.name).read_bytes()
        except FileNotFoundError:  # not yet visible here, or gone
            beat = b""
        now = time.monotonic()
        before, since = self._seen.get(owner.name, (None, now))
        if before != beat:
            since = now
        self._seen[owner.name] = (beat, since)
        return now - since

    def _put(self, claim: Claim) -> bool:
        """Puts a claim where none is; False if somebody was faster."""
        path = self._places.claim(claim.directory)
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{claim.token}.tmp")
        write_bytes_atomic(new, claim.to_bytes())
        try:
            os.link(new, path)
        except FileExistsError:
            # NFS may lose the answer to a request that it carried out.
            there = self.holder(claim.directory)
            return there is not None and there.token == claim.token
        except OSError as error:
            raise ConfigError(
                f"{path.parent}: has no hard links ({error.strerror}), by which cells are claimed; "
                "choose a --root on another file system"
            ) from error
        finally:
            new.unlink(missing_ok=True)
        return True

    def _bury(self, claim: Claim) -> bool:
        """Removes a dead claim; False if somebody else did."""
        path = self._places.claim(claim.directory)
        grave = path.with_name(f".{claim.token}.{secrets.token_hex(4)}.dead")
        try:
            os.rename(path, grave)
        except FileNotFoundError:
            return False
        # Where the lock does not reach across machines, the file may have become another one.
        found = Claim.from_bytes(grave.read_bytes())
        if found.token != claim.token:
            with contextlib.suppress(FileExistsError):
                os.link(grave, path)
        grave.unlink()
        return found.token == claim.token


@contextlib.contextmanager
def exclusively(places: Places, seconds: float = 60.0) -> Iterator[None]:
    """Holds the root's lock; the kernel releases it with the process.

    Raises:
      ConfigError: somebody has held it for so long, or the root cannot be written.
    """
    handle = _open_lock(places.lock)
    try:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ConfigError(
                        f"{places.lock}: held by another process for {seconds:.0f} s; is a driver "
                        "of this root stopped or stuck?"
                    ) from None
                time.sleep(0.02)
        yield
    finally:
        os.close(handle)


def _open_lock(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})") from error


def _space() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


def _start_of(pid: int) -> int | None:
    """Start of a process in clock ticks since the boot; None if there is none, or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may hold anything, the rest is numbers and one letter.
    fields: list[Any] = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])
