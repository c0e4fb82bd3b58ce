"""DeepSeekMoE, DeepSeek-V2 and V3: fine-grained and shared experts, MLA, YaRN."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from moejax.config import ConfigError
from moejax.experts.config import MoeConfig
from moejax.interop.families import parts
from moejax.interop.families.contract import Family, Layout, register
from moejax.interop.hf_config import MAX_EXPERTS, HfConfig, common_record, rope_record
from moejax.models.attention import LatentAttentionConfig
from moejax.models.config import ModelConfig
from moejax.models.rope import Llama3Rope
from moejax.routing.contract import Router
from moejax.routing.routers import SigmoidBias, TopK

LATENT_NORM_EPS = 1e-6
"""Of the latents' norms in their code, whatever `rms_norm_eps` says."""

NAMES = parts.MoeNames(shared="shared_experts")


def _moe_knobs(config: HfConfig, activation: str, router: Router) -> dict[str, Any]:
    width = config.size("moe_intermediate_size")
    config.must_be("moe_layer_freq", 1, why="every layer after the first dense ones is MoE here")
    return {
        "first_dense": config.size("first_k_dense_replace", 0, least=0),
        "ffn_width": config.size("intermediate_size"),
        "moe": MoeConfig(
            experts=config.size("n_routed_experts", most=MAX_EXPERTS),
            widths=parts.uniform(width),
            router=router,
            shared_width=width * config.size("n_shared_experts", 0, least=0),
            activation=activation,
        ),
    }


def _moe_record(model: ModelConfig) -> dict[str, Any]:
    moe = parts.only_moe(model)
    width = moe.spec.widths[0]
    if width and moe.shared_width % width:
        raise ConfigError(
            f"model.moe.shared_width={moe.shared_width}: shared experts are as wide as routed ones "
            f"({width}); nearest valid value {max(width, round(moe.shared_width / width) * width)}"
        )
    return {
        "first_k_dense_replace": next(i for i, layer in enumerate(model.plan()) if layer),
        "intermediate_size": model.ffn_width,
        "moe_intermediate_size": width,
        "moe_layer_freq": 1,
        "n_routed_experts": moe.num_experts,
        "n_shared_experts": moe.shared_width // width if width else 0,
        "num_experts_per_tok": moe.router.slots(moe.num_experts),
    }


@register
class DeepseekMoe(Family):
    """DeepSeekMoE 16B (2401.06066): multi-head attention; transformers runs it by remote code
    only."""

    model_type = "deepseek"
    architecture = "DeepseekForCausalLM"
    names = NAMES
    native = False

    def read_config(self, config: HfConfig, max_seq_len: int | None) -> ModelConfig:
        parts.no_biases(config, "attention_bias")
        config.must_be("scoring_func", "softmax", why="scores are a softmax here")
        common = parts.read_common(config, 1e-6)
        router = TopK(
            k=config.size("num_experts_per_tok"), renormalise=config.flag("norm_topk_prob", False)
        )
        return ModelConfig(
            **common,
            **_moe_knobs(config, common["activation"], router),
            attention=parts.read_gqa(config),
            max_seq_len=config.max_seq_len(max_seq_len),
        )

    def write_config(self, model: ModelConfig) -> dict[str, Any]:
        router = parts.only_moe(model).router
        return parts.write_gqa(model) | _moe_record(model) | {
            "attention_bias": False,
            "norm_topk_prob": bool(getattr(router, "renormalise", False)),
            "scoring_func": "softmax",
        }  # fmt: skip


def _read_mla(config: HfConfig) -> LatentAttentionConfig:
    parts.no_biases(config, "attention_bias", "mlp_bias")
    heads, rope = config.size("num_attention_heads"), config.size("qk_rope_head_dim")
    config.must_be("num_key_value_heads", heads, why="all heads share one latent")
    config.must_be("head_dim", rope, why="what is rotated is the rotary part")
    theta, yarn, _ = config.rope(latent=True)
    return LatentAttentionConfig(
        heads=heads,
        q_lora_rank=config.size("q_lora_rank", 0, least=0),
        kv_lora_rank=config.size("kv_lora_rank"),
        qk_nope_head_dim=config.size("qk_nope_head_dim"),
        qk_rope_head_dim=rope,
        v_head_dim=config.size("v_head_dim"),
        rope_theta=theta,
        latent_norm_eps=LATENT_NORM_EPS,
        yarn=yarn,
    )


