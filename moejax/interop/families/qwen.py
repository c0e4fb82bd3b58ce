"""Qwen 2 and 3, dense and with experts: biases of queries, keys and values in 2, QK-norm in 3."""

from __future__ import annotations

from typing import Any

from moejax.config import ConfigError
from moejax.experts.config import MoeConfig
from moejax.interop.families import parts
from moejax.interop.families.contract import Family, register
from moejax.interop.hf_config import MAX_EXPERTS, HfConfig
from moejax.models.attention import AttentionConfig
from moejax.models.config import ModelConfig
from moejax.routing.routers import TopK


def _window(config: HfConfig) -> int | None:
    """The sliding window, of a family that has a switch for it."""
    window = config.size("sliding_window", 0, least=0) or None
    config.size("max_window_layers", 0, least=0)  # of the window alone
    layers = config.record.get("layer_types") or []
    config.must_be("layer_types", layers, why="")
    if config.flag("use_sliding_window", False):
        return window
    if set(map(str, layers)) - {"full_attention"}:
        raise ConfigError(
            f"{config.where}: layer_types: attention here has no window; nearest valid value "
            "'full_attention' in every layer"
        )
    return None


@register
class Qwen2(Family):
    """Qwen 1.5, 2 and 2.5."""

    model_type = "qwen2"
    architecture = "Qwen2ForCausalLM"

    def read_config(self, config: HfConfig, max_seq_len: int | None) -> ModelConfig:
        return ModelConfig(
            **parts.read_common(config, 1e-6),
            ffn_width=config.size("intermediate_size"),
            attention=parts.read_gqa(config, qkv_bias=True),
            max_seq_len=config.max_seq_len(max_seq_len, _window(config)),
        )

    def write_config(self, model: ModelConfig) -> dict[str, Any]:
        parts.require(model, moe=False)
        return parts.write_gqa(model) | {"use_sliding_window": False}


@register
class Qwen3(Family):
    """Qwen 3, dense."""

    model_type = "qwen3"
    architecture = "Qwen3ForCausalLM"

    def read_config(self, config: HfConfig, max_seq_len: int | None) -> ModelConfig:
        parts.no_biases(config, "attention_bias")
        return ModelConfig(
            **parts.read_common(config, 1e-6),
            ffn_width=config.size("intermediate_size"),
            attention=parts.read_gqa(config, qk_norm=True),
            max_seq_len=config.max_seq_len(max_seq_len, _window(config)),
        )

    def write_config(self, model: ModelConfig) -> dict[str, Any]:
        parts.require(model, moe=False)
        return parts.write_gqa(model) | {"attention_bias": False, "use_sliding_window": False}


def _moe_model(
    config: HfConfig, attention: AttentionConfig, max_seq_len: int | None, **moe: Any
) -> ModelConfig:
    """What both MoE generations share: which layers are MoE, and their routed experts."""
    common = parts.read_common(config, 1e-6)
    count, every = common["num_layers"], config.size("decoder_sparse_step", 1)
    dense = set(config.sizes("mlp_only_layers"))
    kinds = tuple(
        "moe" if index not in dense and (index + 1) % every == 0 else "dense"
        for index in range(count)
    )
    if "moe" not in kinds:
        raise ConfigError(
            f"{config.where}: decoder_sparse_step={every} and mlp_only_layers leave no MoE layer"
        )
    names = ("num_experts", "num_local_experts")  # transformers has written both
    experts = [
        config.size(name, most=MAX_EXPERTS) for name in names if config.record.get(name) is not None
    ]
    if len(set(experts)) != 1:
        raise ConfigError(f"{config.where}: lacks num_experts, or says it in two ways: {experts}")
    return ModelConfig(
        **common,
        ffn_width=config.size("intermediate_size"),
        attention=attention,
        moe=MoeConfig(
            experts=experts[0],
            widths=parts.uniform(config.size("moe_intermediate_size")),
            router=TopK(
                k=config.size("num_experts_per_tok"),
                renormalise=config.flag("norm_topk_prob", False),
            ),
            activation=common["activation"],
            **moe,
        ),
        # `layers` only where the simple rule does not say it: it is easier to change.
        **({"layers": kinds} if dense else {"moe_every": every}),
        max_seq_len=config.max_seq_len(max_seq_len, _window(config)),
    )


def _moe_record(model: ModelConfig) -> dict[str, Any]:
    moe = parts.only_moe(model)
    dense = [index for index, layer in enumerate(model.plan()) if layer is None]
    return parts.write_gqa(model) | {
        "decoder_sparse_step": 1,
        "mlp_only_layers": dense,
        "moe_intermediate_size": moe.spec.widths[0],
        "norm_topk_prob": bool(getattr(moe.router, "renormalise", False)),
        "num_experts": moe.num_experts,
        "num_experts_per_tok": moe.router.slots(moe.num_experts),
        "use_sliding_window": False,
    }


@register
class Qwen2Moe(Family):
    """Qwen1.5-MoE, Qwen2-57B-A14B: one shared expert behind a sigmoid gate."""

    model_type = "qwen2_moe"
    architecture = "Qwen2MoeForCausalLM"

    def read_config(self, config: HfConfig, max_seq_len: int | None) -> ModelConfig:
        attention = parts.read_gqa(config, qkv_bias=config.flag("qkv_bias", True))
        shared = config.size("shared_expert_intermediate_size")
        return _moe_model(config, attention, max_seq_len, shared_width=shared, shared_gate=True)

    def write_config(self, model: ModelConfig) -> dict[str, Any]:
        attention = model.attention
        bias = isinstance(attention, AttentionConfig) and attention.qkv_bias
        shared = parts.only_moe(model).shared_width
        return _moe_record(model) | {"qkv_bias": bias, "shared_expert_intermediate_size": shared}


@register
class Qwen3Moe(Family):
    """Qwen3-30B-A3B, Qwen3-235B-A22B: no shared expert."""

    model_type = "qwen3_moe"
    architecture = "Qwen3MoeForCausalLM"

    def read_config(self, config: HfConfig, max_seq_len: int | None) -> ModelConfig:
        parts.no_biases(config, "attention_bias")
        return _moe_model(config, parts.read_gqa(config, qk_norm=True), max_seq_len)

    def write_config(self, model: ModelConfig) -> dict[str, Any]:
        return _moe_record(model) | {"attention_bias": False}
