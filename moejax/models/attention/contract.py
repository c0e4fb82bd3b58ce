"""The attention contract: `(x, inputs, cache) -> (y, cache)`, and its key-value cache."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttentionInputs:
    """What attention needs to know about the tokens at hand.

    Attributes:
      positions_BS: int32 `[B, S]`, position inside the document.
      segment_ids_BS: int32 `[B, S]`, document number within the row; 0 is padding.
    """

    positions_BS: jax.Array
    segment_ids_BS: jax.Array


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


def document_mask(
    query_ids_BS: jax.Array, key_ids_BC: jax.Array, query_start: jax.Array | int = 0
) -> jax.Array:
    """bool `[B, 1, S, C]`: causal attention inside a document.

    Query `i` is the token at place `query_start + i` of the keys. Padding (id 0) sees only
    padding, so that no row of the softmax is empty.
    """
    place_S = query_start + jnp.arange(query_ids_BS.shape[1])
    causal_SC = jnp.arange(key_ids_BC.shape[1]) <= place_S[:, None]
    same_BSC = query_ids_BS[:, :, None] == key_ids_BC[:, None, :]
    return (same_BSC & causal_SC)[:, None]
