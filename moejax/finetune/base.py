"""The base of a fine-tuning, a run directory: which checkpoint, and the hash it is known by."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from moejax.models import Transformer
from moejax.probe.opened import OpenedRun
from moejax.train import Experiment
from moejax.train.base import experiment_at


@dataclasses.dataclass(frozen=True)
class Base:
    """A checkpoint that a fine-tuning starts from.

    Attributes:
      run: it, opened on one device.
      step: the checkpoint.
      hash: of its parameters (`OpenedRun.params_hash`).
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
    return Base(run, step, run.params_hash(step))
