"""One transformer block: attention, then a dense FFN or an MoE layer."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from moejax.experts.config import MoeConfig
from moejax.experts.dense import DenseFFN
from moejax.experts.exchange.sharded import Parallel
from moejax.experts.layer import EditRouting, MoELayer, MoeOutput
from moejax.models.attention import AttentionInputs
from moejax.models.config import ModelConfig
from moejax.models.norm import RMSNorm
from moejax.routing.contract import RouterInputs, Routing
from moejax.routing.stats import RoutingStats


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["token_id_BS", "positions_BS", "segment_ids_BS", "sequence_BS"],
    meta_fields=["mesh"],
)
@dataclasses.dataclass(frozen=True)
class Tokens:
    """What every block may know about the tokens, besides their hidden states. All `[B, S]`, and
    the mesh that they lie on. `sequence_BS` is the number of the row that routers are told; None:
    the row's place in the batch."""

    token_id_BS: jax.Array
    positions_BS: jax.Array
    segment_ids_BS: jax.Array
    mesh: Mesh | None = None
    sequence_BS: jax.Array | None = None

    @property
    def attention(self) -> AttentionInputs:
        return AttentionInputs(self.positions_BS, self.segment_ids_BS, self.mesh)

    def router(self, key: jax.Array | None, carry_TE: Any, train: bool) -> RouterInputs:
        """The same tokens, flattened for a router."""
        batch, length = self.token_id_BS.shape
        row_BS = self.sequence_BS
        if row_BS is None:
            row_BS = jnp.broadcast_to(jnp.arange(batch, dtype=jnp.int32)[:, None], (batch, length))
        return RouterInputs(
            valid_T=(self.segment_ids_BS > 0).reshape(-1),
            token_id_T=self.token_id_BS.reshape(-1),
            position_T=self.positions_BS.reshape(-1),
            segment_T=self.segment_ids_BS.reshape(-1),
            sequence_T=row_BS.reshape(-1),
            key=key,
            carry_TE=carry_TE,
            train=train,
        )


Observe = Callable[[MoeOutput, RouterInputs], Any]
"""What a caller wants to know of every MoE layer: arrays (a pytree) out of one call of it."""


class BlockOut(NamedTuple):
    """What a block returns besides hidden states: returned, never sown."""

    stats: RoutingStats | None
    expert_TK: jax.Array | None
    carry_TE: jax.Array | None
    cache: Any
    observed: Any = None


class Block(nnx.Module):
    """Pre-norm residual block; `moe=None` makes its FFN dense."""

    def __init__(
        self,
        config: ModelConfig,
        moe: MoeConfig | None,
        *,
        rngs: nnx.Rngs,
        parallel: Parallel | None = None,
    ) -> None:
        param_dtype = config.dtypes[0]
        # GPT-2's residual scaling: the sum of 2L branches starts with unit-order variance.
        out_scale = (2 * config.num_layers) ** -0.5
        shared: dict[str, Any] = {
            "rngs": rngs,
            "param_dtype": param_dtype,
            "out_scale": out_scale,
        }
        self.attention_norm = RMSNorm(config.d_model, config.norm_eps, param_dtype)
        self.attention = config.attention.build(config.d_model, norm_eps=config.norm_eps, **shared)
        self.ffn_norm = RMSNorm(config.d_model, config.norm_eps, param_dtype)
        self.ffn: MoELayer | DenseFFN = (
            DenseFFN(config.d_model, config.ffn_width, activation=config.activation, **shared)
            if moe is None
            else MoELayer(config.d_model, moe, parallel=parallel, **shared)
        )

    def __call__(
        self,
        x_BSD: jax.Array,
        tokens: Tokens,
        *,
        key: jax.Array | None = None,
        carry_TE: jax.Array | None = None,
        cache: Any = None,
        train: bool = False,
        observe: Observe | None = None,
        edit: EditRouting | None = None,
    ) -> tuple[jax.Array, BlockOut]:
        """Hidden states `[B, S, D]` in, the same shape and dtype out."""
        x_BSD, h_BSD, cache = self.attend(x_BSD, tokens, cache)
        if not isinstance(self.ffn, MoELayer):
            return x_BSD + self.ffn(h_BSD), BlockOut(None, None, carry_TE, cache)
        inputs = tokens.router(key, carry_TE, train)
        out = self.ffn.forward(h_BSD.reshape(-1, h_BSD.shape[-1]), inputs, edit)
        stats = self.ffn.stats(out, inputs, num_sequences=x_BSD.shape[0])
        kept: Routing = out.kept
        y_BSD = out.y_TD.reshape(x_BSD.shape)
        observed = None if observe is None else observe(out, inputs)
        return x_BSD + y_BSD, BlockOut(stats, kept.expert_TK, out.carry_TE, cache, observed)

    def attend(
        self, x_BSD: jax.Array, tokens: Tokens, cache: Any = None
    ) -> tuple[jax.Array, jax.Array, Any]:
        """The first half of the block: hidden states after attention, what the FFN reads of them,
        and the cache."""
        mixed_BSD, cache = self.attention(self.attention_norm(x_BSD), tokens.attention, cache)
        x_BSD = x_BSD + mixed_BSD
        return x_BSD, self.ffn_norm(x_BSD), cache
