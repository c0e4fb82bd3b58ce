"""Multi-head latent attention (DeepSeek-V2, 2405.04434, section 2.1; V3 the same).

Keys and values of all heads are made of one latent vector per token, which is what the cache holds,
beside one rotated key that all heads share ("decoupled" RoPE: rotating keys made of the latent
would make it impossible to move their projection to the query's side when decoding).
"""

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
    LatentCache,
)
from moejax.models.attention.projections import normal, project, project_back
from moejax.models.norm import RMSNorm
from moejax.models.rope import Yarn, rotate


@ATTENTIONS.register("mla")
@dataclasses.dataclass(frozen=True)
class LatentAttentionConfig(AttentionKind):
    """Multi-head latent attention (DeepSeek-AI 2024); the defaults are DeepSeek-V2-Lite's."""

    heads: int = knob(16, low=1, unit="heads", doc="Heads (H).")
    q_lora_rank: int = knob(
        0, low=0, unit="dimensions", doc="Width of the queries' latent (V2, V3: 1536); 0: none."
    )
    kv_lora_rank: int = knob(
        512, low=1, unit="dimensions", doc="Width of the latent of keys and values (R)."
    )
    qk_nope_head_dim: int = knob(
        128, low=1, unit="dimensions", doc="Part of a query or key that has no position."
    )
    qk_rope_head_dim: int = knob(
        64, low=2, unit="dimensions", doc="Rotated part; its key is shared by all heads."
    )
    v_head_dim: int = knob(128, low=1, unit="dimensions", doc="Width of a head's values.")
    rope_theta: float = knob(10_000.0, low=1.0, doc="RoPE base.")
    latent_norm_eps: float = knob(
        0.0,
        low=0.0,
        doc="RMSNorm epsilon of the latents; 0: the model's `norm_eps` (DeepSeek's code: 1e-6 "
        "always).",
    )
    yarn: Yarn = Yarn()
    backend: str = knob("einsum", choices=tuple(BACKENDS), doc=BACKEND_DOC)

    def resolve(self, d_model: int, path: str = "attention") -> LatentAttentionConfig:
        """This config; nothing in it follows from the model width.

        Raises:
          ConfigError: the rotated part has an odd width.
        """
        del d_model
        if self.qk_rope_head_dim % 2:
            raise ConfigError(
                f"{path}.qk_rope_head_dim: RoPE needs an even width, got {self.qk_rope_head_dim}; "
                f"nearest valid value {self.qk_rope_head_dim + 1}"
            )
        self.yarn.check_theta(self.rope_theta, path)
        return self

    def build(self, d_model: int, **options: Any) -> LatentAttention:
        """The layer with fresh weights; options as `AttentionKind.build`."""
        return LatentAttention(d_model, self, **options)

    def empty_cache(self, d_model: int, batch: int, capacity: int, dtype: jnp.dtype) -> LatentCache:
        """A `LatentCache` with room for `capacity` tokens in each of `batch` rows."""
        del d_model
        return LatentCache.empty(batch, capacity, self.kv_lora_rank, self.qk_rope_head_dim, dtype)

    def layer_shape(self, d_model: int) -> LayerShape:
        """The counts' view: geometry, and the norm scales of the latents."""
        del d_model
        return LayerShape(
            heads=self.heads,
            kv_heads=self.heads,
            head_dim=self.qk_nope_head_dim + self.qk_rope_head_dim,
            value_dim=self.v_head_dim,
            rope_dim=self.qk_rope_head_dim,
            q_rank=self.q_lora_rank,
            kv_rank=self.kv_lora_rank,
            norm_parameters=self.q_lora_rank + self.kv_lora_rank,
        )

    def small(self) -> LatentAttentionConfig:
        """The same attention with two narrow heads and narrow latents."""
        return dataclasses.replace(
            self,
            heads=2,
            q_lora_rank=self.q_lora_rank and 12,
            kv_lora_rank=8,
            qk_nope_head_dim=8,
            qk_rope_head_dim=4,
            v_head_dim=8,
        )


