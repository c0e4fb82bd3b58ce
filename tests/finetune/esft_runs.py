"""A tiny run that nobody trained, with layers of several kinds, and what ESFT reads of it."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np

from moejax.data import DataConfig
from moejax.experts import MoeConfig, WidthPlan
from moejax.experts.zero_compute import ZeroCompute
from moejax.models import ModelConfig, Transformer
from moejax.models.attention import AttentionConfig
from moejax.probe import OpenedRun, open_run
from moejax.routing import LossesConfig
from moejax.routing.losses import LoadBalance
from moejax.routing.routers import MoEPlusPlus, SigmoidBias, TopK, TopP
from moejax.train import Experiment, TrainConfig
from moejax.train.evaluate import EvaluationConfig
from moejax.train.log import LogConfig
from moejax.train.newrun import fill, new_run

NONE = LossesConfig(LoadBalance(0.0))
WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "saw",
    "12",
    "dogs",
    "run",
    "past",
    "then",
    "at",
    "noon",
    "it",
    "slept",
]
TOP_K, TOP_P, ZERO, SCALED = 1, 2, 3, 4
"""Layers of the model; layer 0 is dense."""
MOES = {
    TOP_K: MoeConfig(
        6, WidthPlan(mean=8), TopK(k=2, renormalise=False), losses=NONE, backend="loop"
    ),
    TOP_P: MoeConfig(
        5,
        WidthPlan("explicit", explicit=(4, 4, 8, 8, 12)),
        TopP(p=0.5, renormalise=True, k_max=3),
        losses=NONE,
        backend="loop",
    ),
    ZERO: MoeConfig(
        4,
        WidthPlan(mean=8),
        MoEPlusPlus(k=2),
        zero_compute=ZeroCompute(constant=1, copy=1, zero=1),
        losses=NONE,
        backend="loop",
    ),
    SCALED: MoeConfig(
        6, WidthPlan(mean=8), SigmoidBias(k=2, scale=2.5), losses=NONE, backend="loop"
    ),
}
SEQ_LEN = 32


def write_run(root: Path) -> Path:
    """Short documents of two domains; random parameters."""
    rng = np.random.default_rng(3)
    lines = [
        {"text": " ".join(rng.choice(WORDS, 4 + n % 7)), "domain": domain, "language": "en"}
        for n in range(40)
        for domain in ("tale", "song")
    ]
    text = root / "text.jsonl"
    root.mkdir(parents=True, exist_ok=True)
    text.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = DataConfig(
        corpus=f"files:{text}",
        tokenizer="bytes",
        seq_len=SEQ_LEN,
        cache_dir=str(root / "cache"),
        validation_fraction=0.4,
    )
    model = ModelConfig(
        vocab_size=data.vocab_size,
        d_model=16,
        num_layers=1 + len(MOES),
        ffn_width=16,
        attention=AttentionConfig(heads=2),
        layers=("dense", *(f"k{layer}" for layer in MOES)),
        moe_variants={f"k{layer}": moe for layer, moe in MOES.items()},
    )
    experiment = Experiment(
        model=model,
        data=data,
        train=TrainConfig(batch_size=4, steps=4),
        evaluation=EvaluationConfig(every=2, batch_size=4, max_tokens=256, trace_tokens=64),
        log=LogConfig(tensorboard=False),
    )
    params, state = random_tree(Transformer(model))
    with new_run(root / "run") as run:
        fill(run, experiment, params, state, state="converted")
    return root / "run"


def random_tree(model: Transformer) -> tuple[dict, dict]:
    """Parameters with decided routers, and the state that `init` makes."""
    rng = np.random.default_rng(0)
    shapes, _ = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(
        lambda leaf: (0.5 * rng.standard_normal(leaf.shape)).astype(leaf.dtype), shapes
    )
    return params, jax.device_get(model.init(jax.random.key(0))[1])


def opened(root: Path) -> OpenedRun:
    return open_run(write_run(root))
