"""Mixtral 8x7B: Jiang et al. 2024, "Mixtral of Experts" (2401.04088).

`--config=configs/papers/mixtral.py:variant=8x7b[,quick=true]`

variants  8x7b
counts    46.7B total, 12.9B active: weight matrices with embedding and head, both of them active
differs   the architecture is published, the training is not: corpus, optimiser, schedule, batch and
          length are UNVERIFIED throughout, and the balance loss is that of its Hugging Face port
"""

from __future__ import annotations

from ml_collections import config_dict

from configs.papers import _common
from moejax.experts import MoeConfig, WidthPlan
from moejax.models import ModelConfig
from moejax.models.attention import AttentionConfig
from moejax.routing import LossesConfig
from moejax.routing.losses import LoadBalance
from moejax.routing.routers import TopK
from moejax.train.optimizer import OptimizerConfig
from moejax.train.schedule import ScheduleConfig

# config.json of mistralai/Mixtral-8x7B-v0.1 and of its fine-tunes [HF] for all of it.
MODEL = ModelConfig(
    vocab_size=32_000,
    d_model=4096,
    num_layers=32,
    ffn_width=14_336,
    attention=AttentionConfig(heads=32, kv_heads=8, rope_theta=1e6),
    moe=MoeConfig(
        experts=8,
        widths=WidthPlan(mean=14_336),
        # Softmax over the two chosen logits: probabilities divided by their sum. 0.02 is its
        # initializer_range; what it was trained from is UNVERIFIED.
        router=TopK(k=2, renormalise=True, init_std=0.02),
        # router_aux_loss_coef 0.02 [HF] in the convention of the port (section 0.2 [REPO]).
        losses=LossesConfig(LoadBalance(0.02, "hf")),
    ),
    max_seq_len=32_768,
    norm_eps=1e-5,
    compute_dtype="bfloat16",
)
OPTIMIZER = OptimizerConfig(
    lr=3e-4, b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=1.0  # UNVERIFIED, all of them
)  # fmt: skip
SCHEDULE = ScheduleConfig(kind="cosine", warmup="2000 steps", final_fraction=0.1)  # UNVERIFIED
VARIANTS = {
    "8x7b": _common.experiment(
        "mixtral-8x7b",
        MODEL,
        OPTIMIZER,
        SCHEDULE,
        seq_len=8192,  # UNVERIFIED; the context is 32k [HF]
        batch_size=512,  # UNVERIFIED
        steps="1e12 tokens",  # UNVERIFIED
    )
}


def get_config(arg: str | None = None) -> config_dict.ConfigDict:
    """The experiment as a ConfigDict."""
    return _common.resolve(VARIANTS, arg)
