"""How softmax attention is computed: our einsums, JAX's library, cuDNN, or a TPU flash kernel.

Every back end is `(q_BSHd, k_BCGd, v_BCGe, documents, scale) -> [B, S, H, e]`, with H a multiple of
G. Values may be narrower or wider than queries and keys (`e != d`, MLA). Softmax in float32 or
better.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from moejax.models.attention.splash import splash_attention
from moejax.sharding import batch_spec


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


@dataclasses.dataclass(frozen=True)
class Documents:
    """Who sees whom: a query sees the keys of its document up to its own place.

    Attributes:
      query_ids_BS: int32 `[B, S]`, document numbers of the queries; 0 is padding.
      key_ids_BC: int32 `[B, C]`, document numbers of the keys.
      start: place of the first query among the keys; None: queries and keys are the same tokens.
      mesh: where rows (and heads) lie, or None: a Pallas kernel must be told.
    """

    query_ids_BS: jax.Array
    key_ids_BC: jax.Array
    start: jax.Array | None = None
    mesh: Mesh | None = None

    def mask(self) -> jax.Array:
        """bool `[B, 1, S, C]`."""
        start = 0 if self.start is None else self.start
        return document_mask(self.query_ids_BS, self.key_ids_BC, start)


Backend = Callable[[jax.Array, jax.Array, jax.Array, Documents, float], jax.Array]


def einsum_attention(
    q_BSHd: jax.Array,
    k_BCGd: jax.Array,
    v_BCGe: jax.Array,
    documents: Documents,
    scale: float,
) -> jax.Array:
    """Softmax attention by two einsums, `[B, S, H, e]`; softmax in float32 or better.

    As fast as `jax.nn.dot_product_attention` on a CPU (docs/performance.md has the command) and,
    unlike it, float64 throughout when its inputs are, so that tests can hold it to 1e-10.
    """
    batch, length, heads, head_dim = q_BSHd.shape
    kv_heads = k_BCGd.shape[2]
    wide = jnp.promote_types(q_BSHd.dtype, jnp.float32)
    q_BGRSd = q_BSHd.reshape(batch, length, kv_heads, heads // kv_heads, head_dim)
    q_BGRSd = q_BGRSd.transpose(0, 2, 3, 1, 4)
    k_BGCd, v_BGCe = k_BCGd.swapaxes(1, 2), v_BCGe.swapaxes(1, 2)
    scores = jnp.einsum("bgrsd,bgcd->bgrsc", q_BGRSd, k_BGCd, preferred_element_type=wide)
    mask_B1SC = documents.mask()
    scores = jnp.where(mask_B1SC[:, :, None], scores * scale, jnp.finfo(wide).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(q_BSHd.dtype)
    mixed_BGRSe = jnp.einsum("bgrsc,bgce->bgrse", weights, v_BGCe)
    return mixed_BGRSe.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, v_BCGe.shape[3])


def _library(implementation: Literal["xla", "cudnn"]) -> Backend:
    def attend(
        q_BSHd: jax.Array,
        k_BCGd: jax.Array,
        v_BCGe: jax.Array,
        documents: Documents,
        scale: float,
    ) -> jax.Array:
        # The library wants one width: zeros change no score, and zero columns of v are cut off.
        value_dim = v_BCGe.shape[-1]
        width = max(q_BSHd.shape[-1], value_dim)
        mixed_BSHd = jax.nn.dot_product_attention(
            _widen(q_BSHd, width),
            _widen(k_BCGd, width),
            _widen(v_BCGe, width),
            mask=documents.mask(),
            scale=scale,
            implementation=implementation,
        )
        return mixed_BSHd[..., :value_dim]

    return attend


def _widen(x: jax.Array, width: int) -> jax.Array:
    missing = width - x.shape[-1]
    return jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, missing),)) if missing else x


def _splash(*, interpret: bool) -> Backend:
    def attend(
        q_BSHd: jax.Array,
        k_BCGd: jax.Array,
        v_BCGe: jax.Array,
        documents: Documents,
        scale: float,
    ) -> jax.Array:
        if documents.start is not None:
            # Decoding: few queries at places known at run time only, which the kernel's static
            # causal mask cannot say; there are no S x S scores to avoid either.
            return einsum_attention(q_BSHd, k_BCGd, v_BCGe, documents, scale)
        kernel = functools.partial(splash_attention, scale=scale, interpret=interpret)
        if documents.mesh is not None:
            rows = batch_spec(documents.mesh)
            heads = PartitionSpec(*(rows or (None,)), None, "tensor")
            kernel = jax.shard_map(
                kernel,
                mesh=documents.mesh,
                in_specs=(heads, heads, heads, rows),
                out_specs=heads,
                check_vma=False,  # a Pallas call does not say how its outputs vary
            )
        return kernel(q_BSHd, k_BCGd, v_BCGe, documents.query_ids_BS)

    return attend


BACKENDS: dict[str, Backend] = {
    "einsum": einsum_attention,
    "xla": _library("xla"),
    "cudnn": _library("cudnn"),
    "splash": _splash(interpret=False),
    "splash_interpret": _splash(interpret=True),
}
PLATFORMS = {"cudnn": ("gpu", "xla"), "splash": ("tpu", "splash_interpret")}
"""The one platform that a back end runs on, and what to use elsewhere; the others run anywhere."""

BACKEND_DOC = (
    "How attention is computed: our einsums; jax.nn.dot_product_attention's xla or cudnn (GPU); "
    "the flash kernel splash (TPU), or splash_interpret, the same kernel interpreted (tests)."
)
