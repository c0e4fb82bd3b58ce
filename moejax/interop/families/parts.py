"""Parts that families are made of: links of attention, FFNs and experts; pieces of configs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from moejax.config import ConfigError
from moejax.config.widths import WidthPlan
from moejax.experts.config import MoeConfig
from moejax.experts.spec import ExpertsSpec, projections
from moejax.interop.hf_config import MAX_LAYERS, HfConfig, common_record, rope_record
from moejax.interop.links import (
    Arrays,
    Layer,
    Link,
    grouped,
    grouped_row,
    headed,
    linear,
    permuted,
    same,
    transposed,
)
from moejax.models.attention import AttentionConfig, LatentAttentionConfig
from moejax.models.config import ModelConfig
from moejax.routing.routers import SigmoidBias

FUSED = "mlp"
"""Where fused experts are in a layer, of every family (transformers' modules)."""


@dataclasses.dataclass(frozen=True)
class MoeNames:
    """How the tensors of an MoE layer are called, below the layer.

    Attributes:
      block: the layer's FFN, where experts are stored one by one.
      gate, up, down: matrices of an expert.
      shared: the shared expert, below `block`.
      shared_gate: the vector that gates it.
      bias: the router's bias of the selection, below `block`.
    """

    block: str = "mlp"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    shared: str = "shared_expert"
    shared_gate: str = "shared_expert_gate"
    bias: str = "gate.e_score_correction_bias"


def dense_links(
    at: str, layer: Layer, path: Sequence[str], width: int, d_model: int, activation: str
) -> Iterator[Link]:
    """A dense FFN: gate and up as they are, `[F, D]`, and down turned."""
    for name in projections(activation):
        target = layer(*path, f"{name}_FD")
        if name == "down":
            yield transposed(f"{at}.down_proj.weight", d_model, width, target)
        else:
            yield same(f"{at}.{name}_proj.weight", (width, d_model), target)


def gqa_links(attention: AttentionConfig, d_model: int, layer: Layer, at: str) -> Iterator[Link]:
    """Queries, keys, values and output; their biases and norms where the config has them."""
    head = attention.head_dim
    of = {
        "q": (attention.heads, "H"),
        "k": (attention.kv_heads, "G"),
        "v": (attention.kv_heads, "G"),
    }
    for name, (heads, letter) in of.items():
        weight = layer("attention", f"{name}_D{letter}d")
        yield linear(f"{at}.{name}_proj.weight", d_model, (heads, head), weight)
        if attention.qkv_bias:
            bias = layer("attention", f"{name}_bias_{letter}d")
            yield grouped(f"{at}.{name}_proj.bias", (heads, head), bias)
    output = layer("attention", "o_HdD")
    yield headed(f"{at}.o_proj.weight", d_model, (attention.heads, head), output)
    if attention.qk_norm:
        whole = attention.qk_norm_over == "projection"
        for name, heads in (("q", attention.heads), ("k", attention.kv_heads)):
            scale = layer("attention", f"{name}_norm", "scale_D")
            yield same(f"{at}.{name}_norm.weight", (heads * head if whole else head,), scale)


def mla_links(
    attention: LatentAttentionConfig, d_model: int, layer: Layer, interleaved: bool, at: str
) -> Iterator[Link]:
    """Latent attention. Rotary rows stand last in a head; neighbours become halves."""
    heads, rank, q_rank = attention.heads, attention.kv_lora_rank, attention.q_lora_rank
    nope, rope, value = (
        attention.qk_nope_head_dim, attention.qk_rope_head_dim, attention.v_head_dim
    )  # fmt: skip
    query = nope + rope
    pairs = np.arange(rope)
    if interleaved:
        pairs = np.concatenate([pairs[0::2], pairs[1::2]])
    one_head = np.concatenate([np.arange(nope), nope + pairs])
    q_order = (np.arange(heads)[:, None] * query + one_head).reshape(-1)
    kv_order = np.concatenate([np.arange(rank), rank + pairs])

    def leaf(name: str, *inner: str) -> Any:
        return layer("attention", name, *inner)

    if q_rank:
        yield linear(f"{at}.q_a_proj.weight", d_model, (q_rank,), leaf("q_down_DQ"))
        yield same(f"{at}.q_a_layernorm.weight", (q_rank,), leaf("q_norm", "scale_D"))
        up = linear(f"{at}.q_b_proj.weight", q_rank, (heads, query), leaf("q_up_QHd"))
        yield permuted(up, q_order)
    else:
        whole = linear(f"{at}.q_proj.weight", d_model, (heads, query), leaf("q_DHd"))
        yield permuted(whole, q_order)
    down = linear(f"{at}.kv_a_proj_with_mqa.weight", d_model, (rank + rope,), leaf("kv_down_DR"))
    yield permuted(down, kv_order)
    yield same(f"{at}.kv_a_layernorm.weight", (rank,), leaf("kv_norm", "scale_D"))

    def split(x: np.ndarray) -> Arrays:
        by_head = x.reshape(heads, nope + value, rank).transpose(2, 0, 1)
        return by_head[..., :nope], by_head[..., nope:]

    def join(found: Arrays) -> np.ndarray:
        both = np.concatenate(found, axis=-1)
        return both.transpose(1, 2, 0).reshape(heads * (nope + value), rank)

    targets = (leaf("k_up_RHn"), leaf("v_up_RHe"))
    yield Link(f"{at}.kv_b_proj.weight", (heads * (nope + value), rank), targets, split, join)
    yield headed(f"{at}.o_proj.weight", d_model, (heads, value), leaf("o_HeD"))


def moe_links(
    moe: MoeConfig, d_model: int, layer: Layer, names: MoeNames, fused: bool, at: str
) -> Iterator[Link]:
    """Router, experts in either layout, shared expert and its gate."""
    block = f"{at}.{FUSED if fused else names.block}"
    experts = moe.num_experts
    router = layer("ffn", "router", "w_DE")
    yield linear(f"{block}.gate.weight", d_model, (experts,), router)
    if isinstance(moe.router, SigmoidBias):
        bias = layer("ffn", "router_state", "bias_E", tree="router_state")
        yield same(f"{block}.{names.bias}", (experts,), bias)
    if fused:
        yield from fused_links(moe, d_model, layer, block)
    else:
        spec = moe.spec
        # Properties that walk over all experts: asked for once, not once per expert.
        for expert, (start, units) in enumerate(zip(spec.starts, spec.units, strict=True)):
            own = f"{block}.experts.{expert}"
            yield from expert_links(spec, slice(start, start + units), d_model, layer, names, own)
    if moe.shared_width:
        path = ("ffn", "shared")
        yield from dense_links(
            f"{block}.{names.shared}", layer, path, moe.shared_width, d_model, moe.activation
        )
    if moe.shared_gate:
        gate = layer("ffn", "gates", "shared_D")
        yield grouped_row(f"{block}.{names.shared_gate}.weight", d_model, gate)


def expert_links(
    spec: ExpertsSpec, rows: slice, d_model: int, layer: Layer, names: MoeNames, at: str
) -> Iterator[Link]:
    """The matrices of one expert: its units (`rows`) of `gate_NUD, up_NUD, down_NUD`."""
    width = (rows.stop - rows.start) * spec.unit
    for projection in projections(spec.activation):
        target = layer("ffn", "experts", f"{projection}_NUD", rows=rows)
        name = f"{at}.{getattr(names, projection)}.weight"
        yield _units(name, width, spec.unit, d_model, target, turned=projection == "down")


def _units(name: str, width: int, unit: int, d_model: int, target: Any, *, turned: bool) -> Link:
    def split(x: np.ndarray) -> Arrays:
        return ((x.T if turned else x).reshape(width // unit, unit, d_model),)

    def join(parts: Arrays) -> np.ndarray:
        rows = parts[0].reshape(width, d_model)
        return rows.T if turned else rows

    return Link(name, (d_model, width) if turned else (width, d_model), (target,), split, join)


def fused_links(moe: MoeConfig, d_model: int, layer: Layer, block: str) -> Iterator[Link]:
    """All experts of a layer in two tensors; equal widths only."""
    spec = moe.spec
    width, unit, experts = spec.widths[0], spec.unit, moe.num_experts
    units = (experts * (width // unit), unit, d_model)

    def leaf(name: str) -> Any:
        return layer("ffn", "experts", f"{name}_NUD")

    def split(x: np.ndarray) -> Arrays:
        return x[:, :width].reshape(units), x[:, width:].reshape(units)

    def join(parts: Arrays) -> np.ndarray:
        return np.concatenate([part.reshape(experts, width, d_model) for part in parts], axis=1)

    shape = (experts, 2 * width, d_model)
    targets = (leaf("gate"), leaf("up"))
    yield Link(f"{block}.experts.gate_up_proj", shape, targets, split, join)

    def split_down(x: np.ndarray) -> Arrays:
        return (x.swapaxes(1, 2).reshape(units),)

    def join_down(parts: Arrays) -> np.ndarray:
        return parts[0].reshape(experts, width, d_model).swapaxes(1, 2)

    name = f"{block}.experts.down_proj"
    yield Link(name, (experts, d_model, width), (leaf("down"),), split_down, join_down)


def read_gqa(config: HfConfig, *, theta: float = 10_000.0, **knobs: Any) -> AttentionConfig:
    """Grouped-query attention of a config; `theta` is transformers' default of the family."""
    heads, width = config.size("num_attention_heads"), config.size("hidden_size")
    head_dim = config.size("head_dim", 0, least=0) or width // heads
    theta, yarn, llama3 = config.rope(theta=theta)
    config.must_be("rope_interleaved", False, why="pairs of neighbours are not rotated")
    return AttentionConfig(
        heads=heads,
        kv_heads=config.size("num_key_value_heads", heads),
        head_dim=head_dim,
        rope_theta=theta,
        yarn=yarn,
        llama3=llama3,
        **knobs,
    )


def no_biases(config: HfConfig, *keys: str) -> None:
    """Refuses biases, except of queries, keys and values where the family has them."""
    for key in keys:
        config.must_be(key, False, why="its linear maps have no biases here")


def write_gqa(model: ModelConfig) -> dict[str, Any]:
    """The keys of `read_gqa`, and those that all families share."""
    attention = model.attention.resolve(model.d_model)
    if not isinstance(attention, AttentionConfig):
        raise ConfigError("latent attention (model.attention.name=mla) is another family's")
    return common_record(model) | {
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "rope_parameters": rope_record(attention.rope_theta, attention.yarn, attention.llama3),
        "intermediate_size": model.ffn_width,
    }


def read_common(config: HfConfig, norm_eps: float, *, tied: bool = False) -> dict[str, Any]:
    """Knobs of `ModelConfig` that all families share; what is missing is transformers' default."""
    return {
        "vocab_size": config.size("vocab_size", least=2),
        "d_model": config.size("hidden_size", least=2),
        "num_layers": config.size("num_hidden_layers", most=MAX_LAYERS),
        "activation": config.activation(),
        "tied_embeddings": config.flag("tie_word_embeddings", tied),
        "norm_eps": config.number("rms_norm_eps", norm_eps),
    }


def uniform(width: int) -> WidthPlan:
    """Experts of one width."""
    return WidthPlan(mean=width)


def only_moe(model: ModelConfig) -> MoeConfig:
    """The one MoE layer that all MoE layers of a model are.

    Raises:
      ConfigError: there is none, or they differ.
    """
    found = {moe for moe in model.plan() if moe is not None}
    if not found:
        raise ConfigError("the model is dense: it has no MoE layer")
    if len(found) > 1:
        raise ConfigError("its MoE layers differ (model.moe_variants); all must be the same")
    return found.pop()


def require(model: ModelConfig, *, moe: bool) -> None:
    """Refuses a model with MoE layers for a dense family, and the reverse."""
    if not moe and any(model.plan()):
        raise ConfigError("the model has MoE layers (model.moe), the family has none")
    if moe:
        only_moe(model)
