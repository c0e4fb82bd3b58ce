"""DeepSeekMoE: Dai et al. 2024 (2401.06066), at 2B, 16B and 145B.

`--config=configs/papers/deepseek_moe.py:variant=2b[,quick=true]`

variants  2b, 16b, 145b; half_activated (2b with 3 instead of 7 routed experts). At the 2B scale the
          paper's baselines: dense (0.2B), dense_x4, dense_x16 (the upper bound of every 16-expert
          model), hash, switch (top-1), gshard (top-2), gshard_x1.2 and gshard_x1.5 (wider experts)
counts    2.0B total, 0.3B active (2b); 0.2B, 0.2B (dense); 16.4B, 2.8B (16b); 144.6B, 22.2B
          (145b): weight matrices with embedding and head, both of them active
matched   2b, hash, switch, gshard and dense_x16 have the same FFN parameters, 2b and gshard the
          same active ones
differs   the embedded corpus; the 2B scale's FFN is SwiGLU of 8/3 d (below); weights start by
          fan-in, routers at the paper's 0.006 (C.3 [PAPER])
"""

from __future__ import annotations

import dataclasses

from ml_collections import config_dict

from configs.papers import _common
from moejax.experts import MoeConfig, WidthPlan
from moejax.models import ModelConfig
from moejax.models.attention import AttentionConfig
from moejax.routing import LossesConfig
from moejax.routing.losses import DeviceBalance, LoadBalance
from moejax.routing.routers import Hash, TopK
from moejax.train.optimizer import OptimizerConfig
from moejax.train.schedule import ScheduleConfig

# C.3: 4 x 853 is SwiGLU's 8/3 d, and with it the experts of 2b have the published 1.89B / 0.24B
# parameters (C.9 [DERIVED]). That the 2B scale is gated like the 16B model is UNVERIFIED.
FINE = 853
NORMAL = 4 * FINE
"""Hidden width of a normal expert at the 2B scale: m = 4, relative expert size 0.25 [PAPER]."""

DENSE = ModelConfig(
    vocab_size=8192,  # C.3 [PAPER]: 8K
    d_model=1280,  # C.3 [PAPER]
    num_layers=9,  # C.3 [PAPER]; all of them MoE
    ffn_width=NORMAL,
    attention=AttentionConfig(heads=10),  # C.3 [PAPER]: 10 x 128
    max_seq_len=4096,  # 16B: C.3 [PAPER], [HF]; 2B reads half of it
    norm_eps=1e-6,  # 16B: [HF]; others UNVERIFIED
    compute_dtype="bfloat16",  # UNVERIFIED
)
MODEL_16B = dataclasses.replace(
    DENSE,
    vocab_size=102_400,  # C.3 [PAPER], [HF]
    d_model=2048,  # C.3 [PAPER], [HF]
    num_layers=28,  # C.3 [PAPER], [HF]
    first_dense=1,  # C.3 [PAPER], [HF]
    ffn_width=10_944,  # C.3 [PAPER], [HF]
    attention=AttentionConfig(heads=16),  # C.3 [PAPER], [HF]
)
MODEL_145B = dataclasses.replace(
    MODEL_16B,
    d_model=4096,  # C.3 [PAPER]
    num_layers=62,  # C.3 [PAPER]
    ffn_width=21_888,  # [DERIVED]: as 16b scaled with d; gives the published 144.6B / 22.2B
    attention=AttentionConfig(heads=32),  # C.3 [PAPER]: 32 x 128
)


def _router(k: int) -> TopK:
    # Raw probabilities: C.1 [PAPER] eq. 10, [HF] norm_topk_prob=false. Initial standard deviation
    # 0.006: C.3 [PAPER]; the released code says otherwise (0.02, and its gate kaiming_uniform).
    return TopK(k=k, renormalise=False, init_std=0.006)


def _losses(alpha: float, layers: int, device: float = 0.0) -> LossesConfig:
    """C.2 [PAPER] eq. 12-17. The code takes f and P per sequence (seq_aux=true [HF]; at 2B and 145B
    UNVERIFIED) and adds up the layers (AddAuxiliaryLoss [REPO ESFT])."""
    return LossesConfig(
        LoadBalance(alpha * layers, "deepseek", scope="sequence"),
        device_balance=DeviceBalance(device * layers, groups=4, scope="sequence"),
    )


