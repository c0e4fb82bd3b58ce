"""Checkpoints: asynchronous, atomic, verified on the way back in.

A thin layer over orbax's CheckpointManager. Orbax gives atomic commits (a directory that is not
finished is never listed) and background writes. This module adds what a long run also needs: a
digest of every array, so that a flipped bit is found instead of trained on; a structure check that
names the first differing leaf; and the fall-back to an older whole checkpoint, loudly.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from moejax.config.knobs import knob
from moejax.train.clock import Clock
from moejax.train.errors import StorageError
from moejax.train.state import TrainState

FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """How often, and how many are kept. None of it changes a number of the run."""

    every: int | str = knob("10%", unit="steps | tokens | percent", doc="a checkpoint every")
    minutes: float = knob(
        5.0, unit="minutes", doc="and at least every so many minutes; 0 = by steps only", low=0.0
    )
    keep: int = knob(2, doc="newest checkpoints kept; 2 allow to fall back", low=1)


class Checkpoints:
    """The `checkpoints/` directory of a run that is locked by this process."""

    def __init__(self, directory: Path, damaged: Path, keep: int) -> None:
        self._directory = directory.absolute()
        self._damaged = damaged
        self._keep = keep
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
        tree = _as_dict(state)
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

    def restore_newest(
        self, abstract: TrainState, say: Callable[[str], None]
    ) -> tuple[TrainState, Clock] | None:
        """The newest whole checkpoint; None if there never was one.

        A damaged one is moved to `checkpoints.damaged/` and reported through `say`, and the next
        older one is tried.

        Raises:
          StorageError: every checkpoint is damaged, or one belongs to a differently built model.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self._restore(step, abstract)
            except _Damaged as damage:
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
            max_to_keep=self._keep,
            create=True,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        return ocp.CheckpointManager(self._directory, options=options)

    def _restore(self, step: int, abstract: TrainState) -> tuple[TrainState, Clock]:
        try:
            args = ocp.args.Composite(header=ocp.args.JsonRestore())
            header = self._manager.restore(step, args=args).header
            clock = Clock.from_json(header["clock"])
            leaves = header["leaves"]
        except Exception as error:  # orbax raises whatever its readers raise
            raise _Damaged(f"header: {_one_line(error)}") from error
        if header["format_version"] != FORMAT_VERSION:
            raise StorageError(
                f"checkpoint of step {step} has format version {header['format_version']}; this "
                f"moejax reads {FORMAT_VERSION}"
            )
        # Placed explicitly: what is on disk remembers the devices of the process that saved it.
        place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        wanted = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
            for name, leaf in _as_dict(abstract).items()
        }
        _require_same_structure(step, leaves, describe_leaves(wanted))
        try:
            args = ocp.args.Composite(state=ocp.args.StandardRestore(wanted))
            tree = self._manager.restore(step, args=args).state
        except Exception as error:
            raise _Damaged(f"state: {_one_line(error)}") from error
        found = describe_leaves(tree)
        for name, leaf in leaves.items():
            if found[name] != leaf:
                raise _Damaged(f"array {name!r} does not have the digest it was saved with")
        if clock.step != step:
            raise _Damaged(f"its clock says step {clock.step}")
        restored = jax.tree.unflatten(jax.tree.structure(abstract), jax.tree.leaves(tree))
        return restored, clock

    def _set_aside(self, step: int) -> Path:
        self._damaged.mkdir(exist_ok=True)
        target = self._damaged / str(step)
        if target.exists():  # damaged twice: the older evidence goes
            shutil.rmtree(target)
        os.replace(self._directory / str(step), target)
        self._manager.reload()
        return target

    def _guard(self, action: Callable[[], Any], what: str) -> None:
        try:
            action()
        except Exception as error:
            raise StorageError(
                f"{self._directory}: saving the checkpoint of {what} failed: {_one_line(error)}"
            ) from error


class _Damaged(Exception):
    """A checkpoint that is listed but cannot be read back as it was written."""


def describe_leaves(tree: Any) -> dict[str, dict[str, Any]]:
    """`path -> {shape, dtype, digest}`; the digest is absent for abstract leaves."""
    described = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        entry: dict[str, Any] = {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            content = np.ascontiguousarray(np.asarray(leaf)).reshape(-1).view(np.uint8)
            entry["digest"] = hashlib.blake2b(content.data, digest_size=16).hexdigest()
        described[name] = entry
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


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"[
        :300
    ]
