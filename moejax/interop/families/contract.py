"""What a family of checkpoints is: how its config reads and writes, and how its tensors are named.

A family never says which models it takes: `write_config` writes what it can, and whoever exports
reads the result back and compares (`moejax.interop.exporting`). So a feature that a family lacks
is refused, whether or not its author has thought of it.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar

from moejax.config import ConfigError, nearest
from moejax.experts.config import MoeConfig
from moejax.interop.families import parts
from moejax.interop.hf_config import HfConfig
from moejax.interop.links import Layer, Link, Target, layers, same
from moejax.interop.safetensors import shown
from moejax.models.attention import AttentionConfig, LatentAttentionConfig
from moejax.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a file stores what a family can store in two ways.

    Attributes:
      fused: layers whose experts are two 3-D tensors (`experts.gate_up_proj [E, 2F, D]`,
        `experts.down_proj [E, D, F]`; transformers' modules since 5.0) instead of three per expert.
      interleaved: rotary pairs are neighbours, `(x[2i], x[2i + 1])`.
    """

    fused: frozenset[int] = frozenset()
    interleaved: bool = False


class Family(abc.ABC):
    """A `model_type` of transformers.

    Attributes:
      model_type, architecture: as config.json says them.
      names: how the tensors of an MoE layer are called.
      interleaved: default of `Layout.interleaved`.
      native: transformers itself has it; else it is remote code.
    """

    model_type: ClassVar[str]
    architecture: ClassVar[str]
    names: ClassVar[parts.MoeNames] = parts.MoeNames()
    interleaved: ClassVar[bool] = False
    native: ClassVar[bool] = True

    @abc.abstractmethod
    def read_config(self, config: HfConfig, max_seq_len: int | None) -> ModelConfig:
        """Our model of a config.json.

        Args:
          config: what it says; every key that matters must be asked for.
          max_seq_len: bound of the length, or None for the config's own.

        Raises:
          ConfigError: it says something that our models are not.
        """

    @abc.abstractmethod
    def write_config(self, model: ModelConfig) -> dict[str, Any]:
        """The config.json of a model, as well as the family can express it."""

    def layout(self, record: Mapping[str, Any], names: Collection[str]) -> Layout:
        """How a file with these tensors is laid out."""
        del record
        fused = set()
        for name in names:
            head, _, tail = name.partition(f".{parts.FUSED}.experts.gate_up_proj")
            number = head.removeprefix("model.layers.")
            # Of a number that no layer has, the accounting will say more.
            if not tail and number != head and number.isdecimal() and len(number) < 6:
                fused.add(int(number))
        return Layout(frozenset(fused), self.interleaved)

    def links(self, model: ModelConfig, layout: Layout) -> Iterator[Link]:
        """Every tensor of a checkpoint of this model, in the order of a file."""
        width, vocab = model.d_model, model.vocab_size
        yield same(
            "model.embed_tokens.weight", (vocab, width), Target(("params", "embed", "table_VD"))
        )
        plan = model.plan()
        for layer in layers(model):
            at = f"model.layers.{layer.index}"
            yield same(f"{at}.input_layernorm.weight", (width,), layer("attention_norm", "scale_D"))
            yield from self.attention_links(model, layer, layout, f"{at}.self_attn")
            yield same(
                f"{at}.post_attention_layernorm.weight", (width,), layer("ffn_norm", "scale_D")
            )
            moe = plan[layer.index]
            if moe is None:
                yield from parts.dense_links(
                    f"{at}.mlp", layer, ("ffn",), model.ffn_width, width, model.activation
                )
            else:
                fused = layer.index in layout.fused
                yield from self.moe_links(model, moe, layer, fused, at)
        yield same("model.norm.weight", (width,), Target(("params", "final_norm", "scale_D")))
        if not model.tied_embeddings:
            yield same("lm_head.weight", (vocab, width), Target(("params", "head", "table_VD")))

    def attention_links(
        self, model: ModelConfig, layer: Layer, layout: Layout, at: str
    ) -> Iterator[Link]:
        """The tensors of one attention layer."""
        attention = model.attention.resolve(model.d_model)
        if isinstance(attention, LatentAttentionConfig):
            return parts.mla_links(attention, model.d_model, layer, layout.interleaved, at)
        assert isinstance(attention, AttentionConfig)
        return parts.gqa_links(attention, model.d_model, layer, at)

    def moe_links(
        self, model: ModelConfig, moe: MoeConfig, layer: Layer, fused: bool, at: str
    ) -> Iterator[Link]:
        """The tensors of one MoE layer."""
        return parts.moe_links(moe, model.d_model, layer, self.names, fused, at)


FAMILIES: dict[str, Family] = {}
"""Families by `model_type`."""


def register(family: type[Family]) -> type[Family]:
    """Makes a family known; a class decorator."""
    FAMILIES[family.model_type] = family()
    return family


def family_of(model_type: Any, where: str = "config.json") -> Family:
    """The family of a `model_type`.

    Raises:
      ConfigError: there is none.
    """
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        hint = nearest(model_type, FAMILIES) if isinstance(model_type, str) else ""
        raise ConfigError(
            f"{where}: model_type={shown(model_type)}: unknown family{hint}; known: "
            f"{', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[model_type]
