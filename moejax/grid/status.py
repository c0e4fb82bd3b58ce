"""What a cell is doing, read from files alone: beside a driver, after one, or elsewhere."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moejax.config.files import read_json
from moejax.config.knobs import ConfigError
from moejax.grid import attempts
from moejax.grid.attempts import Attempt
from moejax.grid.claims import Claims
from moejax.grid.places import Places
from moejax.grid.process import clean, finished
from moejax.train.rundir import RunDir

PENDING, CLAIMED, RUNNING = "pending", "claimed", "running"
PREEMPTED, FAILED, DONE = attempts.PREEMPTED, attempts.FAILED, attempts.DONE
STATES = (PENDING, CLAIMED, RUNNING, PREEMPTED, FAILED, DONE)
ACTIVE = (CLAIMED, RUNNING)
"""Somebody has it."""
MISSING = (PENDING, PREEMPTED)
"""What `run` starts by default."""

_TAIL_BYTES = 16_384
FOREIGN = "was trained with another config than planned: a file changed meanwhile; see --rerun"


@dataclasses.dataclass(frozen=True)
class CellState:
    """One cell now.

    Attributes:
      state: one of `STATES`.
      reason: why it failed or was preempted; one line.
      step, total_steps: 0 where nothing is known yet.
      loss: nats per token: of the last evaluation if it is done, else of the last step.
      tokens_per_second: of the last step.
      seconds: of training steps so far.
      wall: seconds of all its processes so far.
      eta: seconds of training left.
      heartbeat: Unix seconds by the clock of the machine that runs it.
      attempt: processes so far.
      launcher: of the last one.
      job: number in a batch system.
      last_error: of the last attempt that failed, whatever came later.
    """

    state: str
    reason: str = ""
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    tokens_per_second: float | None = None
    seconds: float | None = None
    wall: float | None = None
    eta: float | None = None
    heartbeat: float | None = None
    host: str = ""
    pid: int | None = None
    attempt: int = 0
    launcher: str = ""
    job: str = ""
    last_error: str = ""

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return dataclasses.asdict(self)


def read_states(
    places: Places, directories: Iterable[str], claims: Claims | None = None
) -> dict[str, CellState]:
    """The state of each cell; `claims` is whoever judges claims of other machines over time."""
    claims = claims or Claims(places)
    return {directory: read_state(places, directory, claims) for directory in directories}


def read_state(places: Places, directory: str, claims: Claims | None) -> CellState:
    """The state of one cell; damaged files are a reason, never an exception.

    Without `claims`, as if nobody claimed it: what whoever has the claim finds.
    """
    history = attempts.read(places, directory)
    claimed = claims is not None and places.claim(directory).exists()
    if not history and not claimed and not places.workdir(directory).exists():
        return CellState(PENDING)  # of ten thousand cells most are
    run = RunDir(places.workdir(directory))
    last = history[-1] if history and not history[-1].aside else None
    failures = [attempt.reason for attempt in history if attempt.outcome == FAILED]
    status, damage = _status(run)
    known = _progress(run, status) | {
        "attempt": len(history) or int(_number(status.get("attempt")) or 0),
        "launcher": history[-1].launcher if history else "",
        "wall": _wall(history),
        "last_error": failures[-1] if failures else "",
    }
    if finished(run.root):
        known |= _final(run) | {"eta": None}
        if _is_foreign(run, directory):
            return CellState(FAILED, **known | {"reason": FOREIGN})
        return CellState(DONE, **known)
    try:
        claim = claims.holder(directory) if claims else None
    except ConfigError as error:
        return CellState(FAILED, **known | {"reason": clean(str(error))})
    if claims is not None and claim is not None and not claims.dead(claim):
        under_way = last is not None and last.outcome is None and last.began >= claim.since
        who = {"host": claim.owner.host, "pid": claim.owner.pid}
        if last is not None and under_way:
            who = {"host": last.process.host, "pid": last.process.pid}
        known |= who | {"job": claim.job.number if claim.job else ""}
        return CellState(RUNNING if under_way else CLAIMED, **known)
    if last is not None and last.outcome is None and last.process.alive():
        who = {"host": last.process.host, "pid": last.process.pid}
        return CellState(RUNNING, **known | who | {"reason": "its driver is gone; it is saving"})
    state, reason = _after(last, status, damage)
    return CellState(state, **known | {"reason": clean(reason), "eta": None})


def _wall(history: list[Attempt]) -> float | None:
    """Seconds that the cell's processes took, the last one until now if it has not ended."""
    now = time.time()
    spans = [
        (one.ended or (now if one is history[-1] else one.began)) - one.began for one in history
    ]
    return sum(max(0.0, span) for span in spans) if spans else None


def _after(last: Attempt | None, status: dict[str, Any], damage: str) -> tuple[str, str]:
    """State and reason of a cell that is not done and that nobody runs."""
    if last is not None and last.outcome in (FAILED, PREEMPTED):
        return last.outcome, last.reason
    if last is not None and last.outcome == DONE:
        return FAILED, "was done, but its final.json is gone"
    if damage:
        return FAILED, damage
    if status.get("state") == "failed":  # by its own word; nobody saw the process end
        return FAILED, str(status.get("reason") or "")
    if last is not None or status:
        return PREEMPTED, str(status.get("reason") or "") or "its process vanished"
    return PENDING, ""


def _status(run: RunDir) -> tuple[dict[str, Any], str]:
    """status.json and what is wrong with it; empty where there is none."""
    path = run.status
    if not path.exists():
        return {}, ""
    try:
        status = read_json(path)
    except ConfigError as error:
        return {}, str(error)
    return (status, "") if isinstance(status, dict) else ({}, f"{path}: is no object")


def _progress(run: RunDir, status: dict[str, Any]) -> dict[str, Any]:
    """Progress of a run: status.json has the length, the end of metrics.jsonl the newest step."""
    step, total = (int(_number(status.get(key)) or 0) for key in ("step", "total_steps"))
    known: dict[str, Any] = {"total_steps": total, "heartbeat": _number(status.get("heartbeat"))}
    known |= {"host": str(status.get("host", "")), "pid": status.get("pid")}
    for line in reversed(_tail(run.metrics)):
        if "train/loss" in line:
            step = max(step, int(_number(line.get("step")) or 0))
            known["loss"] = _number(line["train/loss"])
            known["tokens_per_second"] = _number(line.get("perf/tokens_per_second"))
            known["seconds"] = seconds = _number(line.get("time/elapsed"))
            if seconds and step and total >= step:
                known["eta"] = seconds / step * (total - step)
            break
    return known | {"step": step}


def _final(run: RunDir) -> dict[str, Any]:
    """What final.json knows better than the last line of the metrics."""
    try:
        final = read_json(run.final)
        return {"step": int(final["step"]), "loss": _number(final["eval"]["loss"])}
    except (ConfigError, KeyError, TypeError, ValueError):
        return {}


def _is_foreign(run: RunDir, directory: str) -> bool:
    """Whether a run says another hash of its config than its directory's name ends in."""
    try:
        own = str(read_json(run.config)["hash"])
    except (ConfigError, KeyError, TypeError):
        return False
    return not own.startswith(directory.rpartition("-")[2])


def _tail(path: Path) -> list[dict[str, Any]]:
    """The last whole lines of a JSONL file."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:  # the first is cut by us, the last perhaps by its writer
            continue
        if isinstance(record, dict):
            found.append(record)
    return found


def _number(value: Any) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if good else None
