"""Grouped-query attention with RoPE, document masks and optional QK-norm."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from moejax.config.counts import LayerShape
from moejax.config.knobs import ConfigError, knob
from moejax.models.attention.backends import BACKEND_DOC, BACKENDS, Documents
from moejax.models.attention.contract import (
    ATTENTIONS,
    AttentionInputs,
    AttentionKind,
    KVCache,
)
from moejax.models.attention.projections import normal, project, project_back
from moejax.models.norm import RMSNorm
from moejax.models.rope import Llama3Rope, Yarn, rotate


@ATTENTIONS.register("gqa")
@dataclasses.dataclass(frozen=True)
class AttentionConfig(AttentionKind):
    """Grouped-query attention (Ainslie et al. 2023); `kv_heads = heads` is multi-head."""

    heads: int = knob(4, low=1, unit="heads", doc="Query heads (H).")
    kv_heads: int = knob(0, low=0, unit="heads", doc="Key-value heads; 0: as many as heads.")
    head_dim: int = knob(0, low=0, unit="dimensions", doc="Head width; 0: d_model / heads.")
    rope_theta: float = knob(10_000.0, low=1.0, doc="RoPE base.")
    qk_norm: bool = knob(False, doc="RMSNorm on queries and keys (Qwen3, OLMoE).")
    qk_norm_over: str = knob(
        "head",
        choices=("head", "projection"),
        doc="What `qk_norm` takes the mean square over: each head apart (Qwen3), or all heads of "
        "the queries, or of the keys, together (OLMoE).",
    )
    qkv_bias: bool = knob(False, doc="Biases on queries, keys and values (Qwen2).")
    clip_qkv: float = knob(
        0.0,
        low=0.0,
        doc="Queries, keys and values are clipped to [-c, c] before they are rotated (OLMo); "
        "0: no clipping.",
    )
    yarn: Yarn = Yarn()
    llama3: Llama3Rope = Llama3Rope()
    backend: str = knob("einsum", choices=tuple(BACKENDS), doc=BACKEND_DOC)

    def resolve(self, d_model: int, path: str = "attention") -> AttentionConfig:
        """This config with `kv_heads` and `head_dim` filled in.

        Raises:
          ConfigError: heads do not divide the model width, or KV heads the heads.
        """
        kv_heads = self.kv_heads or self.heads
        if self.heads % kv_heads:
            raise ConfigError(
                f"{path}.kv_heads: {kv_heads} does not divide {self.heads} heads; "
                f"nearest valid value {_nearest_divisor(self.heads, kv_heads)}"
            )
        if not self.head_dim and d_model % self.heads:
            raise ConfigError(
                f"{path}.heads: {self.heads} does not divide d_model {d_model}; "
                f"nearest valid value {_nearest_divisor(d_model, self.heads)}"
            )
        head_dim = self.head_dim or d_model // self.heads
        if head_dim % 2:
            raise ConfigError(
                f"{path}.head_dim: RoPE needs an even head width, got {head_dim}; "
                f"nearest valid value {head_dim + 1}"
            )
        self.yarn.check_theta(self.rope_theta, path)
        if self.yarn.factor > 1 and self.llama3.factor > 1:
            raise ConfigError(
                f"{path}.llama3.factor={self.llama3.factor}: the context is stretched by "
                f"{path}.yarn already; nearest valid value 1.0"
            )
        return dataclasses.replace(self, kv_heads=kv_heads, head_dim=head_dim)

    def build(self, d_model: int, **options: Any) -> Attention:
        """The layer with fresh weights; options as `AttentionKind.build`."""
        return Attention(d_model, self, **options)

    def empty_cache(self, d_model: int, batch: int, capacity: int, dtype: jnp.dtype) -> KVCache:
        """A `KVCache` with room for `capacity` tokens in each of `batch` rows."""
        full = self.resolve(d_model)
        return KVCache.empty(batch, capacity, full.kv_heads, full.head_dim, dtype)

    def layer_shape(self, d_model: int) -> LayerShape:
        """The counts' view: geometry, and vector parameters (norm scales, biases) as norms."""
        full = self.resolve(d_model)
        return LayerShape(
            full.heads, full.kv_heads, full.head_dim, norm_parameters=full.num_vector_parameters
        )

    def small(self) -> AttentionConfig:
        """The same attention with two heads, or two that share keys and values."""
        return dataclasses.replace(
            self, heads=2, kv_heads=self.kv_heads and 1, head_dim=self.head_dim and 16
        )

    @property
    def num_vector_parameters(self) -> int:
        """Norm scales and biases of a resolved config, which parameter counts leave out."""
        heads = 2 if self.qk_norm_over == "head" else self.heads + self.kv_heads
        norms = heads * self.head_dim * self.qk_norm
        return norms + (self.heads + 2 * self.kv_heads) * self.head_dim * self.qkv_bias


