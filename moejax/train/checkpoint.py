"""Checkpoints: asynchronous, atomic, verified on the way back in.

A thin layer over orbax's CheckpointManager. Orbax gives atomic commits (a directory that is not
finished is never listed), background writes, and restoring onto other devices. This module adds
what a long run also needs: a digest of every array, so that a flipped bit is found instead of
trained on; a structure check that names the first differing leaf; and the fall-back to an older
whole checkpoint, loudly. Of several processes each writes and reads its part, and all must call.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from moejax.config.knobs import knob
from moejax.train.clock import Clock
from moejax.train.digest import digests
from moejax.train.errors import StorageError, one_line
from moejax.train.layout import Layout
from moejax.train.patience import patient_loops
from moejax.train.state import TrainState
from moejax.train.store import asking, check_url, is_remote, is_silent, move_checkpoint
from moejax.train.votes import all_problems, on_first

FORMAT_VERSION = 2
"""2: digests are computed on the devices, so that they are the same on any mesh."""


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """How often, and how many are kept. None of it changes a number of the run."""

    every: int | str = knob("10%", unit="steps | tokens | percent", doc="a checkpoint every")
    minutes: float = knob(
        5.0, unit="minutes", doc="and at least every so many minutes; 0 = by steps only", low=0.0
    )
    keep: int = knob(2, doc="newest checkpoints kept; 2 allow to fall back", low=1)
    dir: str = knob("", doc="gs://BUCKET/PREFIX: keep them there; empty: in the run directory")

    def validate(self, path: str) -> None:
        """Raises ConfigError if `dir` is no store that checkpoints can be written to."""
        check_url(self.dir, f"{path}.dir")


class CheckpointReader:
    """The `checkpoints/` of a run that another process may be writing: nothing there is changed.

    Args:
      directory: in the run's directory or in a store.
      layout: of the train state.
    """

    def __init__(self, directory: epath.PathLike, layout: Layout[TrainState]) -> None:
        self._directory = _absolute(directory)
        self._layout = layout

    @property
    def place(self) -> epath.Path:
        """Where they are."""
        return self._directory

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first.

        Raises:
          StorageError: the store does not answer.
        """
        with asking(self._directory, "looking for checkpoints"):
            there = self._directory.exists()
            return sorted(ocp.utils.checkpoint_steps(self._directory)) if there else []

    def restore(self, step: int) -> tuple[TrainState, Clock]:
        """The checkpoint of one step, which stays where it is whatever its health.

        Raises:
          DamagedError: it cannot be read back as it was written.
          StorageError: it belongs to a differently built model, or the store does not answer.
        """
        header = _in_all("header", lambda: self._read_header(step))
        if header["format_version"] != FORMAT_VERSION:
            raise StorageError(
                f"checkpoint of step {step} has format version {header['format_version']}; this "
                f"moejax reads {FORMAT_VERSION}: continue with the moejax that wrote it, or use a "
                "new --workdir"
            )
        clock, leaves = Clock.from_json(header["clock"]), header["leaves"]
        # Placed explicitly: what is on disk remembers the devices of the process that saved it.
        place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        wanted = {
            name: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=place if leaf.sharding is None else leaf.sharding
            )
            for name, leaf in _as_dict(self._layout.stored).items()
        }
        _require_same_structure(step, leaves, describe_leaves(wanted))
        tree = _in_all("state", lambda: self._read_state(step, wanted))
        found = describe_leaves(tree)
        for name, leaf in leaves.items():
            if found[name] != leaf:
                raise DamagedError(f"array {name!r} does not have the digest it was saved with")
        if clock.step != step:
            raise DamagedError(f"its clock says step {clock.step}")
        structure = jax.tree.structure(self._layout.stored)
        return self._layout.hold(jax.tree.unflatten(structure, jax.tree.leaves(tree))), clock

    def described(self, step: int) -> dict[str, dict[str, Any]]:
        """Shape, dtype and digest of every array of a checkpoint, by `trainable.a.b` path; nothing
        but its header is read.

        Raises:
          DamagedError: the header cannot be read.
        """
        leaves = _in_all("header", lambda: self._read_header(step))["leaves"]
        return {name.partition(":")[2]: leaf for name, leaf in leaves.items()}

    def _read_header(self, step: int) -> dict[str, Any]:
        handler = ocp.JsonCheckpointHandler(multiprocessing_options=_by_itself())
        header = dict(handler.restore(self._directory / str(step) / "header"))
        for key in ("format_version", "clock", "leaves"):
            _ = header[key]
        if header["format_version"] == FORMAT_VERSION:
            Clock.from_json(header["clock"])
        return header

    def _read_state(self, step: int, wanted: dict[str, Any]) -> dict[str, Any]:
        handler = ocp.StandardCheckpointHandler(multiprocessing_options=_by_itself())
        args = ocp.args.StandardRestore(wanted)
        with patient_loops():
            return dict(handler.restore(self._directory / str(step) / "state", args=args))


