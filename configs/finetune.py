"""Fine-tuning: `--config=configs/finetune.py:method=esft_gate,task=law[,general=0.5][,quick=true]`.

method   esft_gate, esft_token (selected experts alone), esft_random (as many, drawn at random),
         lora, multilora, partial (top layers), full
task     law, code, mathematics, translation, dialogue, reasoning, task:files:PATTERN
         (docs/tasks.md), or none: the base's own text
general  share of the rows that is the base's text (0.5 is 1 : 1), or none
p        threshold of the selection; 0: as published, 0.1 for gates and 0.2 for tokens
rank, n  of lora and multilora: rank, parallel modules
match    selection or run that lora, multilora and partial train as many parameters as
rate     learning rate; 0: that of the method below
steps    optimiser steps
quick    seconds instead of minutes

Settings are ESFT's (2407.01906, section 4 and its code): AdamW, constant rate, no warm-up, weight
decay 0.1, clipping at 1, the best validation loss kept. Its rates (full 3e-5, LoRA 1e-4, ESFT
1e-5) are for 16B parameters; these are for models of a million.
"""

from __future__ import annotations

import dataclasses

from ml_collections import config_dict

from moejax.config import ConfigError, parse_argument, to_config_dict
from moejax.finetune.recipe import KINDS, Recipe
from moejax.train import TrainConfig
from moejax.train.evaluate import EvaluationConfig
from moejax.train.optimizer import OptimizerConfig

RATES = {
    "esft_gate": 1e-2,
    "esft_token": 1e-2,
    "esft_random": 1e-2,
    "lora": 6e-3,
    "multilora": 2e-2,
    "partial": 1e-2,
    "full": 3e-3,
}
"""Learning rates: of three, those with the lowest validation loss on one base and one task
(`--grid=finetune:rates`, docs/finetuning.md): low-rank updates of attention alone, and of ESFT its
gate scores; the other two take over the latter's. Models of another size want others."""


def get_config(arg: str | None = None) -> config_dict.ConfigDict:
    """The recipe as a ConfigDict; every key can be overridden with `--config.a.b=value`."""
    choice = parse_argument(
        arg, method=KINDS, task="law", general="0.5", p=0.0, rank=8, n=3, match="", rate=0.0,
        steps=200, quick=False,
    )  # fmt: skip
    rate = choice.rate or RATES[choice.method]
    recipe = Recipe(
        method=choice.method,
        task=choice.task,
        share=_share(choice.general),
        p=choice.p,
        rank=choice.rank,
        modules=choice.n,
        match=choice.match,
        optimizer=OptimizerConfig(lr=rate),
        train=TrainConfig(batch_size=32, steps=choice.steps),
    )
    return to_config_dict(_quick(recipe) if choice.quick else recipe)


def _share(text: str) -> float:
    try:
        return 0.0 if text == "none" else float(text)
    except ValueError:
        raise ConfigError(
            f"config argument general={text!r}: a share of the rows or 'none'; nearest valid 0.5"
        ) from None


def _quick(recipe: Recipe) -> Recipe:
    if recipe.selects:
        recipe = dataclasses.replace(recipe, samples=4, length=128)
    return dataclasses.replace(
        recipe,
        train=TrainConfig(batch_size=8, steps=6),
        evaluation=EvaluationConfig(
            every=2, at_start=True, batch_size=8, max_tokens=2048, trace_tokens=0
        ),
    )
