"""Llama, SmolLM2 (a Llama) and Mistral: dense, grouped-query attention, no biases."""

from __future__ import annotations

from typing import Any

from moejax.interop.families import parts
from moejax.interop.families.contract import Family, register
from moejax.interop.hf_config import HfConfig
from moejax.models.config import ModelConfig


@register
class Llama(Family):
    """Llama 1 to 3 and everything built like it."""

    model_type = "llama"
    architecture = "LlamaForCausalLM"

    def read_config(self, config: HfConfig, max_seq_len: int | None) -> ModelConfig:
        parts.no_biases(config, "attention_bias", "mlp_bias")
        return ModelConfig(
            **parts.read_common(config, 1e-6),
            ffn_width=config.size("intermediate_size"),
            attention=parts.read_gqa(config),
            max_seq_len=config.max_seq_len(max_seq_len),
        )

    def write_config(self, model: ModelConfig) -> dict[str, Any]:
        parts.require(model, moe=False)
        return parts.write_gqa(model) | {"attention_bias": False, "mlp_bias": False}


@register
class Mistral(Family):
    """Mistral 7B and its relatives: a Llama whose attention may have a window."""

    model_type = "mistral"
    architecture = "MistralForCausalLM"

    def read_config(self, config: HfConfig, max_seq_len: int | None) -> ModelConfig:
        # Not mentioned, transformers makes it 4096; null is none.
        unsaid = 0 if "sliding_window" in config.record else 4096
        window = config.size("sliding_window", unsaid, least=0) or None
        return ModelConfig(
            **parts.read_common(config, 1e-6),
            ffn_width=config.size("intermediate_size"),
            attention=parts.read_gqa(config),
            max_seq_len=config.max_seq_len(max_seq_len, window),
        )

    def write_config(self, model: ModelConfig) -> dict[str, Any]:
        parts.require(model, moe=False)
        return parts.write_gqa(model) | {"sliding_window": None}
