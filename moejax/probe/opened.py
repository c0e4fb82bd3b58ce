"""A run directory as something to compute with: its model, its checkpoints, its data."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from moejax.config import ConfigError, build, nearest, read_json
from moejax.data import Dataset, prepare
from moejax.experts.exchange.sharded import Parallel
from moejax.models import Transformer
from moejax.sharding import MeshConfig, make_mesh, mesh_devices
from moejax.train import Experiment, StorageError
from moejax.train.base import checkpoint_hash
from moejax.train.checkpoint import CheckpointReader, DamagedError
from moejax.train.rundir import RunDir, check_format
from moejax.train.shapes import assembled, state_layout
from moejax.train.state import TrainState
from moejax.train.store import open_store
from moejax.train.tuning import Tuning, plan_tuning

Tree = dict[str, Any]
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint holds of a model: `step`, parameters, and the state of its routers."""

    step: int
    params: Tree
    router_state: Tree


@dataclasses.dataclass(frozen=True)
class OpenedRun:
    """A run that is only read; it may be training meanwhile.

    Attributes:
      root: the run directory.
      experiment: its config.
      model: on `mesh`.
      mesh: None: one device.
    """

    root: Path
    experiment: Experiment
    model: Transformer
    mesh: Mesh | None

    @functools.cached_property
    def dataset(self) -> Dataset:
        """The text and the tokenizer that the run was trained with.

        Raises:
          ConfigError: they are others today, or not to be had.
        """
        dataset = prepare(self.experiment.data)
        path = self.root / "data.json"
        recorded = read_json(path)
        check_format(path, recorded)
        for key, what in (("tokenizer_hash", "tokenizer"), ("manifest_hash", "text")):
            here = getattr(dataset, key)
            if recorded.get(key) != here:
                raise ConfigError(
                    f"{path}: the run was trained with another {what}: {key} is "
                    f"{str(recorded.get(key))[:12]!r} there, and {here[:12]!r} of what "
                    f"config.data.corpus={self.experiment.data.corpus!r} gives here"
                )
        return dataset

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there, oldest first.

        Raises:
          ConfigError: there is none.
          StorageError: the store does not answer.
        """
        steps = self._checkpoints.steps()
        if not steps:
            place = self.experiment.checkpoint.dir or self.root
            raise ConfigError(f"{place}: holds no checkpoint; has the run saved one?")
        return steps

    def restore(self, step: int | None = None, say: Say = print) -> Restored:
        """Parameters and router state of a checkpoint.

        Args:
          step: which; None: the newest whole one, of a fine-tuned run its best one, and `say` is
            told of damaged ones.

        Raises:
          ConfigError: the run has no checkpoint of this step, or none at all.
          StorageError: it is damaged, or the store does not answer.
        """
        self.require(step)
        steps = self._preferred() if step is None else [step]
        for one in steps:
            try:
                state, _ = self._checkpoints.restore(one)
            except DamagedError as damage:
                say(f"WARNING: the checkpoint of step {one} is damaged ({damage})")
                continue
            params = assembled(self.tuning, state, self.model, self.mesh)
            return Restored(one, params, state.router_state)
        raise StorageError(
            f"{self.root}: no whole checkpoint among {sorted(steps)}; nothing was changed"
        )

    def restore_state(self, step: int) -> TrainState:
        """The whole train state of a checkpoint, in the order of the mesh.

        Raises:
          ConfigError, StorageError: as `restore`.
        """
        self.require(step)
        try:
            state, _ = self._checkpoints.restore(step)
        except DamagedError as damage:
            raise StorageError(
                f"{self.root}: the checkpoint of step {step} is damaged ({damage})"
            ) from damage
        return state

    def params_hash(self, step: int) -> str:
        """Of the parameters of a checkpoint, the same on every mesh (`train.base.checkpoint_hash`).

        Raises:
          StorageError: the checkpoint is damaged.
        """
        return checkpoint_hash(self._checkpoints, step, self.experiment.finetune)

    def result(self) -> int | None:
        """The step that a finished fine-tuning keeps as its result; None: the newest."""
        finetune = self.experiment.finetune
        path = self.root / "final.json"
        if finetune is None or not finetune.keep_best or not path.exists():
            return None
        best = read_json(path).get("finetune", {}).get("best_step")
        return None if best is None else int(best)

    @functools.cached_property
    def tuning(self) -> Tuning | None:
        """What a fine-tuned run trains; None: everything.

        Raises:
          ConfigError: the method does not fit the model.
        """
        return plan_tuning(self.experiment.finetune, self.model)

    def _preferred(self) -> list[int]:
        """Steps in the order in which they are tried: the result, then from the newest on."""
        steps, result = self.steps(), self.result()
        first = [result] if result in steps else []
        return [*first, *(step for step in reversed(steps) if step not in first)]

    def require(self, step: int | None) -> None:
        """Raises ConfigError, naming the nearest, if there is no checkpoint of this step; with
        None if there is none at all."""
        steps = self.steps()
        if step is not None and step not in steps:
            near = min(steps, key=lambda other: abs(other - step))
            there = ", ".join(map(str, steps))
            raise ConfigError(
                f"--step={step}: {self.root} has no checkpoint of it; nearest {near} (there are: "
                f"{there}); a run keeps its last config.checkpoint.keep="
                f"{self.experiment.checkpoint.keep}"
            )

    @functools.cached_property
    def _checkpoints(self) -> CheckpointReader:
        config = self.experiment.checkpoint
        place = RunDir(self.root, store=open_store(config.dir)).checkpoints
        layout = state_layout(self.experiment, self.model, self.tuning, self.mesh)
        return CheckpointReader(place, layout)


def open_run(root: str | os.PathLike[str], *, devices: int = 1) -> OpenedRun:
    """Opens a run directory. Components of your own must be imported before.

    Args:
      root: the run directory.
      devices: how many devices its parameters are spread over, whatever it was trained on.

    Raises:
      ConfigError: no run is there, its config is none of this version's, or there are fewer
        devices.
    """
    root = Path(root)
    if not root.is_dir():
        parent = root.parent
        names = os.listdir(parent) if parent.is_dir() else []
        raise ConfigError(f"{root}: no such run directory{nearest(root.name, names)}")
    path = root / "config.json"
    if not path.exists():
        raise ConfigError(f"{root}: is not a run that can be restored: has no config.json")
    record = read_json(path)
    check_format(path, record)
    if not isinstance(record.get("config"), dict):
        raise ConfigError(f"{path}: holds no config")
    try:
        experiment = build(Experiment, record["config"])
    except ConfigError as error:
        raise ConfigError(
            f"{path}: {error}; the run may be of another version, or of components that --import "
            "names"
        ) from error
    here = len(mesh_devices())
    if not 1 <= devices <= here:
        raise ConfigError(f"--devices={devices}: there are {here}; nearest valid value {here}")
    mesh = None
    if devices > 1:
        mesh = make_mesh(MeshConfig(fsdp=devices))
    parallel = None if mesh is None else Parallel(mesh, experiment.exchange)
    experiment.model.attention.check_platform(jax.default_backend(), "config.model.attention")
    return OpenedRun(root, experiment, Transformer(experiment.model, parallel), mesh)


def run_steps(run: OpenedRun, wanted: str) -> Iterable[int | None]:
    """The steps that `--step` means: "" the newest whole one (None), "all", or a number.

    Raises:
      ConfigError: something else; or the run has no checkpoint.
    """
    if wanted == "all":
        return run.steps()
    if wanted and not (wanted.isdecimal() and len(wanted) < 19):
        raise ConfigError(f"--step={wanted!r}: a number of steps or 'all'; nearest valid: 'all'")
    return [int(wanted) if wanted else None]
