"""Flash attention on TPU: JAX's Pallas kernel `splash_attention`, behind our document masks.

Scores exist block by block only, and blocks above the diagonal are skipped. The kernel wants whole
blocks of 128 tokens, so rows are padded behind their end, where causality hides the padding from
every real token. Document numbers are the kernel's segment ids; a padding token (id 0) sees the
padding before it, as with the other back ends, so that no row of the softmax is empty.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

BLOCK = 128
"""Rows are padded to a multiple of it: the lanes of a TPU's vector unit."""
LARGEST_BLOCK = 512


def splash_attention(
    q_BSHd: jax.Array,
    k_BSGd: jax.Array,
    v_BSGe: jax.Array,
    segment_ids_BS: jax.Array,
    scale: float,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Causal attention inside documents, `[B, S, H, e]`; scores and softmax in float32.

    Args:
      q_BSHd: queries, H a multiple of the G key-value heads.
      k_BSGd: keys.
      v_BSGe: values; their width may differ.
      segment_ids_BS: int32 document numbers; 0 is padding.
      scale: factor on the scores.
      interpret: run the kernel without a TPU, slowly.
    """
    # Here, because only TPU runs should pay for loading it.
    from jax.experimental.pallas.ops.tpu import splash_attention as kernels

    length, heads = q_BSHd.shape[1:3]
    padded = -(-length // BLOCK) * BLOCK
    block = max(size for size in range(BLOCK, LARGEST_BLOCK + 1, BLOCK) if padded % size == 0)
    mask = kernels.MultiHeadMask([kernels.CausalMask((padded, padded))] * heads)
    kernel = kernels.make_splash_mha_single_device(
        mask,
        block_sizes=kernels.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        interpret=interpret,
    )

    def heads_first(x_BSHd: jax.Array) -> jax.Array:
        behind = ((0, 0), (0, padded - length), (0, 0), (0, 0))
        return jnp.pad(x_BSHd, behind).swapaxes(1, 2)

    ids_BS = jnp.pad(segment_ids_BS, ((0, 0), (0, padded - length)))
    scaled_BSHd = (q_BSHd.astype(jnp.float32) * scale).astype(q_BSHd.dtype)
    q_BHSd, k_BGSd, v_BGSe = (heads_first(x) for x in (scaled_BSHd, k_BSGd, v_BSGe))
    mixed_BHSe = jax.vmap(kernel)(q_BHSd, k_BGSd, v_BGSe, kernels.SegmentIds(ids_BS, ids_BS))
    return mixed_BHSe.swapaxes(1, 2)[:, :length]
