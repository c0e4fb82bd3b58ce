"""Training: state, step, loop, checkpoints, run directory, signals, metric sinks."""

from moejax.train.errors import Interrupted, NonFiniteError, OccupiedError, RunError, StorageError
from moejax.train.experiment import Experiment, TrainConfig
from moejax.train.session import RunResult, run

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
