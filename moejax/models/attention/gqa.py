"""Grouped-query attention with RoPE, document masks and optional QK-norm."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from moejax.config.knobs import ConfigError, knob
from moejax.models.attention.contract import AttentionInputs, KVCache, document_mask
from moejax.models.norm import RMSNorm
from moejax.models.rope import rotate


def einsum_attention(
    q_BSHd: jax.Array, k_BCGd: jax.Array, v_BCGd: jax.Array, mask_B1SC: jax.Array
) -> jax.Array:
    """Softmax attention by two einsums, `[B, S, H, d]`; softmax in float32 or better.

    As fast as `jax.nn.dot_product_attention` on a CPU (docs/performance.md has the command) and,
    unlike it, float64 throughout when its inputs are, so that tests can hold it to 1e-10.
    """
    batch, length, heads, head_dim = q_BSHd.shape
    kv_heads = k_BCGd.shape[2]
    wide = jnp.promote_types(q_BSHd.dtype, jnp.float32)
    q_BGRSd = q_BSHd.reshape(batch, length, kv_heads, heads // kv_heads, head_dim)
    q_BGRSd = q_BGRSd.transpose(0, 2, 3, 1, 4)
    k_BGCd, v_BGCd = k_BCGd.swapaxes(1, 2), v_BCGd.swapaxes(1, 2)
    scores = jnp.einsum("bgrsd,bgcd->bgrsc", q_BGRSd, k_BGCd, preferred_element_type=wide)
    scores = jnp.where(mask_B1SC[:, :, None], scores * head_dim**-0.5, jnp.finfo(wide).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(q_BSHd.dtype)
    mixed_BGRSd = jnp.einsum("bgrsc,bgcd->bgrsd", weights, v_BGCd)
    return mixed_BGRSd.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, head_dim)


def _library(implementation: Literal["xla", "cudnn"]) -> Callable[..., jax.Array]:
    def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation=implementation)

    return attend


BACKENDS: dict[str, Callable[..., jax.Array]] = {
    "einsum": einsum_attention,
    "xla": _library("xla"),
    "cudnn": _library("cudnn"),
}


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
    """Grouped-query attention (Ainslie et al. 2023); `kv_heads = heads` is multi-head."""

    heads: int = knob(4, low=1, unit="heads", doc="Query heads (H).")
    kv_heads: int = knob(0, low=0, unit="heads", doc="Key-value heads; 0: as many as heads.")
    head_dim: int = knob(0, low=0, unit="dimensions", doc="Head width; 0: d_model / heads.")
    rope_theta: float = knob(10_000.0, low=1.0, doc="RoPE base.")
    qk_norm: bool = knob(False, doc="RMSNorm on queries and keys per head (Qwen3).")
    qkv_bias: bool = knob(False, doc="Biases on queries, keys and values (Qwen2).")
    backend: str = knob(
        "einsum",
        choices=tuple(BACKENDS),
        doc="How attention is computed: our einsums, or jax.nn.dot_product_attention's xla/cudnn.",
    )

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
        return dataclasses.replace(self, kv_heads=kv_heads, head_dim=head_dim)

    def check_platform(self, platform: str, path: str) -> None:
        """Raises ConfigError when this machine (`jax.default_backend()`) lacks the back end."""
        if self.backend == "cudnn" and platform != "gpu":
            raise ConfigError(
                f"{path}.backend='cudnn': needs a GPU but JAX runs on {platform} here; "
                "nearest valid value 'xla'"
            )

    @property
    def num_vector_parameters(self) -> int:
        """Norm scales and biases of a resolved config, which parameter counts leave out."""
        norms = 2 * self.head_dim * self.qk_norm
        return norms + (self.heads + 2 * self.kv_heads) * self.head_dim * self.qkv_bias


class Attention(nnx.Module):
    """Weights `q_DHd`, `k_DGd`, `v_DGd`, `o_HdD` (G key-value heads).

    With `qkv_bias` also `q_bias_Hd`, `k_bias_Gd`, `v_bias_Gd`, zero at first.
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

        def normal(shape: tuple[int, ...], std: float) -> nnx.Param[jax.Array]:
            return nnx.Param((jax.random.normal(rngs.params(), shape) * std).astype(param_dtype))

        std = d_model**-0.5
        self.q_DHd = normal((d_model, config.heads, config.head_dim), std)
        self.k_DGd = normal((d_model, config.kv_heads, config.head_dim), std)
        self.v_DGd = normal((d_model, config.kv_heads, config.head_dim), std)
        out_std = out_scale * (config.heads * config.head_dim) ** -0.5
        self.o_HdD = normal((config.heads, config.head_dim, d_model), out_std)
        if config.qkv_bias:
            zeros_Hd = jnp.zeros((config.heads, config.head_dim), param_dtype)
            zeros_Gd = jnp.zeros((config.kv_heads, config.head_dim), param_dtype)
            self.q_bias_Hd = nnx.Param(zeros_Hd)
            self.k_bias_Gd, self.v_bias_Gd = nnx.Param(zeros_Gd), nnx.Param(zeros_Gd)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, norm_eps, param_dtype)
            self.k_norm = RMSNorm(config.head_dim, norm_eps, param_dtype)

    def __call__(
        self, x_BSD: jax.Array, inputs: AttentionInputs, cache: KVCache | None = None
    ) -> tuple[jax.Array, KVCache | None]:
        """Attends to the documents of the batch, or to what the cache holds plus the new tokens.

        Returns `y_BSD` in the dtype of `x_BSD`, and the extended cache (None without one).
        """
        dtype = x_BSD.dtype
        q_BSHd, k_BSGd, v_BSGd = (
            _project(x_BSD, weight[...].astype(dtype))
            for weight in (self.q_DHd, self.k_DGd, self.v_DGd)
        )
        if self.config.qkv_bias:
            q_BSHd = q_BSHd + self.q_bias_Hd[...].astype(dtype)
            k_BSGd = k_BSGd + self.k_bias_Gd[...].astype(dtype)
            v_BSGd = v_BSGd + self.v_bias_Gd[...].astype(dtype)
        if self.config.qk_norm:
            q_BSHd, k_BSGd = self.q_norm(q_BSHd), self.k_norm(k_BSGd)
        theta = self.config.rope_theta
        q_BSHd = rotate(q_BSHd, inputs.positions_BS, theta)
        k_BSGd = rotate(k_BSGd, inputs.positions_BS, theta)
        ids_BS = inputs.segment_ids_BS
        if cache is None:
            mask = document_mask(ids_BS, ids_BS)
        else:
            start = cache.length
            cache = cache.append(k_BSGd, v_BSGd, ids_BS)
            k_BSGd, v_BSGd = cache.k_BCHd.astype(dtype), cache.v_BCHd.astype(dtype)
            mask = document_mask(ids_BS, cache.segment_ids_BC, start)
        mixed_BSHd = BACKENDS[self.config.backend](q_BSHd, k_BSGd, v_BSGd, mask)
        flat_TN = mixed_BSHd.reshape(-1, mixed_BSHd.shape[2] * mixed_BSHd.shape[3])
        y_TD = flat_TN @ self.o_HdD[...].astype(dtype).reshape(flat_TN.shape[1], -1)
        return y_TD.reshape(x_BSD.shape), cache


def _project(x_BSD: jax.Array, weight_DHd: jax.Array) -> jax.Array:
    """`[B, S, H, d]`, as a product of flat matrices: XLA:CPU takes about twice as long when the
    weight gradient contracts two axes."""
    batch, length, width = x_BSD.shape
    flat_TN = x_BSD.reshape(-1, width) @ weight_DHd.reshape(width, -1)
    return flat_TN.reshape(batch, length, *weight_DHd.shape[1:])


def _nearest_divisor(number: int, near: int) -> int:
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    return min(divisors, key=lambda d: (abs(d - near), d))
