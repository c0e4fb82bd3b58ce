"""Language models: `--config=configs/lm.py:size=nano,moe=top_p[,quick=true]`.

sizes  nano 0.26M, tiny 1.0M, mini 5.1M, small 30M, base 126M active non-embedding parameters
moe    dense, top_k, top_p, hetero_top_k, hetero_top_p, noisy_top_k, sigmoid_bias, fine_grained,
       expert_choice, remoe, moe_plus_plus, hash, random, round_robin
quick  shrinks sizes and steps only, to seconds

All kinds of one size have the same active FLOPs per token at a mean activation of two experts:
eight experts of half the dense width each (four times the parameters of the dense FFN), or HMoE's
arithmetic widths with the same sum; `fine_grained` cuts them into quarters, two of them shared;
four more experts of `moe_plus_plus` compute nothing, which makes it cheaper. What is really used is
measured.
"""

from __future__ import annotations

import dataclasses

from ml_collections import config_dict

from moejax.config import parse_argument, to_config_dict
from moejax.data.knobs import DataConfig
from moejax.experts import MoeConfig, WidthPlan, ZeroCompute, fine_grained
from moejax.models import ModelConfig
from moejax.models.attention import AttentionConfig
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


SIZES = {
    "nano": Size(64, 4, 2, 256, 128, 20, 400, 6e-3, vocab_size=1024, eval_tokens=25_600),
    "tiny": Size(128, 4, 4, 512, 256, 32, "20e6 tokens", 3e-3),
    "mini": Size(256, 6, 4, 768, 512, 64, "100e6 tokens", 2e-3, vocab_size=8192),
    "small": Size(512, 8, 8, 1792, 1024, 128, "600e6 tokens", 1e-3, vocab_size=16384),
    "base": Size(1024, 12, 16, 2048, 2048, 256, "2.5e9 tokens", 6e-4, vocab_size=32768),
}

EXPERTS, ACTIVE = 8, 2
UNITS_PER_MEAN = 16
"""Width units of an expert of mean width: HMoE's {9, 11, ..., 23} are whole numbers of them."""


def _kinds(width: int) -> dict[str, MoeConfig | None]:
    """The MoE layer of each kind, at `width` hidden units of an expert."""
    uniform = WidthPlan(mean=width)
    arithmetic = WidthPlan(strategy="arithmetic", mean=width, unit=width // UNITS_PER_MEAN)
    off = LoadBalance(coefficient=0.0)
    none = LossesConfig(off)
    top_k = MoeConfig(EXPERTS, uniform, TopK(k=ACTIVE))

    def routed(router: Router, losses: LossesConfig, widths: WidthPlan = uniform) -> MoeConfig:
        return dataclasses.replace(top_k, router=router, losses=losses, widths=widths)

    huang = TopP(p=0.4, inclusive=False, renormalise=False)
    hmoe = TopP(p=0.6, inclusive=True, renormalise=True)
    penalty = ParameterPenalty(0.1)
    v3 = LoadBalance(1e-4, "deepseek", scope="sequence")
    return {
        "top_k": top_k,
        "dense": None,
        "top_p": routed(huang, LossesConfig(LoadBalance(1e-2, "hmoe"), Entropy(1e-4))),
        "hetero_top_k": routed(
            TopK(k=ACTIVE), LossesConfig(off, parameter_penalty=penalty), arithmetic
        ),
        "hetero_top_p": routed(hmoe, LossesConfig(off, Entropy(3e-2), penalty), arithmetic),
        "noisy_top_k": routed(NoisyTopK(k=ACTIVE), LossesConfig()),
        "sigmoid_bias": routed(SigmoidBias(k=ACTIVE), LossesConfig(v3)),
        "fine_grained": fine_grained(top_k, m=4, shared=2),
        "expert_choice": routed(ExpertChoice(factor=float(ACTIVE)), none),
        "remoe": routed(ReMoE(k=ACTIVE), none),
        "moe_plus_plus": dataclasses.replace(
            top_k,
            router=MoEPlusPlus(k=ACTIVE),
            zero_compute=ZeroCompute(constant=2, copy=1, zero=1),
            losses=LossesConfig(LoadBalance(1e-2, "moe_plus_plus", tau=0.75)),
        ),
        "hash": routed(Hash(k=ACTIVE), none),
        "random": routed(Random(k=ACTIVE), none),
        "round_robin": routed(RoundRobin(k=ACTIVE), none),
    }


KINDS = tuple(_kinds(UNITS_PER_MEAN))


def get_config(arg: str | None = None) -> config_dict.ConfigDict:
    """The experiment as a ConfigDict; every key can be overridden with `--config.a.b=value`."""
    choice = parse_argument(arg, size=tuple(SIZES), moe=KINDS, quick=False)
    size = SIZES[choice.size]
    if choice.quick:
        size = dataclasses.replace(
            size,
            d_model=32,
            layers=2,
            heads=2,
            ffn_width=64,
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
    if choice.quick:
        data = dataclasses.replace(data, limit_bytes=60_000)
        evaluation = dataclasses.replace(evaluation, max_tokens=2048, trace_tokens=1024)
    experiment = Experiment(
        name=f"{choice.size}-{choice.moe}",
        model=ModelConfig(
            vocab_size=size.vocab_size,
            d_model=size.d_model,
            num_layers=size.layers,
            ffn_width=size.ffn_width,
            attention=AttentionConfig(heads=size.heads),
            moe=_kinds(size.ffn_width // ACTIVE)[choice.moe],
            allow_noncausal=choice.moe == "expert_choice",
        ),
        data=data,
        optimizer=OptimizerConfig(lr=size.lr),
        train=TrainConfig(batch_size=size.batch_size, steps=size.steps),
        evaluation=evaluation,
    )
    return to_config_dict(experiment)
