"""Tiny run directories that nobody trained: labelled text, bytes, random parameters."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from surgery_models import random_tree

from moejax.data import DataConfig
from moejax.models import ModelConfig
from moejax.models.attention import AttentionConfig
from moejax.train import Experiment, TrainConfig
from moejax.train.checkpoint import CheckpointConfig
from moejax.train.evaluate import EvaluationConfig
from moejax.train.log import LogConfig
from moejax.train.newrun import fill, new_run

WORDS = {
    "english": "the cat sat on a mat and saw twelve dogs run past",
    "spanish": "el gato vio doce perros en la casa de su amigo",
}


def write_text(directory: Path) -> DataConfig:
    """Short documents of two languages; its own cache beside it."""
    rng = np.random.default_rng(7)
    directory.mkdir(parents=True)
    lines = [
        {"text": " ".join(rng.choice(words.split(), 9)), "domain": "talk", "language": language}
        for _ in range(12)
        for language, words in WORDS.items()
    ]
    path = directory / "talk.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return DataConfig(
        corpus=f"files:{path}",
        tokenizer="bytes",
        seq_len=32,
        cache_dir=str(directory / "cache"),
        validation_fraction=0.5,
    )


def experiment(data: DataConfig, *layers: object, steps: int = 6) -> Experiment:
    """A few steps of a model with these layers (None: dense)."""
    kinds = list(dict.fromkeys(layer for layer in layers if layer is not None))
    return Experiment(
        model=ModelConfig(
            vocab_size=data.vocab_size,
            d_model=16,
            num_layers=len(layers),
            ffn_width=24,
            attention=AttentionConfig(heads=2),
            layers=tuple("dense" if one is None else f"k{kinds.index(one)}" for one in layers),
            moe_variants={f"k{i}": kind for i, kind in enumerate(kinds)},
            max_seq_len=64,
        ),
        data=data,
        train=TrainConfig(batch_size=4, steps=steps),
        evaluation=EvaluationConfig(every=3, batch_size=4, max_tokens=1024, trace_tokens=512),
        checkpoint=CheckpointConfig(every=steps, minutes=0.0),
        log=LogConfig(tensorboard=False),
    )


def write_run(root: Path, made: Experiment) -> Path:
    """The run directory before its first step; random parameters."""
    tree = random_tree(made.model)
    with new_run(root) as run:
        fill(run, made, tree["params"], tree["router_state"], state="converted")
    return root
