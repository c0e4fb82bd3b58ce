"""The base of a fine-tuning, a run directory: which checkpoint, and the hash it is known by."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from moejax.config import ConfigError
from moejax.models import Transformer
from moejax.probe.opened import OpenedRun
from moejax.train import Experiment
from moejax.train.base import experiment_at, hash_on_mesh, leaves_hash, params_hash
from moejax.train.checkpoint import DamagedError
from moejax.train.errors import StorageError

__all__ = ["Base", "open_base", "params_hash"]


@dataclasses.dataclass(frozen=True)
class Base:
    """A checkpoint that a fine-tuning starts from.

    Attributes:
      run: it, opened on one device.
      step: the checkpoint.
      hash: of its parameters (`params_hash`).
    """

    run: OpenedRun
    step: int
    hash: str

    @property
    def experiment(self) -> Experiment:
        """The base's own config."""
        return self.run.experiment


def open_base(root: Path, step: int | None = None) -> Base:
    """Opens a base; all processes call it, and see what the first one sees.

    Args:
      root: the run directory.
      step: its checkpoint; None: the result of a fine-tuned run, else the newest.

    Raises:
      ConfigError: no run is there, or it has no such checkpoint.
      StorageError: the checkpoint is damaged.
    """
    experiment = experiment_at(root)
    run = OpenedRun(root, experiment, Transformer(experiment.model), None)
    run.require(step)
    if step is None:
        result = run.result()
        step = result if result in run.steps() else run.steps()[-1]
    assert step is not None
    if experiment.finetune is not None:  # its parameters are not what its checkpoint holds
        return Base(run, step, hash_on_mesh(run.restore(step).params, run.model, None))
    try:
        leaves = run.described(step)
    except DamagedError as damage:
        raise StorageError(f"{root}: checkpoint of step {step}: {damage}") from damage
    prefix = "trainable."
    params = {
        name.removeprefix(prefix).replace(".", "/"): leaf
        for name, leaf in leaves.items()
        if name.startswith(prefix)
    }
    if not params:
        raise ConfigError(f"{root}: its checkpoint of step {step} holds no parameters")
    return Base(run, step, leaves_hash(params))