# C.2 [PAPER]: alpha1 0.01 at 2B, 0.001 at 16B, 0.003 at 145B; alpha2 0.05 with D = 4 at 145B. The
# baselines share the 2B training settings; their coefficient is UNVERIFIED. No token is dropped at
# 2B and 16B (C.2 [PAPER]); at 145B UNVERIFIED.
LOSSES_2B = _losses(0.01, 9)
FINE_GRAINED = MoeConfig(
    experts=63,  # C.3 [PAPER]: 1 shared + 63 routed of 64
    widths=WidthPlan(mean=FINE),
    router=_router(7),
    shared_width=FINE,
    losses=LOSSES_2B,
)
COARSE = MoeConfig(
    experts=16,  # C.4 [PAPER]: N = 16 before segmentation, as GShard 2.0B
    widths=WidthPlan(mean=NORMAL),
    router=_router(2),
    losses=LOSSES_2B,
)
MOE_16B = MoeConfig(
    experts=64,  # C.3 [PAPER]: 2 shared + 64 routed, 6 active
    widths=WidthPlan(mean=1408),  # C.3 [PAPER], [HF]
    router=_router(6),
    shared_width=2 * 1408,
    losses=_losses(0.001, 27),
)
MOE_145B = MoeConfig(
    experts=128,  # C.3 [PAPER]: 4 shared + 128 routed, 12 active
    widths=WidthPlan(mean=1408),  # [DERIVED] from 144.6B / 22.2B
    router=_router(12),
    shared_width=4 * 1408,
    losses=_losses(0.003, 61, device=0.05),
)


def _small(moe: MoeConfig, **changes: object) -> ModelConfig:
    return dataclasses.replace(DENSE, moe=dataclasses.replace(moe, **changes))


MODELS_2B = {
    "2b": _small(FINE_GRAINED),
    "half_activated": _small(FINE_GRAINED, router=_router(3)),  # C.5 [PAPER]: 1 + 3 of 63
    "dense": DENSE,  # C.4 [PAPER]: 0.2B
    "dense_x4": dataclasses.replace(DENSE, ffn_width=4 * NORMAL),  # C.4 [PAPER]
    "dense_x16": dataclasses.replace(DENSE, ffn_width=16 * NORMAL),  # C.4 [PAPER]
    "hash": _small(COARSE, router=Hash(k=1), losses=_common.NO_LOSSES),  # C.4 [PAPER]: top-1
    "switch": _small(COARSE, router=_router(1)),  # C.4 [PAPER]: top-1
    "gshard": _small(COARSE),  # C.4 [PAPER]: top-2
    # C.4 [PAPER]: 1.5 times the expert size is 2.83B of experts; 1.2 likewise.
    "gshard_x1.2": _small(COARSE, widths=WidthPlan(mean=round(1.2 * NORMAL))),
    "gshard_x1.5": _small(COARSE, widths=WidthPlan(mean=round(1.5 * NORMAL))),
}

# C.3 [PAPER]: AdamW 0.9/0.95, weight decay 0.1, clipping at 1.0; peak rates below.
OPTIMIZER = OptimizerConfig(lr=1.08e-3, b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=1.0)
# C.3 [PAPER]: 2K steps of warm-up, x0.316 at 80 % and at 90 % of the steps.
SCHEDULE = ScheduleConfig(
    kind="steps", warmup="2000 steps", milestones=("80%", "90%"), factor=0.316
)

VARIANTS = {
    name: _common.experiment(
        f"deepseek_moe-{name}",
        model,
        OPTIMIZER,  # C.3 [PAPER]: 1.08e-3
        SCHEDULE,
        seq_len=2048,  # C.3 [PAPER]
        batch_size=2048,  # C.3 [PAPER]
        steps=25_000,  # C.3 [PAPER]: 100B tokens
    )
    for name, model in MODELS_2B.items()
} | {
    "16b": _common.experiment(
        "deepseek_moe-16b",
        dataclasses.replace(MODEL_16B, moe=MOE_16B),
        dataclasses.replace(OPTIMIZER, lr=4.2e-4),  # C.3 [PAPER]
        SCHEDULE,
        seq_len=4096,  # C.3 [PAPER]
        batch_size=4608,  # C.3 [PAPER]
        steps=106_449,  # C.3 [PAPER]: 2T tokens
    ),
    "145b": _common.experiment(
        "deepseek_moe-145b",
        dataclasses.replace(MODEL_145B, moe=MOE_145B),
        dataclasses.replace(OPTIMIZER, lr=3.0e-4),  # C.3 [PAPER]
        ScheduleConfig(kind="constant", warmup="2000 steps"),  # C.3 [PAPER]; 2000 UNVERIFIED
        seq_len=4096,  # C.3 [PAPER]
        batch_size=4608,  # C.3 [PAPER]
        steps=13_000,  # C.3 [PAPER]: 245B tokens
    ),
}


def get_config(arg: str | None = None) -> config_dict.ConfigDict:
    """The experiment as a ConfigDict."""
    return _common.resolve(VARIANTS, arg)
