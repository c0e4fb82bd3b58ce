"""Language models: `--config=configs/lm.py:size=nano,moe=top_p[,device=tpu][,quick=true]`.

sizes  nano 0.26M, tiny 1.0M, mini 5.1M, small 30M, base 126M, large 352M, 1b 1.0B, 3b 3.0B active
       non-embedding parameters; by their total with fine-grained experts: 16b (2.2B active), 112b
       (9.5B; our own shape), 671b (35.6B; DeepSeek-V3's shape). docs/models.md has the table
moe    dense, top_k, top_p, hetero_top_k, hetero_top_p, noisy_top_k, sigmoid_bias, fine_grained,
       expert_choice, remoe, moe_plus_plus, hash, random, round_robin
device any, or tpu: attention by the flash kernel
quick  shrinks sizes and steps only, to seconds

All kinds of one size have the same active FLOPs per token at a mean activation of two experts:
eight experts of half the dense width each (four times the parameters of the dense FFN), or HMoE's
arithmetic widths with the same sum; `fine_grained` cuts them into quarters, two of them shared;
four more experts of `moe_plus_plus` compute nothing, which makes it cheaper. What is really used is
measured. From 16b up experts are many and narrow, beside shared ones and wide dense layers in
front, which `dense` has everywhere. From 1b up top-p routers are cut at `k_max`.

From tiny up a run is 20 tokens per active non-embedding parameter (Hoffmann et al. 2022).
"""

from __future__ import annotations

import dataclasses

from ml_collections import config_dict

from moejax.config import parse_argument, to_config_dict
from moejax.data.knobs import DataConfig
from moejax.experts import MoeConfig, WidthPlan, ZeroCompute, fine_grained
from moejax.models import ModelConfig
from moejax.models.attention import AttentionConfig, AttentionKind, LatentAttentionConfig
from moejax.routing import LossesConfig, Router
from moejax.routing.losses import Entropy, LoadBalance, ParameterPenalty
from moejax.routing.routers import (
    ExpertChoice,
    Hash,
    MoEPlusPlus,
    NoisyTopK,
    Random,
    ReMoE,
    RoundRobin,
    SigmoidBias,
    TopK,
    TopP,
)
from moejax.train import Experiment
from moejax.train.evaluate import EvaluationConfig
from moejax.train.experiment import TrainConfig
from moejax.train.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class Size:
    """Geometry and training length of one size."""

    d_model: int
    layers: int
    heads: int
    ffn_width: int
    seq_len: int
    batch_size: int
    steps: int | str
    lr: float
    tokenizer: str = "bpe"
    vocab_size: int = 2048
    eval_tokens: int = 65_536
    attention: AttentionKind | None = None
    """None: multi-head attention with `heads` heads."""
    experts: int = 8
    active: int = 2
    expert_width: int = 0
    """0: the active experts are as wide as the dense FFN."""
    shared_width: int = 0
    k_max: int = 0
    first_dense: int = 0
    compute_dtype: str = "float32"
    remat: str = "none"
    loss_chunk: int = 0


def _gqa(heads: int, kv_heads: int) -> AttentionConfig:
    return AttentionConfig(heads=heads, kv_heads=kv_heads, head_dim=128, qk_norm=True)


SIZES = {
    "nano": Size(64, 4, 2, 256, 128, 20, 400, 6e-3, vocab_size=1024, eval_tokens=25_600),
    "tiny": Size(128, 4, 4, 512, 256, 32, "20e6 tokens", 3e-3),
    "mini": Size(256, 6, 4, 768, 512, 64, "100e6 tokens", 2e-3, vocab_size=8192),
    "small": Size(512, 8, 8, 1792, 1024, 128, "600e6 tokens", 1e-3, vocab_size=16384),
    "base": Size(1024, 12, 16, 2048, 2048, 256, "2.5e9 tokens", 6e-4, vocab_size=32768),
    "large": Size(
        1536, 14, 12, 4096, 2048, 512, "7e9 tokens", 5e-4, vocab_size=65_536,
        attention=_gqa(12, 4), compute_dtype="bfloat16", loss_chunk=512,
    ),
    "1b": Size(
        2048, 24, 16, 5120, 4096, 512, "20e9 tokens", 4e-4, vocab_size=65_536,
        attention=_gqa(16, 4), k_max=4,
        compute_dtype="bfloat16", remat="full", loss_chunk=512,
    ),
    "3b": Size(
        3072, 30, 24, 8192, 4096, 1024, "60e9 tokens", 3e-4, vocab_size=65_536,
        attention=_gqa(24, 8), k_max=4,
        compute_dtype="bfloat16", remat="full", loss_chunk=512,
    ),
    "16b": Size(
        2048, 28, 16, 10_944, 4096, 1024, "45e9 tokens", 3e-4, vocab_size=65_536,
        attention=_gqa(16, 4), first_dense=1,
        experts=64, active=6, expert_width=1408, shared_width=2 * 1408, k_max=12,
        compute_dtype="bfloat16", remat="full", loss_chunk=512,
    ),
    "112b": Size(
        4096, 48, 32, 14_336, 4096, 2048, "190e9 tokens", 2.4e-4, vocab_size=131_072,
        attention=_gqa(32, 8), first_dense=1,
        experts=160, active=8, expert_width=1152, shared_width=3 * 1152, k_max=16,
        compute_dtype="bfloat16", remat="full", loss_chunk=512,
    ),
    "671b": Size(
        7168, 61, 128, 18_432, 4096, 4096, "712e9 tokens", 2.2e-4, vocab_size=129_280,
        attention=LatentAttentionConfig(heads=128, q_lora_rank=1536), first_dense=3,
        experts=256, active=8, expert_width=2048, shared_width=2048, k_max=16,
        compute_dtype="bfloat16", remat="full", loss_chunk=512,
    ),
}  # fmt: skip
DEVICES = {"any": "einsum", "tpu": "splash"}
"""Attention's back end."""