class Checkpoints(CheckpointReader):
    """The `checkpoints/` of a run, in its directory or in a store; the run is this process' own.

    Attributes:
      keep: how many of the newest are kept.
      best: step that is kept although newer ones push it out; None: none is.

    Raises:
      StorageError: the store does not answer.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        damaged: epath.PathLike,
        keep: int,
        layout: Layout[TrainState],
    ) -> None:
        super().__init__(directory, layout)
        self._damaged = _absolute(damaged)
        self.keep = keep
        self.best: int | None = None
        with asking(self._directory, "looking for checkpoints"):
            self._manager = self._open()

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, clock: Clock) -> None:
        """Copies the state and returns; a thread writes and commits it.

        The caller must have made the metrics up to `clock.step` durable before.

        Raises:
          StorageError: this save could not start, or an earlier one failed in its thread.
        """
        tree = _as_dict(self._layout.store(state))
        header = {
            "format_version": FORMAT_VERSION,
            "clock": clock.to_json(),
            "leaves": describe_leaves(tree),
        }
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(tree), header=ocp.args.JsonSave(header)
        )
        self._guard(lambda: self._manager.save(clock.step, args=args), f"step {clock.step}")

    def check(self) -> None:
        """Raises StorageError if a save has failed in its thread."""
        self._guard(self._manager.check_for_errors, "an earlier step")

    def wait(self) -> None:
        """Returns when every save is committed; raises StorageError if one failed."""
        self._guard(self._manager.wait_until_finished, "the newest step")
        self.check()

    def restore_newest(self, say: Callable[[str], None]) -> tuple[TrainState, Clock] | None:
        """The newest whole checkpoint; None if there never was one.

        A damaged one is moved to `checkpoints.damaged/` and reported through `say`, and the next
        older one is tried.

        Raises:
          StorageError: every checkpoint is damaged, or one belongs to a differently built model,
            or the store does not answer.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self.restore(step)
            except DamagedError as damage:
                target = self._set_aside(step)
                older = [other for other in steps if other < step]
                verdict = f"falling back to step {older[-1]}" if older else "there is no older one"
                say(
                    f"WARNING: the checkpoint of step {step} is damaged ({damage}); moved to "
                    f"{target}; {verdict}"
                )
        if steps:
            raise StorageError(
                f"{self._directory}: none of the checkpoints {steps} is whole; they were moved to "
                f"{self._damaged}. The run will not start over by itself: put a whole checkpoint "
                "back, or use a new --workdir"
            )
        if self._damaged.exists():
            raise StorageError(
                f"{self._directory}: holds no checkpoint, but {self._damaged} holds damaged ones; "
                "put a whole one back, or use a new --workdir"
            )
        return None

    def close(self) -> None:
        """Waits for saves in flight and lets go, without hiding an error of theirs."""
        self._guard(self._manager.close, "the newest step")

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_NewestAndBest(self),
            create=True,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        return ocp.CheckpointManager(self._directory, options=options)

    def _set_aside(self, step: int) -> epath.Path:
        target = self._damaged / str(step)
        with asking(self._directory, f"setting the damaged checkpoint of step {step} aside"):
            on_first(lambda: self._move(self._directory / str(step), target))
            self._manager.reload()
        return target

    def _move(self, source: epath.Path, target: epath.Path) -> None:
        if target.exists():  # damaged twice: the older evidence goes
            target.rmtree()
        if is_remote(source):
            move_checkpoint(source, target)
        else:
            target.parent.mkdir(exist_ok=True)
            source.replace(target)

    def _guard(self, action: Callable[[], Any], what: str) -> None:
        try:
            action()
        except Exception as error:
            raise StorageError(
                f"{self._directory}: saving the checkpoint of {what} failed: {one_line(error)}"
            ) from error


