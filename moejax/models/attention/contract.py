"""The attention contract: `(x, inputs, cache) -> (y, cache)`, its caches, and its registry."""

from __future__ import annotations

import abc
import dataclasses
import functools
from typing import Any, Protocol, Self, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from moejax.config.counts import LayerShape
from moejax.config.knobs import ConfigError
from moejax.config.registry import Registry
from moejax.models.attention.backends import PLATFORMS

ATTENTIONS = Registry("attention")
"""Kinds of attention by name: `model.attention.name` chooses one."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["positions_BS", "segment_ids_BS"],
    meta_fields=["mesh"],
)
@dataclasses.dataclass(frozen=True)
class AttentionInputs:
    """What attention needs to know about the tokens at hand.

    Attributes:
      positions_BS: int32 `[B, S]`, position inside the document.
      segment_ids_BS: int32 `[B, S]`, document number within the row; 0 is padding.
      mesh: static; where rows and heads lie, for back ends that the compiler cannot split itself.
    """

    positions_BS: jax.Array
    segment_ids_BS: jax.Array
    mesh: Mesh | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of the tokens seen so far, in a buffer of `C` places.

    Attributes:
      k_BCHd, v_BCHd: `[B, C, KV heads, head dim]`.
      segment_ids_BC: int32 `[B, C]`; 0 where nothing is stored.
      length: int32 scalar, places in use.
    """

    k_BCHd: jax.Array
    v_BCHd: jax.Array
    segment_ids_BC: jax.Array
    length: jax.Array

    @staticmethod
    def empty(batch: int, capacity: int, kv_heads: int, head_dim: int, dtype: jnp.dtype) -> KVCache:
        """A cache that holds nothing."""
        zeros = jnp.zeros((batch, capacity, kv_heads, head_dim), dtype)
        ids = jnp.zeros((batch, capacity), jnp.int32)
        return KVCache(zeros, zeros, ids, jnp.zeros((), jnp.int32))

    def append(self, k_BSHd: jax.Array, v_BSHd: jax.Array, segment_ids_BS: jax.Array) -> KVCache:
        """The cache with `S` more tokens. The caller keeps `length + S` within capacity."""
        put = jax.lax.dynamic_update_slice_in_dim
        return KVCache(
            put(self.k_BCHd, k_BSHd.astype(self.k_BCHd.dtype), self.length, axis=1),
            put(self.v_BCHd, v_BSHd.astype(self.v_BCHd.dtype), self.length, axis=1),
            put(self.segment_ids_BC, segment_ids_BS, self.length, axis=1),
            self.length + k_BSHd.shape[1],
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LatentCache:
    """What latent attention (MLA) must remember of the tokens seen so far, for all heads together.

    Attributes:
      latent_BCR: `[B, C, kv_lora_rank]`, normalised latents that keys and values are made of.
      k_rope_BCr: `[B, C, qk_rope_head_dim]`, the rotated part of the keys.
      segment_ids_BC: int32 `[B, C]`; 0 where nothing is stored.
      length: int32 scalar, places in use.
    """

    latent_BCR: jax.Array
    k_rope_BCr: jax.Array
    segment_ids_BC: jax.Array
    length: jax.Array

    @staticmethod
    def empty(batch: int, capacity: int, rank: int, rope_dim: int, dtype: jnp.dtype) -> LatentCache:
        """A cache that holds nothing."""
        return LatentCache(
            jnp.zeros((batch, capacity, rank), dtype),
            jnp.zeros((batch, capacity, rope_dim), dtype),
            jnp.zeros((batch, capacity), jnp.int32),
            jnp.zeros((), jnp.int32),
        )

    def append(
        self, latent_BSR: jax.Array, k_rope_BSr: jax.Array, segment_ids_BS: jax.Array
    ) -> LatentCache:
        """The cache with `S` more tokens. The caller keeps `length + S` within capacity."""
        put = jax.lax.dynamic_update_slice_in_dim
        return LatentCache(
            put(self.latent_BCR, latent_BSR.astype(self.latent_BCR.dtype), self.length, axis=1),
            put(self.k_rope_BCr, k_rope_BSr.astype(self.k_rope_BCr.dtype), self.length, axis=1),
            put(self.segment_ids_BC, segment_ids_BS, self.length, axis=1),
            self.length + latent_BSR.shape[1],
        )


C = TypeVar("C")


class AttentionModule(Protocol[C]):
    """An `nnx.Module` that holds the weights of one attention layer."""

    def __call__(
        self, x_BSD: jax.Array, inputs: AttentionInputs, cache: C | None = None
    ) -> tuple[jax.Array, C | None]:
        """Attends to the documents of the batch, or to what the cache holds plus the new tokens.

        Returns `y_BSD` in the dtype of `x_BSD`, and the extended cache (None without one).
        """


class AttentionKind(abc.ABC):
    """Base of every attention: a frozen dataclass of knobs that knows what it is made of.

    Register a subclass with `@ATTENTIONS.register("name")` and it is available to every config as
    `model.attention.name`.
    """

    backend: str

    @abc.abstractmethod
    def resolve(self, d_model: int, path: str = "attention") -> Self:
        """This config with everything filled in that follows from the model width.

        Raises:
          ConfigError: the numbers do not fit together.
        """

    @abc.abstractmethod
    def build(
        self,
        d_model: int,
        *,
        rngs: nnx.Rngs,
        norm_eps: float = 1e-6,
        param_dtype: jnp.dtype = jnp.float32,
        out_scale: float = 1.0,
    ) -> AttentionModule[Any]:
        """The layer with fresh weights; `out_scale` scales those of the output projection."""

    @abc.abstractmethod
    def empty_cache(self, d_model: int, batch: int, capacity: int, dtype: jnp.dtype) -> Any:
        """A cache with room for `capacity` tokens in each of `batch` rows."""

    @abc.abstractmethod
    def layer_shape(self, d_model: int) -> LayerShape:
        """The counts' view: geometry, and vector parameters (norm scales, biases) as norms."""

    @abc.abstractmethod
    def small(self) -> Self:
        """The same attention with two narrow heads, for `quick` configs: sizes shrink, no more."""

    def check_platform(self, platform: str, path: str) -> None:
        """Raises ConfigError when this machine (`jax.default_backend()`) lacks the back end."""
        needed, instead = PLATFORMS.get(self.backend, (platform, ""))
        if platform != needed:
            raise ConfigError(
                f"{path}.backend={self.backend!r}: needs a {needed.upper()} but JAX runs on "
                f"{platform} here; nearest valid value {instead!r}"
            )
