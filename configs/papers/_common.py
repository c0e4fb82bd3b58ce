"""What the configs of this directory share: tags, how an experiment is put together, and `quick`.

Where a number comes from stands beside it: the section of methods.md, and

  [PAPER] the paper's text          [REPO] the official code, configs or scripts
  [HF] config.json of the released checkpoint on Hugging Face
  [2ND] a secondary source          [DERIVED] computed from the others
  UNVERIFIED: found in no source that was read; a sensible choice, not a fact.

Everything here trains on the embedded corpus with a BPE tokenizer of the published vocabulary size:
the papers' corpora cannot be had offline. `--config.data.corpus=files:...` reads another text.
Weights start as all of moejax's do (fan-in), whatever the paper's standard deviation, but for
routers, whose `init_std` every config gives; matrix products are bfloat16, which the papers use
where they say anything. Auxiliary losses are means over
MoE layers; where a paper's code adds up the losses of its layers, the coefficient is written as
`coefficient * layers`, which is the same loss.
"""

from __future__ import annotations

import dataclasses

from ml_collections import config_dict

from moejax.config import parse_argument, to_config_dict
from moejax.data.knobs import DataConfig
from moejax.experts import MoeConfig
from moejax.models import ModelConfig
from moejax.routing import LossesConfig
from moejax.routing.losses import LoadBalance
from moejax.train import Experiment
from moejax.train.evaluate import EvaluationConfig
from moejax.train.experiment import TrainConfig
from moejax.train.optimizer import OptimizerConfig
from moejax.train.schedule import ScheduleConfig

NO_LOSSES = LossesConfig(LoadBalance(coefficient=0.0))
"""For routers that have nothing to balance, or bring their own loss."""

T5_OPTIMIZER = OptimizerConfig(lr=1e-3, b1=0.9, b2=0.99, weight_decay=0.0, clip_norm=1.0)
"""In place of Adafactor (decay 0.8, tokens_choose_base.gin [REPO flaxformer]): UNVERIFIED, all of
it. Adafactor's 0.01 multiplies each parameter's own scale and is no rate for AdamW."""

T5_SCHEDULE = ScheduleConfig(kind="rsqrt", warmup="10000 steps")
"""`constant * rsqrt_decay` with 10k steps (contrib/moe/configs/runs/pretrain.gin [REPO t5x]), which
stays flat where this warms up."""

QUICK_WIDTH = 32
"""d_model of every quick model; FFNs and experts shrink in the same ratio."""


def experiment(
    name: str,
    model: ModelConfig,
    optimizer: OptimizerConfig,
    schedule: ScheduleConfig,
    *,
    seq_len: int,
    batch_size: int,
    steps: int | str,
    vocab_size: int = 0,
) -> Experiment:
    """An experiment with the evaluation that all of these share.

    Args:
      seq_len: tokens of a sequence.
      batch_size: sequences of an optimiser step.
      steps: length of the run.
      vocab_size: the tokenizer's; 0: as many as the model has rows (some models pad theirs).
    """
    return Experiment(
        name=name,
        model=model,
        data=DataConfig(
            tokenizer="bpe", bpe_vocab_size=vocab_size or model.vocab_size, seq_len=seq_len
        ),
        optimizer=optimizer,
        schedule=schedule,
        train=TrainConfig(batch_size=batch_size, steps=steps),
        evaluation=EvaluationConfig(every="5%", batch_size=32, max_tokens=1 << 20),
    )


def t5(paper: str, models: dict[str, ModelConfig]) -> dict[str, Experiment]:
    """Variants of a paper that trains the way T5X does; length and batch are UNVERIFIED."""
    return {
        name: experiment(
            f"{paper}-{name}",
            model,
            T5_OPTIMIZER,
            T5_SCHEDULE,
            seq_len=512,  # UNVERIFIED
            batch_size=2048,  # UNVERIFIED: 2^20 tokens
            steps=500_000,  # UNVERIFIED
        )
        for name, model in models.items()
    }


def resolve(variants: dict[str, Experiment], arg: str | None) -> config_dict.ConfigDict:
    """What `get_config` returns for `variant=NAME,quick=true`; the first variant is the default."""
    choice = parse_argument(arg, variant=tuple(variants), quick=False)
    chosen = variants[choice.variant]
    return to_config_dict(quick(chosen) if choice.quick else chosen)


def quick(full: Experiment) -> Experiment:
    """The same experiment in seconds: sizes only, and two MoE layers of the published pattern."""
    model = full.model
    ratio = QUICK_WIDTH / model.d_model
    return dataclasses.replace(
        full,
        model=dataclasses.replace(
            model,
            vocab_size=320,
            d_model=QUICK_WIDTH,
            num_layers=model.first_dense + 2 * model.moe_every,
            ffn_width=shrink(model.ffn_width, ratio),
            attention=model.attention.small(),
            moe=None if model.moe is None else narrow(model.moe, ratio),
        ),
        data=dataclasses.replace(full.data, bpe_vocab_size=320, seq_len=32, limit_bytes=60_000),
        schedule=dataclasses.replace(full.schedule, warmup="10%"),
        train=dataclasses.replace(full.train, batch_size=8, steps=12),
        evaluation=dataclasses.replace(
            full.evaluation, batch_size=8, max_tokens=2048, trace_tokens=1024
        ),
    )


def narrow(moe: MoeConfig, ratio: float) -> MoeConfig:
    """The layer with narrower experts. Unequal widths keep their proportions: as many units."""
    plan = moe.widths
    unit = shrink(plan.unit, ratio) if plan.unit else 0
    mean = unit * (plan.mean // plan.unit) if unit else shrink(plan.mean, ratio)
    shared = shrink(moe.shared_width, ratio) if moe.shared_width else 0
    return dataclasses.replace(
        moe, widths=dataclasses.replace(plan, mean=mean, unit=unit), shared_width=shared
    )


def shrink(width: int, ratio: float) -> int:
    """A width times the ratio, at least 1."""
    return max(1, round(width * ratio))
