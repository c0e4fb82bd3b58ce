"""One of several processes of a run of a small real model: what `test_processes.py` starts, kills
and starts again.

Reads the fields of `Job` as JSON from the variable MOEJAX_TEST_JOB.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from moejax.data import DataConfig
from moejax.data import stream as stream_module
from moejax.experts import MoeConfig, WidthPlan
from moejax.models.attention import AttentionConfig
from moejax.models.transformer import ModelConfig
from moejax.routing.routers import SigmoidBias
from moejax.sharding import MeshConfig, distributed
from moejax.train import Experiment, TrainConfig, run
from moejax.train.checkpoint import CheckpointConfig
from moejax.train.cli import launch
from moejax.train.evaluate import EvaluationConfig
from moejax.train.log import LogConfig
from moejax.train.optimizer import OptimizerConfig
from moejax.train.schedule import ScheduleConfig

ROWS = 8


@dataclasses.dataclass(frozen=True)
class Job:
    """What a process is told; `mesh` as keywords of MeshConfig."""

    workdir: str
    text: str
    steps: int
    mesh: dict[str, int]
    coordinator: str = ""
    processes: int = 0
    process: int = -1
    start_seconds: int = 120
    heartbeat_seconds: int = 10
    minutes: float = 0.0
    checkpoints: str = ""


def experiment(job: Job) -> Experiment:
    """Two layers of seven experts, which no mesh divides; a router with state; Adam."""
    data = DataConfig(
        corpus=f"files:{job.text}/*.txt",
        seq_len=16,
        cache_dir=f"{job.text}/../cache",
        validation_fraction=0.2,
    )
    model = ModelConfig(
        vocab_size=data.vocab_size,
        d_model=32,
        num_layers=2,
        ffn_width=32,
        attention=AttentionConfig(heads=4, kv_heads=2),
        moe=MoeConfig(
            experts=7, widths=WidthPlan("arithmetic", mean=16, unit=1), router=SigmoidBias(k=2)
        ),
    )
    return Experiment(
        model=model,
        name="several",
        seed=3,
        data=data,
        optimizer=OptimizerConfig(lr=0.01),
        schedule=ScheduleConfig(warmup=2),
        train=TrainConfig(batch_size=ROWS, steps=job.steps),
        evaluation=EvaluationConfig(every=8, batch_size=ROWS, max_tokens=128, trace_tokens=64),
        checkpoint=CheckpointConfig(every=4, minutes=job.minutes, keep=4, dir=job.checkpoints),
        log=LogConfig(tensorboard=False, heartbeat_seconds=0.0),
        mesh=MeshConfig(**({"fsdp": 1} | job.mesh)),
    )


def counted() -> dict[str, Any]:
    """From now on: how many rows of training text this process builds at a time, and the first."""
    build_rows = stream_module.build_rows
    reads: dict[str, Any] = {"sizes": [], "first": None}
    init = stream_module.TrainStream.__init__
    train: list[Any] = []

    def counting(split: Any, window: np.ndarray, *args: Any) -> Any:
        if any(split is own for own in train):
            reads["first"] = reads["first"] or window.tolist()
            reads["sizes"] = sorted({*reads["sizes"], len(window)})
        return build_rows(split, window, *args)

    def remember(self: Any, dataset: Any, **kwargs: Any) -> None:
        train.append(dataset.train)
        init(self, dataset, **kwargs)

    stream_module.build_rows = counting
    stream_module.TrainStream.__init__ = remember  # type: ignore[method-assign]
    return reads


def main(argv: list[str]) -> None:
    del argv
    job = Job(**json.loads(os.environ["MOEJAX_TEST_JOB"]))
    distributed.start(
        job.coordinator,
        job.processes,
        job.process,
        start_seconds=job.start_seconds,
        heartbeat_seconds=job.heartbeat_seconds,
    )
    reads = counted()
    try:
        run(experiment(job), job.workdir)
    finally:
        index = jax.process_index()
        Path(f"{job.workdir}.reads.{index}.json").write_text(json.dumps(reads))


if __name__ == "__main__":
    launch(main)
