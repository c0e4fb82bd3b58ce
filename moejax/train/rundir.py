"""The run directory: its files, its identity, and what a second attempt may change."""

from __future__ import annotations

import errno
import io
import os
import re
import socket
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from moejax.config.compose import config_hash, diff, format_diff
from moejax.config.files import read_json, write_bytes_atomic, write_json
from moejax.config.knobs import ConfigError
from moejax.train.errors import MismatchError
from moejax.train.store import holds_checkpoint

FORMAT_VERSION = 1

MAY_CHANGE = (
    "log.console_seconds", "log.heartbeat_seconds", "log.tensorboard", "log.wandb",
    "log.wandb_project", "checkpoint.every", "checkpoint.minutes", "checkpoint.keep",
    "checkpoint.dir", "data.cache_dir", "mesh", "exchange.kind", "exchange.factor",
)  # fmt: skip
"""Keys that change no number of a run, so a resumed run may set them anew. Everything else is the
run's identity. (With `exchange.overflow=drop` the exchange is part of it: it decides what drops.)
"""

TUNED_MAY_CHANGE = ("finetune.base", "data.general.text.cache_dir")
"""As well, of a fine-tuning: its base is known by a hash, wherever it lies."""

_OURS = re.compile(
    r"^(\..*\.tmp|run\.lock|(config|env|status|data|model|final)\.json|metrics\.jsonl|log(\.process_\d+)?\.txt"
    r"|checkpoints|checkpoints\.damaged|routing|trace|tb|profile|wandb|adapter|esft|tasks)$"
)


class RunDir:
    """Paths of one run, and who writes there: process 0, but for each process' own log.

    `write_json` and `write_arrays` do nothing in the other processes. With a `store` the
    checkpoints are there, and everything else is here.
    """

    def __init__(self, root: Path, process: int = 0, store: epath.Path | None = None) -> None:
        self.root = root
        self.store = store
        self.writes = process == 0
        self.config = root / "config.json"
        self.env = root / "env.json"
        self.status = root / "status.json"
        self.data = root / "data.json"
        self.model = root / "model.json"
        self.final = root / "final.json"
        self.metrics = root / "metrics.jsonl"
        self.log = root / (f"log.process_{process}.txt" if process else "log.txt")
        self.checkpoints = (store or epath.Path(root)) / "checkpoints"
        self.damaged = (store or epath.Path(root)) / "checkpoints.damaged"
        self.tensorboard = root / "tb"
        self.profile = root / "profile"
        self.adapter = root / "adapter"

    def routing(self, step: int) -> Path:
        """Per-layer counts of the evaluation at `step`."""
        return self.root / "routing" / f"{step}.npz"

    def trace(self, step: int) -> Path:
        """Evaluation trace of `step`."""
        return self.root / "trace" / f"{step}.npz"

    def write_json(self, path: Path, record: Any) -> None:
        """Writes a JSON file of this run."""
        if self.writes:
            write_json(path, record)

    def write_arrays(self, path: Path, arrays: dict[str, np.ndarray]) -> None:
        """Writes an .npz atomically; the same arrays give the same bytes."""
        if not self.writes:
            return
        buffer = io.BytesIO()
        content: dict[str, Any] = {"format_version": np.int32(FORMAT_VERSION), **arrays}
        np.savez_compressed(buffer, **content)
        write_bytes_atomic(path, buffer.getvalue())


def claim(workdir: str | os.PathLike[str], store: epath.Path | None = None) -> RunDir:
    """Makes the directory if needed and checks that a run may live there.

    Raises:
      ConfigError: it is a file, cannot be written, or holds files of something else.
    """
    if not str(workdir):
        raise ConfigError("--workdir: a directory for the run is required, e.g. runs/first")
    root = Path(workdir)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ConfigError(f"{root}: is a file; --workdir needs a directory") from None
    except NotADirectoryError:
        raise ConfigError(f"{root}: its parent is a file; --workdir needs a directory") from None
    except OSError as error:
        raise ConfigError(f"{root}: cannot be made ({error.strerror})") from error
    if not os.access(root, os.W_OK | os.X_OK):
        raise ConfigError(f"{root}: is not writable; choose another --workdir")
    foreign = sorted(name for name in os.listdir(root) if not _OURS.match(name))
    if foreign and not (root / "config.json").exists():
        raise ConfigError(
            f"{root}: is not a run directory but holds {foreign[0]!r}"
            f"{' and more' if len(foreign) > 1 else ''}; choose an empty or new --workdir"
        )
    return RunDir(root, store=store)


