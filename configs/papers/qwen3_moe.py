"""Qwen3-30B-A3B: Qwen Team 2025, the Qwen3 technical report (2505.09388).

`--config=configs/papers/qwen3_moe.py:variant=30b_a3b[,quick=true]`

variants  30b_a3b
counts    30.5B total, 3.3B active: weight matrices with embedding and head, both of them active
differs   the architecture is published, most of the training is not: corpus, optimiser, schedule
          and batch are UNVERIFIED throughout
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

# config.json of Qwen/Qwen3-30B-A3B [HF] for all of it.
MODEL = ModelConfig(
    vocab_size=151_936,
    d_model=2048,
    num_layers=48,
    ffn_width=6144,  # of a dense layer; there is none (mlp_only_layers is empty)
    attention=AttentionConfig(heads=32, kv_heads=4, head_dim=128, rope_theta=1e6, qk_norm=True),
    moe=MoeConfig(
        experts=128,
        widths=WidthPlan(mean=768),
        # norm_topk_prob=true; initializer_range 0.02 is the port's default: UNVERIFIED here.
        router=TopK(k=8, renormalise=True, init_std=0.02),
        # router_aux_loss_coef 0.001 in the convention of the port (section 0.2); that loads are
        # compared over the whole batch is the report's word [2ND].
        losses=LossesConfig(LoadBalance(0.001, "hf", scope="global")),
    ),
    max_seq_len=40_960,
    norm_eps=1e-6,
    compute_dtype="bfloat16",
)
OPTIMIZER = OptimizerConfig(
    lr=3e-4, b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=1.0  # UNVERIFIED, all of them
)  # fmt: skip
SCHEDULE = ScheduleConfig(kind="cosine", warmup="2000 steps", final_fraction=0.1)  # UNVERIFIED
VARIANTS = {
    "30b_a3b": _common.experiment(
        "qwen3_moe-30b_a3b",
        MODEL,
        OPTIMIZER,
        SCHEDULE,
        seq_len=4096,  # UNVERIFIED: the first stage's
        batch_size=2048,  # UNVERIFIED
        steps="36e12 tokens",  # [2ND]
    )
}


def get_config(arg: str | None = None) -> config_dict.ConfigDict:
    """The experiment as a ConfigDict."""
    return _common.resolve(VARIANTS, arg)
