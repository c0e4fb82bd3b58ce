"""Training: state, step, loop, checkpoints, run directory, signals, metric sinks."""

from moejax.train.entry import RunResult, run
from moejax.train.errors import Interrupted, NonFiniteError, OccupiedError, RunError, StorageError
from moejax.train.experiment import Experiment, TrainConfig

__all__ = [
    "Experiment",
    "Interrupted",
    "NonFiniteError",
    "OccupiedError",
    "RunError",
    "RunResult",
    "StorageError",
    "TrainConfig",
    "run",
]