UNITS_PER_MEAN = 16
"""Width units of an expert of mean width: HMoE's {9, 11, ..., 23} are whole numbers of them."""


def _kinds(size: Size) -> dict[str, MoeConfig | None]:
    """The MoE layer of each kind."""
    active, width = size.active, size.expert_width or size.ffn_width // size.active
    uniform = WidthPlan(mean=width)
    arithmetic = WidthPlan(strategy="arithmetic", mean=width, unit=width // UNITS_PER_MEAN)
    off = LoadBalance(coefficient=0.0)
    none = LossesConfig(off)
    top_k = MoeConfig(size.experts, uniform, TopK(k=active), shared_width=size.shared_width)

    def routed(router: Router, losses: LossesConfig, widths: WidthPlan = uniform) -> MoeConfig:
        return dataclasses.replace(top_k, router=router, losses=losses, widths=widths)

    huang = TopP(p=0.4, inclusive=False, renormalise=False, k_max=size.k_max)
    hmoe = TopP(p=0.6, inclusive=True, renormalise=True, k_max=size.k_max)
    penalty = ParameterPenalty(0.1)
    v3 = LoadBalance(1e-4, "deepseek", scope="sequence")
    return {
        "top_k": top_k,
        "dense": None,
        "top_p": routed(huang, LossesConfig(LoadBalance(1e-2, "hmoe"), Entropy(1e-4))),
        "hetero_top_k": routed(
            TopK(k=active), LossesConfig(off, parameter_penalty=penalty), arithmetic
        ),
        "hetero_top_p": routed(hmoe, LossesConfig(off, Entropy(3e-2), penalty), arithmetic),
        "noisy_top_k": routed(NoisyTopK(k=active), LossesConfig()),
        "sigmoid_bias": routed(SigmoidBias(k=active), LossesConfig(v3)),
        "fine_grained": fine_grained(top_k, m=4, shared=2),
        "expert_choice": routed(ExpertChoice(factor=float(active)), none),
        "remoe": routed(ReMoE(k=active), none),
        "moe_plus_plus": dataclasses.replace(
            top_k,
            router=MoEPlusPlus(k=active),
            zero_compute=ZeroCompute(constant=2, copy=1, zero=1),
            losses=LossesConfig(LoadBalance(1e-2, "moe_plus_plus", tau=0.75)),
        ),
        "hash": routed(Hash(k=active), none),
        "random": routed(Random(k=active), none),
        "round_robin": routed(RoundRobin(k=active), none),
    }


KINDS = tuple(_kinds(SIZES["nano"]))


def get_config(arg: str | None = None) -> config_dict.ConfigDict:
    """The experiment as a ConfigDict; every key can be overridden with `--config.a.b=value`."""
    choice = parse_argument(arg, size=tuple(SIZES), moe=KINDS, device=tuple(DEVICES), quick=False)
    made = experiment(SIZES[choice.size], choice.moe, choice.device, choice.quick)
    return to_config_dict(dataclasses.replace(made, name=f"{choice.size}-{choice.moe}"))


def experiment(size: Size, moe: str, device: str = "any", quick: bool = False) -> Experiment:
    """The experiment of a geometry and a kind; arguments as in `get_config`."""
    if quick:
        size = dataclasses.replace(
            size,
            d_model=32,
            layers=size.first_dense + 2,
            heads=2,
            ffn_width=64,
            attention=size.attention and size.attention.small(),
            expert_width=size.expert_width and 32,
            shared_width=size.shared_width and 32,
            seq_len=32,
            batch_size=8,
            steps=12,
            vocab_size=320,
        )
    data = DataConfig(
        tokenizer=size.tokenizer, bpe_vocab_size=max(size.vocab_size, 258), seq_len=size.seq_len
    )
    evaluation = EvaluationConfig(
        every="20%", batch_size=size.batch_size, max_tokens=size.eval_tokens
    )
    if quick:
        data = dataclasses.replace(data, limit_bytes=60_000)
        evaluation = dataclasses.replace(evaluation, max_tokens=2048, trace_tokens=1024)
    attention = size.attention or AttentionConfig(heads=size.heads)
    return Experiment(
        model=ModelConfig(
            vocab_size=size.vocab_size,
            d_model=size.d_model,
            num_layers=size.layers,
            ffn_width=size.ffn_width,
            attention=dataclasses.replace(attention, backend=DEVICES[device]),
            moe=_kinds(size)[moe],
            first_dense=size.first_dense,
            allow_noncausal=moe == "expert_choice",
            compute_dtype=size.compute_dtype,
            remat=size.remat,
            loss_chunk=size.loss_chunk,
        ),
        data=data,
        optimizer=OptimizerConfig(lr=size.lr),
        train=TrainConfig(batch_size=size.batch_size, steps=size.steps),
        evaluation=evaluation,
    )
