"""DeepSeek-V3: DeepSeek-AI 2024 (2412.19437).

`--config=configs/papers/deepseek_v3.py:variant=v3[,quick=true]`

variants  v3; v3_long: the second stage of its extension to 128K tokens by YaRN, as the released
          model has it (start from a checkpoint of v3)
counts    671B total, 37B active: weight matrices with embedding and head, without the module for
          multi-token prediction; active leaves out the embedding, whose look-up multiplies nothing
          (with it 37.4B, the same to the published digits)
differs   the embedded corpus; no multi-token prediction; bfloat16 instead of FP8; a batch of 15360
          from the start instead of growing from 3072; the rate falls linearly over the last 4.8T
          tokens instead of along a cosine over 4.3T and two short plateaus; the bias rate stays
          0.001 to the end instead of 0 after 14.3T tokens
"""

from __future__ import annotations

import dataclasses

from ml_collections import config_dict

from configs.papers import _common
from moejax.experts import MoeConfig, WidthPlan
from moejax.models import ModelConfig
from moejax.models.attention import LatentAttentionConfig
from moejax.models.rope import Yarn
from moejax.routing import LossesConfig
from moejax.routing.losses import LoadBalance
from moejax.routing.routers import SigmoidBias
from moejax.train.optimizer import OptimizerConfig
from moejax.train.schedule import ScheduleConfig

# C.7 [REPO], and config.json of deepseek-ai/DeepSeek-V3 [HF] for what is not marked.
ATTENTION = LatentAttentionConfig(
    heads=128,
    q_lora_rank=1536,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    rope_theta=1e4,
)
V3 = ModelConfig(
    vocab_size=129_280,
    d_model=7168,
    num_layers=61,
    first_dense=3,
    ffn_width=18_432,
    attention=ATTENTION,
    moe=MoeConfig(
        experts=256,
        widths=WidthPlan(mean=2048),
        # C.7 [REPO], [2ND]: 8 of 256, at most 4 of 8 groups by their two best; bias rate 0.001.
        router=SigmoidBias(
            k=8, renormalise=True, scale=2.5, rate=1e-3, groups=8, groups_kept=4, init_std=0.006
        ),
        shared_width=2048,
        # C.7 [2ND]: 1e-4 per sequence; that layers are added up, as in V2's code, is UNVERIFIED.
        losses=LossesConfig(LoadBalance(1e-4 * 58, "deepseek", scope="sequence")),
    ),
    max_seq_len=4096,  # [2ND]
    norm_eps=1e-6,
    compute_dtype="bfloat16",
)
YARN = Yarn(
    factor=40.0,
    original_max_position=4096,
    beta_fast=32.0,
    beta_slow=1.0,
    mscale=1.0,
    mscale_all_dim=1.0,
)
OPTIMIZER = OptimizerConfig(
    lr=2.2e-4,  # section 4.2 of the paper: UNVERIFIED
    b1=0.9,  # likewise
    b2=0.95,  # likewise
    weight_decay=0.1,  # [2ND]
    clip_norm=1.0,  # [2ND]
)
# 32.4%: the rate stays until 10T of 14.8T tokens [2ND]; warm-up and the last tenth: UNVERIFIED.
SCHEDULE = ScheduleConfig(kind="wsd", warmup="2000 steps", decay="32.4%", final_fraction=0.1)
VARIANTS = {
    "v3": _common.experiment(
        "deepseek_v3-v3",
        V3,
        OPTIMIZER,
        SCHEDULE,
        seq_len=4096,  # [2ND]
        batch_size=15_360,  # [2ND]: after the first 469B tokens
        steps="14.8e12 tokens",  # the abstract [PAPER]
    ),
    "v3_long": _common.experiment(
        "deepseek_v3-v3_long",
        dataclasses.replace(
            V3, attention=dataclasses.replace(ATTENTION, yarn=YARN), max_seq_len=163_840
        ),
        dataclasses.replace(OPTIMIZER, lr=7.3e-6),  # section 4.3 of the paper: UNVERIFIED
        ScheduleConfig(kind="constant", warmup="0%"),  # likewise
        seq_len=131_072,  # likewise
        batch_size=480,  # likewise
        steps=1000,  # likewise
    ),
}


def get_config(arg: str | None = None) -> config_dict.ConfigDict:
    """The experiment as a ConfigDict."""
    return _common.resolve(VARIANTS, arg)
