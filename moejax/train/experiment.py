"""`Experiment`: everything that determines a run, composed from the components' own knobs."""

from __future__ import annotations

import dataclasses

from moejax.config.durations import to_steps
from moejax.config.knobs import ConfigError, knob
from moejax.data.knobs import DataConfig
from moejax.experts.exchange.config import ExchangeConfig
from moejax.models.transformer import ModelConfig
from moejax.sharding.mesh import MeshConfig
from moejax.train.checkpoint import CheckpointConfig
from moejax.train.evaluate import EvaluationConfig
from moejax.train.log import LogConfig
from moejax.train.optimizer import OptimizerConfig
from moejax.train.schedule import ScheduleConfig
from moejax.train.tuning import FineTune


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Batch and length of the run."""

    batch_size: int = knob(16, unit="sequences", doc="sequences per optimiser step", low=1)
    steps: int | str = knob(400, unit="steps | tokens", doc="length of the run")
    accumulate: int = knob(
        1, unit="micro-batches", doc="micro-batches per optimiser step, their gradients add", low=1
    )

    def validate(self, path: str) -> None:
        """Raises ConfigError if the batch does not divide into micro-batches."""
        if self.batch_size % self.accumulate:
            down = self.batch_size // self.accumulate * self.accumulate
            near = down or self.accumulate
            raise ConfigError(
                f"{path}.batch_size={self.batch_size}: is not a multiple of accumulate="
                f"{self.accumulate}; nearest valid value {near}"
            )


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One training run. Two equal experiments give the same numbers on the same machine."""

    model: ModelConfig
    name: str = knob("run", doc="shown in reports")
    seed: int = knob(0, doc="initialisation, data order and routing noise", low=0, high=2**31 - 1)
    data: DataConfig = knob(DataConfig())
    optimizer: OptimizerConfig = knob(OptimizerConfig())
    schedule: ScheduleConfig = knob(ScheduleConfig())
    train: TrainConfig = knob(TrainConfig())
    evaluation: EvaluationConfig = knob(EvaluationConfig())
    checkpoint: CheckpointConfig = knob(CheckpointConfig())
    log: LogConfig = knob(LogConfig())
    mesh: MeshConfig = knob(MeshConfig())
    exchange: ExchangeConfig = knob(ExchangeConfig())
    finetune: FineTune | None = knob(
        None, doc="starts from another run and trains a part of it", silent_none=True
    )

    @property
    def tokens_per_step(self) -> int:
        """Token positions of one optimiser step."""
        return self.train.batch_size * self.data.seq_len

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the run."""
        return to_steps(
            self.train.steps,
            total_steps=None,
            tokens_per_step=self.tokens_per_step,
            path="config.train.steps",
        )

    def steps_of(self, duration: int | str, path: str) -> int:
        """A duration of this run in optimiser steps."""
        return to_steps(
            duration,
            total_steps=self.total_steps,
            tokens_per_step=self.tokens_per_step,
            path=path,
        )

    def validate(self, path: str) -> None:
        """Checks what spans several components, before anything is read or compiled.

        Raises:
          ConfigError: a run without steps, a schedule longer than the run, a cadence of zero, or
            a model that is too small for the tokenizer or the window.
        """
        if self.total_steps < 1:
            raise ConfigError(
                f"{path}.train.steps={self.train.steps!r}: is no step at all; nearest valid value 1"
            )
        self.schedule.lengths(self.total_steps, self.tokens_per_step, f"{path}.schedule")
        for key, every in (
            ("evaluation.every", self.evaluation.every),
            ("checkpoint.every", self.checkpoint.every),
        ):
            if self.steps_of(every, f"{path}.{key}") < 1:
                raise ConfigError(f"{path}.{key}={every!r}: must be at least 1 step")
        if self.model.vocab_size < self.data.vocab_size:
            raise ConfigError(
                f"{path}.model.vocab_size={self.model.vocab_size}: is smaller than the "
                f"{self.data.vocab_size} tokens of tokenizer {self.data.tokenizer!r}; nearest "
                f"valid value {self.data.vocab_size}"
            )
        if self.data.seq_len > self.model.max_seq_len:
            raise ConfigError(
                f"{path}.data.seq_len={self.data.seq_len}: is longer than model.max_seq_len="
                f"{self.model.max_seq_len}; nearest valid value {self.model.max_seq_len}"
            )