class Attention(nnx.Module):
    """Weights `q_DHd`, `k_DGd`, `v_DGd`, `o_HdD` (G key-value heads).

    With `qkv_bias` also `q_bias_Hd`, `k_bias_Gd`, `v_bias_Gd`, zero at first; with `qk_norm` the
    scales of `q_norm` and `k_norm`, of one head or, flat, of all heads.
    """

    def __init__(
        self,
        d_model: int,
        config: AttentionConfig,
        *,
        rngs: nnx.Rngs,
        norm_eps: float = 1e-6,
        param_dtype: jnp.dtype = jnp.float32,
        out_scale: float = 1.0,
    ) -> None:
        self.config = config = config.resolve(d_model)

        def weight(shape: tuple[int, ...], std: float) -> nnx.Param[jax.Array]:
            return normal(rngs, shape, std, param_dtype)

        std = d_model**-0.5
        self.q_DHd = weight((d_model, config.heads, config.head_dim), std)
        self.k_DGd = weight((d_model, config.kv_heads, config.head_dim), std)
        self.v_DGd = weight((d_model, config.kv_heads, config.head_dim), std)
        out_std = out_scale * (config.heads * config.head_dim) ** -0.5
        self.o_HdD = weight((config.heads, config.head_dim, d_model), out_std)
        if config.qkv_bias:
            zeros_Hd = jnp.zeros((config.heads, config.head_dim), param_dtype)
            zeros_Gd = jnp.zeros((config.kv_heads, config.head_dim), param_dtype)
            self.q_bias_Hd = nnx.Param(zeros_Hd)
            self.k_bias_Gd, self.v_bias_Gd = nnx.Param(zeros_Gd), nnx.Param(zeros_Gd)
        if config.qk_norm:
            whole = config.qk_norm_over == "projection"
            heads, kv_heads = (config.heads, config.kv_heads) if whole else (1, 1)
            self.q_norm = RMSNorm(heads * config.head_dim, norm_eps, param_dtype)
            self.k_norm = RMSNorm(kv_heads * config.head_dim, norm_eps, param_dtype)

    def __call__(
        self, x_BSD: jax.Array, inputs: AttentionInputs, cache: KVCache | None = None
    ) -> tuple[jax.Array, KVCache | None]:
        """Attends to the documents of the batch, or to what the cache holds plus the new tokens.

        Returns `y_BSD` in the dtype of `x_BSD`, and the extended cache (None without one).
        """
        dtype = x_BSD.dtype
        q_BSHd, k_BSGd, v_BSGd = (
            project(x_BSD, weight[...].astype(dtype))
            for weight in (self.q_DHd, self.k_DGd, self.v_DGd)
        )
        if self.config.qkv_bias:
            q_BSHd = q_BSHd + self.q_bias_Hd[...].astype(dtype)
            k_BSGd = k_BSGd + self.k_bias_Gd[...].astype(dtype)
            v_BSGd = v_BSGd + self.v_bias_Gd[...].astype(dtype)
        if self.config.qk_norm:
            q_BSHd, k_BSGd = self._normed(q_BSHd, self.q_norm), self._normed(k_BSGd, self.k_norm)
        config = self.config
        if config.clip_qkv:
            q_BSHd, k_BSGd, v_BSGd = (
                jnp.clip(x, -config.clip_qkv, config.clip_qkv) for x in (q_BSHd, k_BSGd, v_BSGd)
            )
        rope = (inputs.positions_BS, config.rope_theta, config.yarn, config.llama3)
        q_BSHd, k_BSGd = rotate(q_BSHd, *rope), rotate(k_BSGd, *rope)
        ids_BS = inputs.segment_ids_BS
        documents = Documents(ids_BS, ids_BS, mesh=inputs.mesh)
        if cache is not None:
            start = cache.length
            cache = cache.append(k_BSGd, v_BSGd, ids_BS)
            k_BSGd, v_BSGd = cache.k_BCHd.astype(dtype), cache.v_BCHd.astype(dtype)
            documents = Documents(ids_BS, cache.segment_ids_BC, start)
        scale = config.head_dim**-0.5 * config.yarn.score_factor
        mixed_BSHd = BACKENDS[config.backend](q_BSHd, k_BSGd, v_BSGd, documents, scale)
        return project_back(mixed_BSHd, self.o_HdD[...].astype(dtype)), cache

    def _normed(self, x_BSHd: jax.Array, norm: RMSNorm) -> jax.Array:
        """The same shape, normalised over a head or over all heads."""
        if self.config.qk_norm_over == "head":
            return norm(x_BSHd)
        return norm(x_BSHd.reshape(*x_BSHd.shape[:2], -1)).reshape(x_BSHd.shape)


def _nearest_divisor(number: int, near: int) -> int:
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    return min(divisors, key=lambda d: (abs(d - near), d))