class LatentAttention(nnx.Module):
    """Weights `kv_down_DR` (latent and shared rotary key), `k_up_RHn`, `v_up_RHe`, `o_HeD`, and
    `q_DHd`, or `q_down_DQ` and `q_up_QHd` where queries have a latent too. Latents are normalised
    (`kv_norm`, `q_norm`). The rotated part stands last in queries and keys.
    """

    def __init__(
        self,
        d_model: int,
        config: LatentAttentionConfig,
        *,
        rngs: nnx.Rngs,
        norm_eps: float = 1e-6,
        param_dtype: jnp.dtype = jnp.float32,
        out_scale: float = 1.0,
    ) -> None:
        self.config = config = config.resolve(d_model)
        norm_eps = config.latent_norm_eps or norm_eps
        heads, rank, q_rank = config.heads, config.kv_lora_rank, config.q_lora_rank
        query_dim = config.qk_nope_head_dim + config.qk_rope_head_dim

        def weight(*shape: int, scale: float = 1.0) -> nnx.Param[jax.Array]:
            """Starts by its fan-in, the first axis."""
            return normal(rngs, shape, scale * shape[0] ** -0.5, param_dtype)

        if q_rank:
            self.q_down_DQ = weight(d_model, q_rank)
            self.q_norm = RMSNorm(q_rank, norm_eps, param_dtype)
            self.q_up_QHd = weight(q_rank, heads, query_dim)
        else:
            self.q_DHd = weight(d_model, heads, query_dim)
        self.kv_down_DR = weight(d_model, rank + config.qk_rope_head_dim)
        self.kv_norm = RMSNorm(rank, norm_eps, param_dtype)
        self.k_up_RHn = weight(rank, heads, config.qk_nope_head_dim)
        self.v_up_RHe = weight(rank, heads, config.v_head_dim)
        out_scale *= config.v_head_dim**-0.5  # the fan-in is heads * v_head_dim
        self.o_HeD = weight(heads, config.v_head_dim, d_model, scale=out_scale)

    def __call__(
        self, x_BSD: jax.Array, inputs: AttentionInputs, cache: LatentCache | None = None
    ) -> tuple[jax.Array, LatentCache | None]:
        """Attends to the documents of the batch, or to what the cache holds plus the new tokens.

        Returns `y_BSD` in the dtype of `x_BSD`, and the extended cache (None without one).
        """
        config, dtype = self.config, x_BSD.dtype
        ids_BS = inputs.segment_ids_BS
        q_nope_BSHn, q_rope_BSHr = self._queries(x_BSD, inputs.positions_BS)
        latent_BSR, k_rope_BSr = self._latents(x_BSD, inputs.positions_BS)
        k_up_RHn, v_up_RHe = self.k_up_RHn[...].astype(dtype), self.v_up_RHe[...].astype(dtype)
        scale = (config.qk_nope_head_dim + config.qk_rope_head_dim) ** -0.5
        scale *= config.yarn.score_factor
        attend = BACKENDS[config.backend]
        if cache is None:
            k_nope_BSHn, v_BSHe = project(latent_BSR, k_up_RHn), project(latent_BSR, v_up_RHe)
            shared_BSHr = jnp.broadcast_to(k_rope_BSr[:, :, None], q_rope_BSHr.shape)
            q_BSHd = jnp.concatenate([q_nope_BSHn, q_rope_BSHr], axis=-1)
            k_BSHd = jnp.concatenate([k_nope_BSHn, shared_BSHr], axis=-1)
            documents = Documents(ids_BS, ids_BS, mesh=inputs.mesh)
            mixed_BSHe = attend(q_BSHd, k_BSHd, v_BSHe, documents, scale)
        else:
            # `q . (W_k c) = (W_k^T q) . c`: multi-query attention to the latents themselves, so
            # that no keys and values of the past are made again (the paper's "absorbed" weights).
            start = cache.length
            cache = cache.append(latent_BSR, k_rope_BSr, ids_BS)
            latent_BCR = cache.latent_BCR.astype(dtype)
            q_latent_BSHR = jnp.einsum("bshn,rhn->bshr", q_nope_BSHn, k_up_RHn)
            q_BSHk = jnp.concatenate([q_latent_BSHR, q_rope_BSHr], axis=-1)
            k_BCk = jnp.concatenate([latent_BCR, cache.k_rope_BCr.astype(dtype)], axis=-1)
            documents = Documents(ids_BS, cache.segment_ids_BC, start)
            mixed_BSHR = attend(q_BSHk, k_BCk[:, :, None], latent_BCR[:, :, None], documents, scale)
            mixed_BSHe = jnp.einsum("bshr,rhe->bshe", mixed_BSHR, v_up_RHe)
        return project_back(mixed_BSHe, self.o_HeD[...].astype(dtype)), cache

    def _queries(self, x_BSD: jax.Array, positions_BS: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Parts without and with a position, `[B, S, H, n]` and `[B, S, H, r]`."""
        config, dtype = self.config, x_BSD.dtype
        if config.q_lora_rank:
            latent_BSQ = self.q_norm(project(x_BSD, self.q_down_DQ[...].astype(dtype)))
            q_BSHd = project(latent_BSQ, self.q_up_QHd[...].astype(dtype))
        else:
            q_BSHd = project(x_BSD, self.q_DHd[...].astype(dtype))
        q_nope_BSHn, q_rope_BSHr = jnp.split(q_BSHd, [config.qk_nope_head_dim], axis=-1)
        return q_nope_BSHn, rotate(q_rope_BSHr, positions_BS, config.rope_theta, config.yarn)

    def _latents(self, x_BSD: jax.Array, positions_BS: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Normalised latent `[B, S, R]` and rotated key `[B, S, r]`: what a cache stores."""
        config = self.config
        down_BSR = project(x_BSD, self.kv_down_DR[...].astype(x_BSD.dtype))
        latent_BSR, k_rope_BSr = jnp.split(down_BSR, [config.kv_lora_rank], axis=-1)
        k_rope_BS1r = rotate(k_rope_BSr[:, :, None], positions_BS, config.rope_theta, config.yarn)
        return self.kv_norm(latent_BSR), k_rope_BS1r[:, :, 0]
