"""`run`: one experiment in one directory, started or resumed, from lock to final.json."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import jax
from etils import epath

from moejax.config.compose import config_hash, to_plain
from moejax.config.files import read_json
from moejax.config.knobs import ConfigError
from moejax.data import Dataset
from moejax.train import environment, rundir
from moejax.train.errors import (
    EXIT_CRASH,
    EXIT_STORAGE,
    EXIT_USAGE,
    LostProcessError,
    RunError,
    StorageError,
)
from moejax.train.experiment import Experiment
from moejax.train.lock import RunLock
from moejax.train.log import RunLog
from moejax.train.mirror import Mirror
from moejax.train.profile import Profiler
from moejax.train.progress import Progress
from moejax.train.rundir import RunDir, Status
from moejax.train.session import Session
from moejax.train.signals import StopSignal
from moejax.train.store import asking, open_store
from moejax.train.votes import Votes, on_first, require_equal


@dataclasses.dataclass(frozen=True)
class RunResult:
    """A finished run: its directory, the content of final.json, and whether it was done already."""

    workdir: Path
    final: dict[str, Any]
    already_done: bool


def run(
    experiment: Experiment,
    workdir: str | os.PathLike[str],
    *,
    dataset: Dataset | None = None,
    model: Any = None,
    progress: Progress | None = None,
    profile: tuple[int, int] | None = None,
    argv: list[str] | None = None,
) -> RunResult:
    """Trains, or finishes what an earlier process began in the same directory.

    Args:
      experiment: checked configuration (`moejax.config.build` checks).
      workdir: the run directory; made if absent.
      dataset: prepared data to share between runs; default: prepared from `experiment.data`.
      model: an object with the interface of `Transformer`; default: `Transformer(...)`.
      progress: where to show what happens; default: nowhere.
      profile: first and last step of an xprof trace.
      argv: command line for env.json.

    Raises:
      ConfigError: nothing was started: wrong config, occupied or foreign directory, changed data.
      NonFiniteError, StorageError, Interrupted: the run ended early; status.json says why, and the
        same call resumes it.
    """
    first = jax.process_index() == 0
    progress = progress if progress and first else Progress()
    plain = to_plain(experiment)
    run_dir = RunDir(Path(workdir), jax.process_index(), open_store(experiment.checkpoint.dir))
    mirror = Mirror(run_dir)
    require_equal("the config", config_hash(plain))
    with contextlib.ExitStack() as held:
        stop = Votes(held.enter_context(StopSignal()))
        opened = on_first(lambda: _open(workdir, plain, held, mirror, run_dir.store))
        run_dir.root.mkdir(parents=True, exist_ok=True)  # of a process with a disk of its own
        if opened["done"] is not None:
            return RunResult(run_dir.root, opened["done"], already_done=True)
        experiment.model.attention.check_platform(jax.default_backend(), "config.model.attention")
        status = Status(
            run_dir,
            opened["attempt"],
            experiment.total_steps,
            experiment.log.heartbeat_seconds,
        )
        log = RunLog(run_dir.log, progress)
        if opened["fetched"]:
            log.say(opened["fetched"])
        mirror.follow(log.record, experiment.log.heartbeat_seconds)
        session = Session(
            experiment=experiment,
            plain=plain,
            run_dir=run_dir,
            status=status,
            log=log,
            mirror=mirror,
            progress=progress,
            stop=stop,
            profiler=Profiler(run_dir.profile, profile if first else None),
            seen_before=opened["before"],
        )
        try:
            try:
                final = session.train(dataset, model, argv or environment.python_argv())
                mirror.commit()
            except (jax.errors.JaxRuntimeError, ValueError) as error:
                _raise_if_lost(error)
                raise
        except BaseException as error:
            _record_end(error, status, log, progress)
            if isinstance(error, OSError):
                raise StorageError(rundir.storage_reason(error, run_dir.root)) from error
            raise
        finally:
            progress.end()
            log.close()
            unmirrored = mirror.close()
            if unmirrored and not isinstance(sys.exception(), StorageError):
                progress.note(f"WARNING: {unmirrored}")
    return RunResult(run_dir.root, final, already_done=False)


def _open(
    workdir: Any,
    plain: dict[str, Any],
    held: contextlib.ExitStack,
    mirror: Mirror,
    store: epath.Path | None,
) -> dict[str, Any]:
    """Takes the directory into possession: what process 0 does for all."""
    run_dir = rundir.claim(workdir, store)
    held.enter_context(RunLock(run_dir.root))
    fetched = mirror.pull()
    with asking(store, "looking for the run") if store else contextlib.nullcontext():
        before = rundir.identify(run_dir, plain)
    done = _finished(run_dir)
    if done is not None and not mirror.says_done():  # it died between the two
        mirror.claim()
    return {
        "before": before,
        "done": done,
        "attempt": rundir.next_attempt(run_dir),
        "fetched": fetched,
    }


def is_done(run_dir: RunDir) -> bool:
    """Whether the run in a directory is complete; False if there is none."""
    there = run_dir.final.exists() and run_dir.status.exists()
    return there and read_json(run_dir.status).get("state") == "done"


def _finished(run_dir: RunDir) -> dict[str, Any] | None:
    """The content of final.json if the run is over."""
    if not is_done(run_dir):
        return None
    final = read_json(run_dir.final)
    rundir.check_format(run_dir.final, final)
    return dict(final)


def _raise_if_lost(error: Exception) -> None:
    """Raises LostProcessError for what JAX says when a collective has lost a process; gloo's
    errors arrive as ValueError."""
    said = str(error).splitlines()[0] if str(error) else ""
    about = isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in said
    if jax.process_count() > 1 and about and "RESOURCE_EXHAUSTED" not in said:
        raise LostProcessError(
            f"a process of the run, or the connection to it, was lost ({said[:200]}); the same "
            "command in all processes resumes at the newest checkpoint"
        ) from error


def _record_end(error: BaseException, status: Status, log: RunLog, progress: Progress) -> None:
    """Writes the reason into status.json and log.txt, as far as the disk still takes it."""
    known = isinstance(error, RunError | ConfigError | OSError)
    reason = str(error) if known else f"{type(error).__name__}: {error}"
    state = error.state if isinstance(error, RunError) else "failed"
    code = EXIT_CRASH
    if isinstance(error, RunError):
        code = error.exit_code
    elif isinstance(error, OSError | ConfigError):
        code = EXIT_STORAGE if isinstance(error, OSError) else EXIT_USAGE
    try:
        log.record(f"{state}: {reason}")
        status.set(state=state, reason=reason.splitlines()[0] if reason else "", exit_code=code)
    except OSError as second:  # a full disk: the first error matters, and is raised by the caller
        progress.note(f"cannot record the end of the run: {second}")
