"""The language models of the LM suites: L4 D256 V8192, dense and MoE, and their train steps."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from moejax.config import check
from moejax.config.widths import WidthPlan
from moejax.data import DataConfig
from moejax.experts import MoeConfig
from moejax.models import ModelConfig
from moejax.models.attention import AttentionConfig
from moejax.models.transformer import Transformer
from moejax.routing.routers import TopK
from moejax.train import Experiment
from moejax.train.experiment import TrainConfig
from moejax.train.programs import Lowerings, make_lowerings
from moejax.train.schedule import ScheduleConfig

WIDTH = 1024
EXPERTS, ACTIVE = 8, 2


def moe(backend: str) -> MoeConfig:
    """Top-2 of 8 experts of half the dense width: equal active FLOPs but for the router."""
    return MoeConfig(EXPERTS, WidthPlan(mean=WIDTH // ACTIVE), TopK(k=ACTIVE), backend=backend)


def experiment(backend: str | None, **model: Any) -> Experiment:
    """The dense model (None) or the MoE one, at a constant learning rate; 4096 tokens a step."""
    made = Experiment(
        name="bench",
        model=ModelConfig(
            vocab_size=8192,
            d_model=256,
            num_layers=4,
            ffn_width=WIDTH,
            attention=AttentionConfig(heads=4),
            moe=None if backend is None else moe(backend),
            **model,
        ),
        data=DataConfig(seq_len=256),
        train=TrainConfig(batch_size=16, steps=1000),
        schedule=ScheduleConfig(kind="constant", warmup=0),
    )
    check(made, "bench")
    return made


def shape_text(experiment: Experiment) -> str:
    """Sizes in one line."""
    model = experiment.model
    ffn = f"F={model.ffn_width}"
    if model.moe is not None:
        ffn = f"E={EXPERTS} k={ACTIVE} F={WIDTH // ACTIVE}"
    return (
        f"L={model.num_layers} D={model.d_model} H=4 V={model.vocab_size} {ffn} "
        f"B={experiment.train.batch_size} S={experiment.data.seq_len}, AdamW"
    )


def batch(experiment: Experiment) -> dict[str, np.ndarray]:
    """Random tokens, one document a row; what a step costs does not depend on them."""
    shape = (experiment.train.batch_size, experiment.data.seq_len)
    tokens = np.random.default_rng(0).integers(
        experiment.model.vocab_size, size=(shape[0], shape[1] + 1), dtype=np.int32
    )
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": np.ones(shape, np.int32),
        "positions": np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape).copy(),
        "loss_mask": np.ones(shape, np.float32),
    }


def lowerings(experiment: Experiment) -> Lowerings:
    """The run's programs, for one device however many there are."""
    return make_lowerings(experiment, Transformer(experiment.model))


class Trainer:
    """The compiled train step of a run with its state: `step()` is one optimiser step."""

    def __init__(self, experiment: Experiment) -> None:
        plan = lowerings(experiment)
        self.experiment, self.model = experiment, plan.model
        fast = {"xla_backend_optimization_level": "0"}
        initialise = plan.lower["initialise"]().compile(compiler_options=fast)
        self.program = plan.lower["train_step"]().compile()
        self.state = initialise(np.int32(0))
        self.batch = jax.device_put(batch(experiment))

    @property
    def params(self) -> Any:
        return self.state.params

    @property
    def temp_mib(self) -> float:
        """Temporary memory of the step, as the compiler planned it."""
        return self.program.memory_analysis().temp_size_in_bytes / 2**20

    def step(self) -> float:
        """One step; returns its loss, auxiliary losses included."""
        self.state, metrics = self.program(self.state, self.batch)
        jax.block_until_ready(self.state)
        return float(metrics["total_loss"])


def with_model(experiment: Experiment, **changes: Any) -> Experiment:
    """The same with other knobs of the model."""
    return dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, **changes))
