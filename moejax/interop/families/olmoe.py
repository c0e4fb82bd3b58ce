"""OLMoE: QK-norm over all heads, many small experts, raw softmax weights."""

from __future__ import annotations

from typing import Any

from moejax.experts.config import MoeConfig
from moejax.interop.families import parts
from moejax.interop.families.contract import Family, register
from moejax.interop.hf_config import MAX_EXPERTS, HfConfig
from moejax.models.attention import AttentionConfig
from moejax.models.config import ModelConfig
from moejax.routing.routers import TopK


@register
class Olmoe(Family):
    """OLMoE-1B-7B."""

    model_type = "olmoe"
    architecture = "OlmoeForCausalLM"

    def read_config(self, config: HfConfig, max_seq_len: int | None) -> ModelConfig:
        parts.no_biases(config, "attention_bias")
        common = parts.read_common(config, 1e-5)
        width = config.size("intermediate_size")
        head_dim = common["d_model"] // config.size("num_attention_heads")
        config.must_be("head_dim", head_dim, why="the norms of queries and keys are d_model wide")
        attention = parts.read_gqa(
            config,
            qk_norm=True,
            qk_norm_over="projection",
            clip_qkv=config.number("clip_qkv", 0.0),
        )
        return ModelConfig(
            **common,
            ffn_width=width,
            attention=attention,
            moe=MoeConfig(
                experts=config.size("num_experts", most=MAX_EXPERTS),
                widths=parts.uniform(width),
                router=TopK(
                    k=config.size("num_experts_per_tok"),
                    renormalise=config.flag("norm_topk_prob", False),
                ),
                activation=common["activation"],
            ),
            max_seq_len=config.max_seq_len(max_seq_len),
        )

    def write_config(self, model: ModelConfig) -> dict[str, Any]:
        moe = parts.only_moe(model)
        record = parts.write_gqa(model)
        del record["head_dim"]  # transformers has it follow from the model width
        attention = model.attention
        assert isinstance(attention, AttentionConfig)
        return record | {
            "attention_bias": False,
            "clip_qkv": attention.clip_qkv or None,
            "intermediate_size": moe.spec.widths[0],
            "num_experts": moe.num_experts,
            "num_experts_per_tok": moe.router.slots(moe.num_experts),
            "norm_topk_prob": bool(getattr(moe.router, "renormalise", False)),
        }