def identify(run: RunDir, plain: dict[str, Any]) -> bool:
    """Writes config.json, or compares with the one there; True if a run was there before.

    Raises:
      MismatchError: the run there has another config; the message is the difference.
      ConfigError: files of a run are there, but no config; or its checkpoints are elsewhere.
    """
    record = {
        "format_version": FORMAT_VERSION,
        "hash": identity_hash(plain),
        "config": plain,
        "may_change": list(_changeable(plain)),
    }
    if not run.config.exists():
        for path in (run.metrics, run.checkpoints):
            if path.exists():
                where = path if run.store else path.name
                raise ConfigError(f"{run.config}: is missing although {where} is there")
        write_json(run.config, record)
        return False
    old = read_json(run.config)
    check_format(run.config, old)
    rows = [row for row in diff(old["config"], plain) if not _may_change(row[0], old["config"])]
    if rows and not has_results(run):
        # The first attempt ended before its first step, say by a wrong path to the text: there is
        # nothing to mix up, and a corrected command should simply work.
        for path in (run.data, run.model):
            path.unlink(missing_ok=True)
    elif rows:
        raise MismatchError(
            f"{run.root}: holds a run with another config; use another --workdir, or the same "
            f"config to resume it. Difference (there -> here):\n{format_diff(rows)}"
        )
    else:
        _require_checkpoints_in_sight(run, old["config"], plain)
    if old != record:
        write_json(run.config, record)
    return True


def _require_checkpoints_in_sight(run: RunDir, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Checkpoints may have been moved; a run that has lost sight of them would start over."""
    was, now = (str(plain.get("checkpoint", {}).get("dir", "")) for plain in (old, new))
    trained = run.metrics.exists() and run.metrics.stat().st_size > 0
    if was != now and trained and not holds_checkpoint(run.checkpoints):
        raise ConfigError(
            f"config.checkpoint.dir={now!r}: was {was!r} so far, and no finished checkpoint is in "
            f"{run.checkpoints}; go on with {was!r}"
        )


def _holds_any(place: epath.Path) -> bool:
    return place.exists() and any(place.iterdir())


def has_results(run: RunDir) -> bool:
    """Whether anything of a run is there that another config would falsify."""
    trained = run.metrics.exists() and run.metrics.stat().st_size > 0
    return trained or any(map(_holds_any, (run.checkpoints, run.damaged)))


def identity_hash(plain: dict[str, Any]) -> str:
    """Hash of what a run computes: the config without the keys that may change."""
    kept = plain
    for key in _changeable(plain):
        if _may_change(key, plain):
            kept = _without(kept, key.split("."))
    return config_hash(kept)


def _without(tree: dict[str, Any], path: list[str]) -> dict[str, Any]:
    """A copy of a nested dict that lacks the entry at `path`; the dict itself if it has none."""
    first, *rest = path
    if first not in tree or (rest and not isinstance(tree[first], dict)):
        return tree
    others = {key: value for key, value in tree.items() if key != first}
    return others | {first: _without(tree[first], rest)} if rest else others


def check_format(path: Path, record: Any) -> None:
    """Refuses an artefact of another format version.

    Raises:
      ConfigError: the version differs or is absent.
    """
    version = record.get("format_version") if isinstance(record, dict) else None
    if version != FORMAT_VERSION:
        raise ConfigError(
            f"{path}: has format_version {version!r}; this moejax reads {FORMAT_VERSION}"
        )


def next_attempt(run: RunDir) -> int:
    """1 for a run's first start, 2 for the one that resumes it, ..."""
    previous = read_json(run.status) if run.status.exists() else {}
    return int(previous.get("attempt", 0)) + 1


class Status:
    """status.json: what a run is doing, with a heartbeat."""

    def __init__(
        self, run_dir: RunDir, attempt: int, total_steps: int, every_seconds: float
    ) -> None:
        self._run_dir = run_dir
        self._every = every_seconds
        self._last = 0.0
        self._record: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "state": "running",
            "step": 0,
            "total_steps": total_steps,
            "attempt": attempt,
            "processes": jax.process_count(),
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "reason": "",
            "exit_code": None,
        }

    @property
    def attempt(self) -> int:
        """As `next_attempt` counts."""
        return int(self._record["attempt"])

    def set(self, **fields: Any) -> None:
        """Changes fields and writes the file."""
        self._record.update(fields)
        self._record["heartbeat"] = time.time()
        self._last = time.monotonic()
        self._run_dir.write_json(self._run_dir.status, self._record)

    def beat(self, step: int) -> None:
        """Writes the step, at most once per `every_seconds`."""
        self._record["step"] = step
        if time.monotonic() - self._last >= self._every:
            self.set()


def storage_reason(error: OSError, root: Path) -> str:
    """One line for a write that failed."""
    where = error.filename or root
    what = error.strerror or str(error)
    hint = "; free some space and run the same command again" if error.errno == errno.ENOSPC else ""
    return f"{where}: {what}{hint}"


def _changeable(plain: dict[str, Any]) -> tuple[str, ...]:
    return MAY_CHANGE + (TUNED_MAY_CHANGE if "finetune" in plain else ())


def _may_change(key: str, plain: dict[str, Any]) -> bool:
    if plain.get("exchange", {}).get("overflow") == "drop" and key.startswith(("mesh", "exchange")):
        return False
    return any(key == allowed or key.startswith(allowed + ".") for allowed in _changeable(plain))
