"""Mixtral: a Mistral with experts; top-k weights are a softmax over the chosen logits."""

from __future__ import annotations

from typing import Any

from moejax.experts.config import MoeConfig
from moejax.interop.families import parts
from moejax.interop.families.contract import Family, register
from moejax.interop.hf_config import MAX_EXPERTS, HfConfig
from moejax.models.config import ModelConfig
from moejax.routing.routers import TopK


@register
class Mixtral(Family):
    """Mixtral 8x7B, 8x22B: w1 is the gate, w3 goes up, w2 down."""

    model_type = "mixtral"
    architecture = "MixtralForCausalLM"
    names = parts.MoeNames(block="block_sparse_moe", gate="w1", up="w3", down="w2")

    def read_config(self, config: HfConfig, max_seq_len: int | None) -> ModelConfig:
        window = config.size("sliding_window", 0, least=0) or None
        common = parts.read_common(config, 1e-5)
        width = config.size("intermediate_size")
        return ModelConfig(
            **common,
            ffn_width=width,
            attention=parts.read_gqa(config, theta=1e6),
            moe=MoeConfig(
                experts=config.size("num_local_experts", most=MAX_EXPERTS),
                widths=parts.uniform(width),
                router=TopK(k=config.size("num_experts_per_tok"), renormalise=True),
                activation=common["activation"],
            ),
            max_seq_len=config.max_seq_len(max_seq_len, window),
        )

    def write_config(self, model: ModelConfig) -> dict[str, Any]:
        moe = parts.only_moe(model)
        return parts.write_gqa(model) | {
            "intermediate_size": moe.spec.widths[0],
            "num_local_experts": moe.num_experts,
            "num_experts_per_tok": moe.router.slots(moe.num_experts),
            "sliding_window": None,
        }
