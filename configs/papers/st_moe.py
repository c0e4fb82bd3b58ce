"""ST-MoE: Zoph et al. 2022, stable and transferable sparse models (2202.08906), as a decoder.

`--config=configs/papers/st_moe.py:variant=base[,quick=true]`

variants  base, xl, 32b (flaxformer's st_moe_base, st_moe_xl, st_moe_32b); dense_base
differs   decoder-only: half of the encoder-decoder, so 32b is not the published 269B; causal
          language modelling of the embedded corpus instead of span corruption on C4; no extra dense
          FFN behind each MoE layer; RoPE; AdamW instead of Adafactor;
          capacity is that of the batch, not of groups of tokens
"""

from __future__ import annotations

import dataclasses

from ml_collections import config_dict

from configs.papers import _common
from moejax.experts import MoeConfig, WidthPlan
from moejax.models import ModelConfig
from moejax.models.attention import AttentionConfig
from moejax.routing import LossesConfig
from moejax.routing.capacity import CapacityConfig
from moejax.routing.losses import LoadBalance, ZLoss
from moejax.routing.routers import TopK

# st_moe_{base,xl,32b}.gin and what they include [REPO flaxformer] for all of it, but for what is
# marked. H.1 has the capacities and coefficients.
BASE = ModelConfig(
    vocab_size=32_128,
    d_model=768,
    num_layers=12,  # of the decoder
    moe_every=4,
    ffn_width=2048,
    activation="geglu",
    attention=AttentionConfig(heads=12),  # 12 x 64
    max_seq_len=512,  # UNVERIFIED
    compute_dtype="bfloat16",
)
XL = dataclasses.replace(
    BASE, d_model=2048, num_layers=24, ffn_width=5120, attention=AttentionConfig(heads=32)
)
MODEL_32B = dataclasses.replace(
    BASE,
    d_model=5120,
    num_layers=24,
    ffn_width=20_480,
    attention=AttentionConfig(heads=64, head_dim=128),
)


def _moe(
    model: ModelConfig, experts: int, z_loss: float, factor: float, eval_factor: float
) -> ModelConfig:
    moe = MoeConfig(
        experts,
        WidthPlan(mean=model.ffn_width),
        TopK(k=2, renormalise=False, init_std=0.02),  # H.1: raw probabilities; moe.gin
        losses=LossesConfig(LoadBalance(0.01, "switch"), z_loss=ZLoss(z_loss)),
        capacity=CapacityConfig(
            factor=factor, eval_factor=eval_factor, convention="without_k", minimum=4
        ),
        activation="geglu",
    )
    # A full expert turns a token's second choice away for a later token's first one.
    return dataclasses.replace(model, moe=moe, allow_noncausal=True)


MODELS = {
    "base": _moe(BASE, 16, z_loss=1e-4, factor=1.25, eval_factor=2.0),
    "xl": _moe(XL, 16, z_loss=1e-4, factor=2.0, eval_factor=4.0),
    "32b": _moe(MODEL_32B, 64, z_loss=1e-3, factor=1.25, eval_factor=2.0),
    "dense_base": dataclasses.replace(BASE, moe_every=1),
}
VARIANTS = _common.t5("st_moe", MODELS)


def get_config(arg: str | None = None) -> config_dict.ConfigDict:
    """The experiment as a ConfigDict."""
    return _common.resolve(VARIANTS, arg)