def _write_mla(model: ModelConfig) -> dict[str, Any]:
    attention = model.attention.resolve(model.d_model)
    if not isinstance(attention, LatentAttentionConfig):
        raise ConfigError("grouped-query attention (model.attention.name=gqa) is another family's")
    return common_record(model) | {
        "attention_bias": False,
        "kv_lora_rank": attention.kv_lora_rank,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.heads,
        "q_lora_rank": attention.q_lora_rank or None,
        "qk_nope_head_dim": attention.qk_nope_head_dim,
        "qk_rope_head_dim": attention.qk_rope_head_dim,
        "rope_parameters": rope_record(attention.rope_theta, attention.yarn, Llama3Rope()),
        "v_head_dim": attention.v_head_dim,
    }


@register
class DeepseekV2(Family):
    """DeepSeek-V2 and V2-Lite: softmax scores, raw weights times a factor, groups by their best."""

    model_type = "deepseek_v2"
    architecture = "DeepseekV2ForCausalLM"
    names = NAMES
    interleaved = True

    def read_config(self, config: HfConfig, max_seq_len: int | None) -> ModelConfig:
        config.must_be("scoring_func", "softmax", why="scores are a softmax here")
        config.must_be(
            "norm_topk_prob",
            False,
            why="transformers ignores it and the released code does not (no released model sets "
            "it), so what it means is not known",
        )
        config.must_be(
            "topk_method", "greedy", "group_limited_greedy", why="no such selection here"
        )
        limited = config.record.get("topk_method") == "group_limited_greedy"
        groups = config.size("n_group", 1), config.size("topk_group", 1)
        common = parts.read_common(config, 1e-6)
        router = TopK(
            k=config.size("num_experts_per_tok"),
            renormalise=False,
            scale=config.number("routed_scaling_factor", 1.0),
            groups=groups[0] if limited else 1,
            groups_kept=groups[1] if limited else 1,
        )
        return ModelConfig(
            **common,
            **_moe_knobs(config, common["activation"], router),
            attention=_read_mla(config),
            max_seq_len=config.max_seq_len(max_seq_len),
        )

    def write_config(self, model: ModelConfig) -> dict[str, Any]:
        router = parts.only_moe(model).router
        groups = getattr(router, "groups", 1)
        return _write_mla(model) | _moe_record(model) | {
            "mlp_bias": False,
            "n_group": groups,
            "norm_topk_prob": False,
            "routed_scaling_factor": getattr(router, "scale", 1.0),
            "scoring_func": "softmax",
            "topk_group": getattr(router, "groups_kept", 1),
            "topk_method": "group_limited_greedy" if groups > 1 else "greedy",
        }  # fmt: skip


@register
class DeepseekV3(Family):
    """DeepSeek-V3, R1: sigmoid scores, a bias that only selects, groups by their two best."""

    model_type = "deepseek_v3"
    architecture = "DeepseekV3ForCausalLM"
    names = NAMES
    interleaved = True

    def layout(self, record: Mapping[str, Any], names: Collection[str]) -> Layout:
        interleaved = record.get("rope_interleave", True) is not False
        return Layout(super().layout(record, names).fused, interleaved)

    def read_config(self, config: HfConfig, max_seq_len: int | None) -> ModelConfig:
        config.must_be("scoring_func", "sigmoid", why="scores are sigmoids here")
        config.must_be("topk_method", "noaux_tc", why="the selection is by biased scores here")
        config.flag("rope_interleave", True)  # of the file's layout
        common = parts.read_common(config, 1e-6)
        router = SigmoidBias(
            k=config.size("num_experts_per_tok"),
            renormalise=config.flag("norm_topk_prob", True),
            scale=config.number("routed_scaling_factor", 2.5),
            groups=config.size("n_group"),
            groups_kept=config.size("topk_group"),
        )
        return ModelConfig(
            **common,
            **_moe_knobs(config, common["activation"], router),
            attention=_read_mla(config),
            max_seq_len=config.max_seq_len(max_seq_len),
        )

    def write_config(self, model: ModelConfig) -> dict[str, Any]:
        router = parts.only_moe(model).router
        return _write_mla(model) | _moe_record(model) | {
            "n_group": getattr(router, "groups", 1),
            "norm_topk_prob": bool(getattr(router, "renormalise", True)),
            "num_nextn_predict_layers": 0,
            "rope_interleave": True,
            "routed_scaling_factor": getattr(router, "scale", 1.0),
            "scoring_func": "sigmoid",
            "topk_group": getattr(router, "groups_kept", 1),
            "topk_method": "noaux_tc",
        }  # fmt: skip
