"""OLMoE-1B-7B: Muennighoff et al. 2024 (2409.02060).

`--config=configs/papers/olmoe.py:variant=1b_7b[,quick=true]`

variants  1b_7b; dense_1b (the same backbone, an FFN as wide as the eight active experts)
counts    6.9B total, 1.3B active: weight matrices with embedding and head, both of them active
differs   the embedded corpus instead of OLMoE-Mix; RMSNorm of queries and keys is per head here and
          over all heads there; initial weights by fan-in instead of a truncated normal of 0.02; the
          last 100B tokens of annealing to 0 are left out
"""

from __future__ import annotations

import dataclasses

from ml_collections import config_dict

from configs.papers import _common
from moejax.experts import MoeConfig, WidthPlan
from moejax.models import ModelConfig
from moejax.models.attention import AttentionConfig
from moejax.routing import LossesConfig
from moejax.routing.losses import LoadBalance, ZLoss
from moejax.routing.routers import TopK
from moejax.train.optimizer import OptimizerConfig
from moejax.train.schedule import ScheduleConfig

DENSE = ModelConfig(
    vocab_size=50_304,  # H.4 [PAPER], [HF]: 50280 padded
    d_model=2048,  # H.4 [PAPER], [REPO], [HF]
    num_layers=16,  # H.4 [PAPER], [REPO], [HF]
    ffn_width=8 * 1024,  # the active experts together; the paper's dense run: UNVERIFIED
    attention=AttentionConfig(heads=16, qk_norm=True),  # H.4 [PAPER]
    max_seq_len=4096,  # H.4 [PAPER], [HF]
    norm_eps=1e-5,  # [HF]
    compute_dtype="bfloat16",  # H.4 [PAPER], [REPO]
)
MOE = MoeConfig(
    experts=64,  # H.4 [PAPER], [REPO], [HF]
    widths=WidthPlan(mean=1024),  # H.4 [PAPER], [HF]: mlp_ratio 1 of two halves
    # H.4: top-8 of raw probabilities ([HF] norm_topk_prob=false); dropless. Router weights of 0.02
    # [PAPER], there cut off at three standard deviations.
    router=TopK(k=8, renormalise=False, init_std=0.02),
    # H.4 [PAPER], [REPO]: 0.01 and 0.001; megablocks' loss is a mean over layers [REPO].
    losses=LossesConfig(LoadBalance(0.01, "megablocks"), z_loss=ZLoss(0.001)),
)
OPTIMIZER = OptimizerConfig(
    lr=4e-4,  # H.4 [PAPER], [REPO]
    b1=0.9,  # H.4 [PAPER], [REPO]
    b2=0.95,  # H.4 [PAPER], [REPO]
    eps=1e-8,  # H.4 [PAPER], [REPO]
    weight_decay=0.1,  # H.4 [PAPER], [REPO]
    decay="all",  # H.4 [PAPER], [REPO]: norms and embeddings too
    clip_norm=1.0,  # H.4 [PAPER], [REPO]
)
SCHEDULE = ScheduleConfig(
    kind="cosine",  # H.4 [PAPER], [REPO]
    warmup="10.49e9 tokens",  # H.4 [PAPER]
    final_fraction=0.1,  # H.4 [PAPER], [REPO]
)
MODELS = {"1b_7b": dataclasses.replace(DENSE, moe=MOE), "dense_1b": DENSE}
VARIANTS = {
    name: _common.experiment(
        f"olmoe-{name}",
        model,
        OPTIMIZER,
        SCHEDULE,
        seq_len=4096,  # H.4 [PAPER], [REPO]
        batch_size=1024,  # H.4 [PAPER], [REPO]
        steps="5e12 tokens",  # H.4 [PAPER]: the cosine's length; 5.1T tokens in all
        vocab_size=50_280,  # H.4 [PAPER], [REPO]
    )
    for name, model in MODELS.items()
}


def get_config(arg: str | None = None) -> config_dict.ConfigDict:
    """The experiment as a ConfigDict."""
    return _common.resolve(VARIANTS, arg)
