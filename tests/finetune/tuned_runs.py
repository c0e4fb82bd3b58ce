"""A tiny trained base (a dense layer, one of seven unequal experts) and fine-tunings of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from moejax.data import DataConfig
from moejax.experts import MoeConfig, WidthPlan
from moejax.finetune.base import open_base
from moejax.models.attention import AttentionConfig
from moejax.models.transformer import ModelConfig
from moejax.probe import open_run
from moejax.routing.routers import SigmoidBias
from moejax.sharding import mesh
from moejax.train import Experiment, TrainConfig, run, session
from moejax.train.checkpoint import CheckpointConfig
from moejax.train.evaluate import EvaluationConfig
from moejax.train.log import LogConfig
from moejax.train.optimizer import OptimizerConfig
from moejax.train.programs import compile_programs
from moejax.train.progress import Progress, StepReport
from moejax.train.schedule import ScheduleConfig
from moejax.train.tuning import FineTune

SENTENCE = "the cat sat on a mat and saw 12 dogs run past; then, at noon, it slept."
MOE = 1
"""The layer with experts; layer 0 is dense."""
CHOSEN = {str(MOE): (1, 4)}
"""Experts that `tuned_selected` trains."""


def write_words(place: Path) -> DataConfig:
    """Eight short documents; their cache beside them."""
    draw = np.random.default_rng(7)
    place.mkdir(parents=True)
    for index in range(8):
        words = draw.choice(SENTENCE.split(), size=17 + 3 * index)
        (place / f"{index}.txt").write_text(" ".join(words) + "\n")
    return DataConfig(
        corpus=f"files:{place}/*.txt", seq_len=16, cache_dir=str(place.parent / "cache"),
        validation_fraction=0.2,
    )  # fmt: skip


def base_experiment(data: DataConfig) -> Experiment:
    return Experiment(
        model=ModelConfig(
            vocab_size=data.vocab_size,
            d_model=16,
            num_layers=2,
            ffn_width=16,
            first_dense=1,
            attention=AttentionConfig(heads=2),
            moe=MoeConfig(
                experts=7, widths=WidthPlan("arithmetic", mean=8, unit=1), router=SigmoidBias(k=2)
            ),
        ),
        name="tiny",
        data=data,
        optimizer=OptimizerConfig(lr=0.01),
        schedule=ScheduleConfig(warmup=1),
        train=TrainConfig(batch_size=8, steps=4),
        evaluation=EvaluationConfig(every=4, batch_size=8, max_tokens=128, trace_tokens=0),
        checkpoint=CheckpointConfig(every=4, minutes=0.0, keep=2),
        log=LogConfig(tensorboard=False),
    )


def make_base(place: Path, **changes: Any) -> Path:
    experiment = dataclasses.replace(base_experiment(write_words(place / "text")), **changes)
    run(experiment, place / "base")
    return place / "base"


def tuned_experiment(base: Path, method: Any, **changes: Any) -> Experiment:
    """Six steps, an evaluation after every second one and before the first."""
    found = open_base(base)
    finetune = FineTune(
        base=str(base), base_step=found.step, base_hash=found.hash, method=method,
        task="words", keep_best=changes.pop("keep_best", True), patience=changes.pop("patience", 0),
    )  # fmt: skip
    lr, steps = changes.pop("lr", 1e-3), changes.pop("steps", 6)
    return dataclasses.replace(
        found.experiment,
        name="tuned",
        seed=5,
        optimizer=OptimizerConfig(lr=lr),
        schedule=ScheduleConfig(kind="constant", warmup=0),
        train=TrainConfig(batch_size=8, steps=steps),
        evaluation=EvaluationConfig(
            every=2, at_start=True, batch_size=8, max_tokens=128, trace_tokens=0
        ),
        checkpoint=CheckpointConfig(every=2, minutes=0.0, keep=changes.pop("keep", 1)),
        finetune=finetune,
        **changes,
    )


def leaves(tree: Any) -> dict[str, np.ndarray]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def restored(root: Path, step: int | None = None) -> dict[str, np.ndarray]:
    """Whole parameters of a run by path, with the state of its routers."""
    found = open_run(root).restore(step)
    return leaves({"params": found.params, "router_state": found.router_state})


def final(root: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((root / "final.json").read_text())
    return record


def lines(root: Path) -> list[dict[str, Any]]:
    """Metrics without what depends on the wall clock."""
    rows = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "perf/"))} for row in rows]


def on_a_laptop(patch: pytest.MonkeyPatch) -> None:
    """One device, and programs that runs of one shape share."""
    programs: dict[str, Any] = {}

    def compile_once(config: Experiment, model: Any = None) -> Any:
        method = None if config.finetune is None else config.finetune.method
        parts = (config.model, config.optimizer, config.schedule, config.train, method)
        key = repr(parts)
        if key not in programs:
            programs[key] = compile_programs(config, model)
        return programs[key]

    patch.setattr(mesh, "mesh_devices", lambda: jax.devices()[:1])
    patch.setattr(session, "compile_programs", compile_once)


class Stopped(BaseException):
    """Stands for a kill."""


class StopAt(Progress):
    """Dies while a step is being reported."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.stop_at = step

    def step(self, report: StepReport) -> None:
        super().step(report)
        if report.step == self.stop_at:
            raise Stopped
