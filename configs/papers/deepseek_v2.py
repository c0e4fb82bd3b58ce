"""DeepSeek-V2 and V2-Lite: DeepSeek-AI 2024 (2405.04434).

`--config=configs/papers/deepseek_v2.py:variant=lite[,quick=true]`

variants  lite, v2; lite_long and v2_long: their extension to 128K tokens by YaRN, as the released
          models have it (start from a checkpoint of the short one)
counts    15.7B total, 2.4B active (lite); 236B, 21B (v2): weight matrices with embedding and head;
          active leaves out the embedding, whose look-up multiplies nothing (with it, lite has 2.7B)
differs   the embedded corpus; v2's batch is 9216 from the start instead of growing from 2304; no
          token is dropped (v2 drops at a capacity of 1.0 per device in training); no extra scaling
          factors at the bottlenecks, which the paper names but does not give
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
from moejax.routing.losses import Communication, DeviceBalance, LoadBalance
from moejax.routing.routers import TopK
from moejax.train.optimizer import OptimizerConfig
from moejax.train.schedule import ScheduleConfig

# config.json of deepseek-ai/DeepSeek-V2-Lite and DeepSeek-V2 [HF] for all numbers of the two models
# that are not marked; C.6 [PAPER] agrees where it has them.
LITE = ModelConfig(
    vocab_size=102_400,
    d_model=2048,
    num_layers=27,
    first_dense=1,
    ffn_width=10_944,
    attention=LatentAttentionConfig(
        heads=16,
        q_lora_rank=0,  # null [HF]
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        rope_theta=1e4,
    ),
    moe=MoeConfig(
        experts=64,
        widths=WidthPlan(mean=1408),
        # Raw probabilities (norm_topk_prob=false); routers start at the paper's 0.006.
        router=TopK(k=6, renormalise=False, init_std=0.006),
        shared_width=2 * 1408,
        # C.6 [PAPER]: alpha1 0.001 only; per sequence (seq_aux), added up over the 26 layers.
        losses=LossesConfig(LoadBalance(0.001 * 26, "deepseek", scope="sequence")),
    ),
    max_seq_len=4096,  # App. B of the paper: UNVERIFIED
    norm_eps=1e-6,
    compute_dtype="bfloat16",
)
V2 = dataclasses.replace(
    LITE,
    d_model=5120,
    num_layers=60,
    ffn_width=12_288,
    attention=dataclasses.replace(LITE.attention, heads=128, q_lora_rank=1536),  # type: ignore[type-var]
    moe=MoeConfig(
        experts=160,
        widths=WidthPlan(mean=1536),
        # C.6 [PAPER], [REPO]: at most 3 of 8 devices, by their best expert; route scale 16.
        router=TopK(k=6, renormalise=False, scale=16.0, groups=8, groups_kept=3, init_std=0.006),
        shared_width=2 * 1536,
        # C.6 [PAPER]: 0.003, 0.05, 0.02 with D = 8, M = 3; added up over the 59 layers.
        losses=LossesConfig(
            LoadBalance(0.003 * 59, "deepseek", scope="sequence"),
            device_balance=DeviceBalance(0.05 * 59, groups=8, scope="sequence"),
            communication=Communication(0.02 * 59, groups=8, kept=3, scope="sequence"),
        ),
    ),
)
# rope_scaling [HF].
YARN = Yarn(
    factor=40.0,
    original_max_position=4096,
    beta_fast=32.0,
    beta_slow=1.0,
    mscale=0.707,
    mscale_all_dim=0.707,
)

OPTIMIZER = OptimizerConfig(
    lr=2.4e-4,  # C.6 [PAPER]
    b1=0.9,  # C.3 [PAPER], as DeepSeekMoE; for V2 UNVERIFIED
    b2=0.95,  # likewise
    weight_decay=0.1,  # likewise
    clip_norm=1.0,  # [2ND]
)
# C.6 [PAPER]: x0.316 at 60 % and at 90 % of the tokens; 2K steps of warm-up [2ND].
SCHEDULE = ScheduleConfig(
    kind="steps", warmup="2000 steps", milestones=("60%", "90%"), factor=0.316
)


def _long(model: ModelConfig) -> ModelConfig:
    attention = dataclasses.replace(model.attention, yarn=YARN)  # type: ignore[type-var]
    return dataclasses.replace(model, attention=attention, max_seq_len=163_840)  # [HF]


SHORT = {
    "lite": _common.experiment(
        "deepseek_v2-lite",
        LITE,
        dataclasses.replace(OPTIMIZER, lr=4.2e-4),  # App. B of the paper: UNVERIFIED
        dataclasses.replace(SCHEDULE, milestones=("80%", "90%")),  # App. B: UNVERIFIED
        seq_len=4096,  # App. B: UNVERIFIED
        batch_size=4608,  # App. B: UNVERIFIED
        steps="5.7e12 tokens",  # C.6 [PAPER]
    ),
    "v2": _common.experiment(
        "deepseek_v2-v2",
        V2,
        OPTIMIZER,
        SCHEDULE,
        seq_len=4096,  # UNVERIFIED
        batch_size=9216,  # C.6 [PAPER]: after the first 225B tokens
        steps="8.1e12 tokens",  # the abstract [PAPER]
    ),
}
# Section 3.1.4 of the paper: UNVERIFIED, all of it but YARN.
VARIANTS = SHORT | {
    f"{name}_long": _common.experiment(
        f"deepseek_v2-{name}_long",
        _long(short.model),
        dataclasses.replace(short.optimizer, lr=0.1 * short.optimizer.lr),
        ScheduleConfig(kind="constant", warmup="0%"),
        seq_len=32_768,
        batch_size=576,
        steps=1000,
    )
    for name, short in SHORT.items()
}


def get_config(arg: str | None = None) -> config_dict.ConfigDict:
    """The experiment as a ConfigDict."""
    return _common.resolve(VARIANTS, arg)
