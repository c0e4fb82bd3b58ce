"""ReMoE: Wang, Zhu, Chen 2024, fully differentiable MoE with ReLU routing (2412.14711).

`--config=configs/papers/remoe.py:variant=remoe[,quick=true]`

variants  remoe (182M active, 8 experts), remoe_469m, remoe_978m; the baselines of the 182M
          backbone: dense, dense_x8 (all experts at once), hash, expert_choice (not causal), top_k
differs   the embedded corpus instead of the Pile. The official code adds up the L1 penalty over
          layers where the paper averages; the coefficient adapts itself, so the start alone differs
"""

from __future__ import annotations

import dataclasses

from ml_collections import config_dict

from configs.papers import _common
from moejax.experts import MoeConfig, WidthPlan
from moejax.models import ModelConfig
from moejax.models.attention import AttentionConfig
from moejax.routing import LossesConfig
from moejax.routing.losses import LoadBalance
from moejax.routing.routers import ExpertChoice, Hash, ReMoE, TopK
from moejax.train.optimizer import OptimizerConfig
from moejax.train.schedule import ScheduleConfig


# scripts/train_llama_{182m,469m,978m}_*.sh of thu-ml/ReMoE [REPO] for all of it; H.5 [PAPER].
def _dense(d_model: int, layers: int, heads: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=51_200,  # GPT-2's 50257, padded to a multiple of 1024
        d_model=d_model,
        num_layers=layers,
        ffn_width=4 * d_model,
        attention=AttentionConfig(heads=heads, kv_heads=4, rope_theta=1e6),
        max_seq_len=1024,
        norm_eps=1e-5,  # Megatron's default [REPO]
        compute_dtype="bfloat16",
    )


DENSE = _dense(768, 12, 12)
DENSE_469M = _dense(1024, 24, 16)
DENSE_978M = _dense(1536, 24, 16)

# H.5 [PAPER], [REPO]: alpha 1.2, lambda_0 1e-8, target k = 1 of E = 8; the router's initial
# standard deviation is the model's 0.01 [REPO].
RELU = ReMoE(k=1, rate=1.2, init_lambda=1e-8, init_std=0.01)
# The probability of the one expert is its weight (--moe-router-pre-softmax [REPO]); 1e-2 per layer,
# added up over the 12 layers (Megatron's MoEAuxLossAutoScaler [REPO]).
TOP_1 = TopK(k=1, renormalise=False, init_std=0.01)
BALANCE = LossesConfig(LoadBalance(0.01 * 12, "megatron"))


def _moe(
    dense: ModelConfig, router: ReMoE | TopK | Hash | ExpertChoice, losses: LossesConfig
) -> ModelConfig:
    moe = MoeConfig(8, WidthPlan(mean=dense.ffn_width), router, losses=losses)
    return dataclasses.replace(dense, moe=moe, allow_noncausal=not router.causal)


MODELS = {
    "remoe": _moe(DENSE, RELU, _common.NO_LOSSES),
    "remoe_469m": _moe(DENSE_469M, RELU, _common.NO_LOSSES),
    "remoe_978m": _moe(DENSE_978M, RELU, _common.NO_LOSSES),
    "dense": DENSE,
    "dense_x8": dataclasses.replace(DENSE, ffn_width=8 * DENSE.ffn_width),  # FFN_EXPANSION=8 [REPO]
    "hash": _moe(DENSE, Hash(k=1), _common.NO_LOSSES),  # H.5 [PAPER] Table 2
    # H.5 [PAPER] Table 2; one expert per token on average, like the others: UNVERIFIED.
    "expert_choice": _moe(DENSE, ExpertChoice(factor=1.0, init_std=0.01), _common.NO_LOSSES),
    "top_k": _moe(DENSE, TOP_1, BALANCE),  # H.5 [PAPER] Table 2: dMoE, dropless
}
OPTIMIZER = OptimizerConfig(
    lr=5e-4,  # H.5 [PAPER], [REPO]
    b1=0.9,  # H.5 [PAPER]
    b2=0.999,  # H.5 [PAPER]
    weight_decay=0.01,  # [REPO]: Megatron's default
    clip_norm=1.0,  # [REPO]
)
SCHEDULE = ScheduleConfig(
    kind="cosine",  # H.5 [PAPER], [REPO]
    warmup="1%",  # [REPO]
    final_fraction=0.1,  # [REPO]: 5e-5 of 5e-4
)
VARIANTS = {
    name: _common.experiment(
        f"remoe-{name}",
        model,
        OPTIMIZER,
        SCHEDULE,
        seq_len=1024,  # H.5 [PAPER], [REPO]
        batch_size=512,  # H.5 [PAPER], [REPO]
        steps=60_000,  # H.5 [PAPER], [REPO]: 30B tokens
        vocab_size=50_257,  # [REPO]: GPT-2's
    )
    for name, model in MODELS.items()
}


def get_config(arg: str | None = None) -> config_dict.ConfigDict:
    """The experiment as a ConfigDict."""
    return _common.resolve(VARIANTS, arg)
