"""Switch Transformer: Fedus, Zoph, Shazeer 2021 (2101.03961), as a decoder.

`--config=configs/papers/switch.py:variant=base_64[,quick=true]`

variants  base_64 (flaxformer's switch_base), base_128 (the paper's), base_8; large_128; dense_base
differs   decoder-only: half of the encoder-decoder, so parameter counts are not the published ones;
          causal language modelling of the embedded corpus instead of span corruption on C4; RoPE
          instead of relative position biases; AdamW instead of Adafactor; capacity is that of
          the batch, not of groups of 8192 tokens
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
from moejax.routing.losses import LoadBalance
from moejax.routing.routers import TopK

# switch_base.gin and what it includes [REPO flaxformer]; config.json of google/switch-base-* [HF].
BASE = ModelConfig(
    vocab_size=32_128,  # [REPO], [HF]
    d_model=768,  # [REPO], [HF]
    num_layers=12,  # [REPO], [HF]: of the decoder
    moe_every=2,  # [REPO], [HF]: every other layer
    ffn_width=3072,  # [REPO], [HF]
    activation="relu",  # [REPO], [HF]
    attention=AttentionConfig(heads=12),  # [REPO], [HF]: 12 x 64
    tied_embeddings=True,  # [REPO]
    max_seq_len=512,  # UNVERIFIED
    norm_eps=1e-6,  # [HF]
    compute_dtype="bfloat16",  # [REPO]
)
LARGE = dataclasses.replace(
    BASE,
    d_model=1024,  # switch_classic_large.gin [REPO]
    num_layers=24,  # [REPO]
    ffn_width=4096,  # [REPO]
    attention=AttentionConfig(heads=16),  # [REPO]: 16 x 64
)
MOE = MoeConfig(
    experts=64,  # switch_base.gin [REPO]
    widths=WidthPlan(mean=3072),  # [REPO], [HF]
    # H.1 [REPO]: top-1, its raw probability as weight, router weights of 0.02 (moe.gin). Jitter
    # 1e-2 [HF]; T5X has none.
    router=TopK(k=1, renormalise=False, init_std=0.02, jitter=0.01),
    # H.1 [REPO]: 0.01 and a mean over layers (t5x contrib/moe/models.py). [HF] says 0.001, with a
    # z-loss of 0.001 that Switch does not have: not followed.
    losses=LossesConfig(LoadBalance(0.01, "switch")),
    # H.1 [REPO]: 1.25 and 2.0, without K, at least 4, in order of position.
    capacity=CapacityConfig(factor=1.25, eval_factor=2.0, convention="without_k", minimum=4),
    activation="relu",  # [REPO], [HF]
)


def _moe(model: ModelConfig, experts: int, width: int) -> ModelConfig:
    moe = dataclasses.replace(MOE, experts=experts, widths=WidthPlan(mean=width))
    return dataclasses.replace(model, moe=moe)


MODELS = {
    "base_64": _moe(BASE, 64, 3072),  # [REPO]
    "base_128": _moe(BASE, 128, 3072),  # Switch-Base has 128 experts: UNVERIFIED
    "base_8": _moe(BASE, 8, 3072),  # google/switch-base-8: the name [HF]
    "large_128": _moe(LARGE, 128, 4096),  # [REPO] but for the 128: UNVERIFIED
    "dense_base": dataclasses.replace(BASE, moe_every=1),  # T5-Base, the matched dense model
}
VARIANTS = _common.t5("switch", MODELS)


def get_config(arg: str | None = None) -> config_dict.ConfigDict:
    """The experiment as a ConfigDict."""
    return _common.resolve(VARIANTS, arg)
