"""Tiny runs to probe: text, models, and and models that nobody trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np

from moejax.data import DataConfig
from moejax.experts import MoeConfig, WidthPlan
from moejax.models import ModelConfig, Transformer
from moejax.models.attention import AttentionConfig
from moejax.probe.opened import OpenedRun, Restored
from moejax.routing import LossesConfig
from moejax.routing.capacity import CapacityConfig
from moejax.routing.losses import LoadBalance
from moejax.routing.routers import ExpertChoice, Hash, SigmoidBias, TopP
from moejax.train import Experiment, TrainConfig
from moejax.train.checkpoint import CheckpointConfig
from moejax.train.evaluate import EvaluationConfig
from moejax.train.log import LogConfig
from moejax.train.optimizer import OptimizerConfig
from moejax.train.schedule import ScheduleConfig

SENTENCE = "the cat sat on a mat and saw 12 dogs run past; then, at noon, it slept."
STEPS = 4
NONE = LossesConfig(LoadBalance(0.0))
UNEQUAL = MoeConfig(
    6,
    WidthPlan("explicit", explicit=(4, 4, 8, 8, 12, 12)),
    TopP(p=0.5, inclusive=True, renormalise=True, k_max=4),
    shared_width=4,
    losses=NONE,
    backend="loop",
)
VARIANTS = {
    "unequal": UNEQUAL,
    "hash": MoeConfig(4, WidthPlan(mean=8), Hash(k=1), losses=NONE, backend="loop"),
    "choice": MoeConfig(4, WidthPlan(mean=8), ExpertChoice(1.5), losses=NONE, backend="loop"),
    "tight": MoeConfig(
        4,
        WidthPlan(mean=8),
        SigmoidBias(k=2),
        losses=NONE,
        capacity=CapacityConfig(factor=0.5),
        backend="loop",
    ),
}
LAYERS = ("dense", *VARIANTS)
TRAINED = ("dense", "unequal")


def write_text(directory: Path) -> DataConfig:
    """Two domains of short documents, all different; its own cache beside it."""
    rng = np.random.default_rng(7)
    for domain in ("tale", "song"):
        folder = directory / "text" / domain
        folder.mkdir(parents=True)
        for index in range(5):
            words = rng.choice(SENTENCE.split(), size=20 + 9 * index)
            (folder / f"{index}.txt").write_text(" ".join(words) + ".\n")
    return DataConfig(
        corpus=f"files:{directory}/text/*/*.txt",
        tokenizer="bpe",
        bpe_vocab_size=280,
        seq_len=16,
        cache_dir=str(directory / "cache"),
        validation_fraction=0.3,
    )


def experiment(
    data: DataConfig,
    layers: tuple[str, ...] = TRAINED,
    variants: dict[str, MoeConfig] = VARIANTS,
) -> Experiment:
    """Four steps, evaluated and saved after the second and the last."""
    model = ModelConfig(
        vocab_size=data.vocab_size,
        d_model=16,
        num_layers=len(layers),
        ffn_width=16,
        attention=AttentionConfig(heads=2),
        layers=layers,
        moe_variants={name: variants[name] for name in layers if name in variants},
        allow_noncausal=True,
    )
    return Experiment(
        model=model,
        name="probed",
        seed=3,
        data=data,
        optimizer=OptimizerConfig(lr=0.05),
        schedule=ScheduleConfig(warmup=1),
        train=TrainConfig(batch_size=4, steps=STEPS),
        evaluation=EvaluationConfig(every=2, batch_size=4, max_tokens=4096, trace_tokens=4096),
        checkpoint=CheckpointConfig(every=2, minutes=0.0, keep=3),
        log=LogConfig(tensorboard=False),
    )


def untrained(
    run: OpenedRun, layers: tuple[str, ...], **variants: MoeConfig
) -> tuple[OpenedRun, Restored]:
    """The run with another model, whose random parameters pass for those of a checkpoint."""
    made = experiment(run.experiment.data, layers, VARIANTS | variants)
    model = Transformer(made.model)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params, router_state = jax.tree.map(
        lambda leaf: 0.5 * rng.standard_normal(leaf.shape).astype(leaf.dtype), shapes
    )
    other = dataclasses.replace(run, experiment=made, model=model)
    return other, Restored(7, params, router_state)