class _NewestAndBest:
    """Orbax asks it after every save which checkpoints stay."""

    def __init__(self, owner: Checkpoints) -> None:
        self._owner = owner

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        """One answer for each checkpoint, oldest first."""
        del context
        steps = [info.step for info in checkpoints]
        newest = set(steps[-self._owner.keep :])
        return [step in newest or step == self._owner.best for step in steps]


_SILENT = "the store did not answer: "


class DamagedError(Exception):
    """A checkpoint that is listed but cannot be read back as it was written."""


def _absolute(place: epath.PathLike) -> epath.Path:
    path = epath.Path(place)
    return path if is_remote(path) else path.absolute()


def _by_itself() -> ocp.options.MultiprocessingOptions:
    """Each process reads its part without meeting the others inside of orbax: where one of them
    fails to read a damaged file, they would wait for it for ever."""
    own = jax.process_index()
    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    return ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"reader_{own}"
    )


def _in_all(what: str, read: Callable[[], Any]) -> Any:
    """What every process could read; `DamagedError` in all of them if one could not.

    A store that did not answer says nothing about the checkpoint: then it is StorageError, and the
    checkpoint stays where it is.
    """
    value, problem = None, ""
    try:
        value = read()
    except Exception as error:  # orbax raises whatever its readers raise
        problem = (_SILENT if is_silent(error) else "") + one_line(error)
    problems = all_problems(problem)
    silent = [said for said in problems if _SILENT in said]
    if silent:
        raise StorageError(f"{what} of a checkpoint cannot be read: {silent[0]}")
    if problems:
        raise DamagedError(f"{what}: {problems[0]}")
    return value


def describe_leaves(tree: Any) -> dict[str, dict[str, Any]]:
    """`path -> {shape, dtype, digest}`; the digest is absent for abstract leaves."""
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    described = {
        name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype)} for name, leaf in leaves.items()
    }
    concrete = {k: v for k, v in leaves.items() if not isinstance(v, jax.ShapeDtypeStruct)}
    for name, digest in zip(concrete, digests(list(concrete.values())), strict=True):
        described[name]["digest"] = digest
    return described


def _require_same_structure(step: int, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    problems = [f"{name} is not in the checkpoint" for name in wanted if name not in saved]
    problems += [f"{name} is not in the model" for name in saved if name not in wanted]
    for name in wanted.keys() & saved.keys():
        old, new = saved[name], wanted[name]
        if (old["shape"], old["dtype"]) != (new["shape"], new["dtype"]):
            problems.append(
                f"{name} is {old['dtype']}{old['shape']} there and {new['dtype']}{new['shape']} "
                "in the model"
            )
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise StorageError(
            f"checkpoint of step {step} does not match the model: "
            f"{'; '.join(sorted(problems)[:3])}{more}"
        )


def _as_dict(state: TrainState) -> dict[str, Any]:
    """Plain containers all the way down: an optax state is made of named tuples.

    Leaves are flattened in tree order under their path, so that the layout on disk does not
    depend on optax's classes.
    """
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {
        f"{index:05d}:{jax.tree_util.keystr(path, simple=True, separator='.')}": leaf
        for index, (path, leaf) in enumerate(leaves)
    }
