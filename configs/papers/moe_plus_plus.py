"""MoE++: Jin, Zhu, Yuan, Yan 2024, zero-computation experts (2410.07348).

`--config=configs/papers/moe_plus_plus.py:variant=0.6b[,quick=true]`

variants  0.6b, 1b, 2b, 7b, and the plain MoE of each size without zero-computation experts and
          gating residual: moe_0.6b, moe_1b, moe_2b, moe_7b
router    as the official code computes it, which differs from the paper's eq. 1: weights are
          divided by their sum, and a zero expert weighs nothing before that (H.6 [REPO])
differs   the embedded corpus instead of RedPajama, Dolma and the Pile; the released 7B model
          divides a token's router logits by their standard deviation ([HF] moe_use_logits_norm)
"""

from __future__ import annotations

import dataclasses

from ml_collections import config_dict

from configs.papers import _common
from moejax.experts import MoeConfig, WidthPlan, ZeroCompute
from moejax.models import ModelConfig
from moejax.models.attention import AttentionConfig
from moejax.routing import LossesConfig
from moejax.routing.capacity import CapacityConfig
from moejax.routing.losses import LoadBalance
from moejax.routing.routers import MoEPlusPlus, TopK
from moejax.train.optimizer import OptimizerConfig
from moejax.train.schedule import ScheduleConfig

SMALL = ModelConfig(
    vocab_size=65_536,  # 7B: config.json of Chat-UniVi/MoE-Plus-Plus-7B [HF]; others UNVERIFIED
    d_model=768,  # H.6 [PAPER]
    num_layers=12,  # H.6 [PAPER]
    ffn_width=2048,  # H.6 [PAPER]
    attention=AttentionConfig(heads=12),  # UNVERIFIED
    max_seq_len=2048,  # H.6 [PAPER]
    norm_eps=1e-6,  # 7B: [HF]; others UNVERIFIED
    compute_dtype="bfloat16",  # 7B: [HF]; others UNVERIFIED
)
LARGE = dataclasses.replace(
    SMALL,
    d_model=1536,  # H.6 [PAPER], [HF]
    num_layers=24,  # H.6 [PAPER], [HF]
    ffn_width=4096,  # H.6 [PAPER], [HF]
    attention=AttentionConfig(heads=16),  # [HF]
)

INIT_STD = 0.01
"""Of router weights: UNVERIFIED. The official code's config class defaults to 0.02 [REPO]."""


def _plus_plus(dense: ModelConfig, experts: int, zero: ZeroCompute, tau: float) -> ModelConfig:
    """MoE++ with `experts` FFN experts. tau is that of the results in H.6 [PAPER]."""
    moe = MoeConfig(
        experts,
        WidthPlan(mean=dense.ffn_width),
        # Top-2 H.6 [PAPER]. One linear layer makes the logits (7B: moe_2layer_gate=false [HF]) and
        # weights are not doubled (7B: moe_feature_no_mul_topk=true [HF]); UNVERIFIED elsewhere.
        MoEPlusPlus(k=2, renormalise=True, zero_experts=zero.zero, init_std=INIT_STD),
        zero_compute=zero,
        # H.6 [PAPER] eq. 7: 0.01. Whether layers are added or averaged: UNVERIFIED (averaged).
        losses=LossesConfig(LoadBalance(0.01, "moe_plus_plus", tau=tau)),
        # H.6 [PAPER] eq. 8: gamma 1.1; that T counts a token K times is UNVERIFIED.
        capacity=CapacityConfig(factor=1.1, convention="moe_plus_plus", tau=tau),
    )
    return dataclasses.replace(dense, moe=moe, allow_noncausal=True)  # capacity, as below


def _plain(dense: ModelConfig, experts: int) -> ModelConfig:
    """The vanilla MoE of the same size: tau = 1 and nothing but FFN experts in all of the above.
    That its weights are divided by their sum, too, is UNVERIFIED."""
    moe = MoeConfig(
        experts,
        WidthPlan(mean=dense.ffn_width),
        TopK(k=2, renormalise=True, init_std=INIT_STD),
        losses=LossesConfig(LoadBalance(0.01, "moe_plus_plus")),
        capacity=CapacityConfig(factor=1.1),
    )
    # A full expert turns a token's second choice away for a later token's first one.
    return dataclasses.replace(dense, moe=moe, allow_noncausal=True)


# H.6: 8, 16, 32 FFN experts with 4, 4, 8 that compute nothing [PAPER], of which the code has two
# constant, one copy and one zero [REPO]; six constant ones among eight: UNVERIFIED.
FOUR = ZeroCompute(constant=2, copy=1, zero=1)
EIGHT = ZeroCompute(constant=6, copy=1, zero=1)
MODELS = {
    "0.6b": _plus_plus(SMALL, 8, FOUR, tau=0.75),
    "1b": _plus_plus(SMALL, 16, FOUR, tau=1.0),
    "2b": _plus_plus(SMALL, 32, EIGHT, tau=1.0),
    "7b": _plus_plus(LARGE, 16, FOUR, tau=0.75),
    "moe_0.6b": _plain(SMALL, 8),
    "moe_1b": _plain(SMALL, 16),
    "moe_2b": _plain(SMALL, 32),
    "moe_7b": _plain(LARGE, 16),
}
OPTIMIZER = OptimizerConfig(
    lr=5e-4,  # H.6 [PAPER]
    b1=0.9,  # UNVERIFIED
    b2=0.95,  # UNVERIFIED
    weight_decay=0.1,  # H.6 [PAPER]
    clip_norm=1.0,  # UNVERIFIED
)
SCHEDULE = ScheduleConfig(kind="cosine", warmup="2000 steps", final_fraction=0.1)  # UNVERIFIED
TOKENS = {"7b": "1e12 tokens", "moe_7b": "1e12 tokens"}
"""A summary of the paper names 100B and 1T tokens [2ND]; which model had which is UNVERIFIED."""

VARIANTS = {
    name: _common.experiment(
        f"moe_plus_plus-{name}",
        model,
        OPTIMIZER,
        SCHEDULE,
        seq_len=2048,  # H.6 [PAPER]
        batch_size=2048,  # H.6 [PAPER]: 4M tokens
        steps=TOKENS.get(name, "100e9 tokens"),
    )
    for name, model in MODELS.items()
}


def get_config(arg: str | None = None) -> config_dict.ConfigDict:
    """The experiment as a ConfigDict."""
    return _common.resolve(VARIANTS, arg)
