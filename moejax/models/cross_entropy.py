"""Cross-entropy without ever holding the logits of a whole batch.

Chunks run along S with the batch axis whole, so a batch-sharded input stays sharded (chunking the
flattened tokens measured 2x the FLOPs and 4.5x the memory). The gradient is formed together with
the loss, chunk by chunk, so logits are computed once and never stored.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp


def chunked_cross_entropy(
    x_BSD: jax.Array,
    table_VD: jax.Array,
    targets_BS: jax.Array,
    mask_BS: jax.Array,
    *,
    chunk: int,
    logits_dtype: jnp.dtype = jnp.float32,
) -> tuple[jax.Array, jax.Array]:
    """Negative log-likelihood of the targets under `softmax(x @ table.T)`.

    Args:
      x_BSD: final hidden states.
      table_VD: output embedding, of the same dtype.
      targets_BS: int32 token ids in `[0, V)`.
      mask_BS: float32, weight of each position (0: ignored); differentiable too.
      chunk: positions of S per chunk; 0 takes S whole.
      logits_dtype: dtype the logits are rounded to (its gradient passes straight through); the
        softmax itself is float32 or better.

    Returns:
      The masked sum of the nll (nats, differentiable) and `nll_BS` (unmasked, no gradient).
    """
    batch, length, _ = x_BSD.shape
    chunk = min(chunk or length, length)
    pad = -length % chunk

    def split(array: jax.Array) -> jax.Array:
        spec = [(0, 0), (0, pad)] + [(0, 0)] * (array.ndim - 2)
        padded = jnp.pad(array, spec)
        return padded.reshape(batch, -1, chunk, *array.shape[2:]).swapaxes(0, 1)

    total, nll_CBc = _cross_entropy(
        split(x_BSD), table_VD, split(targets_BS), split(mask_BS), jnp.dtype(logits_dtype)
    )
    nll_BS = nll_CBc.swapaxes(0, 1).reshape(batch, -1)[:, :length]
    return total, jax.lax.stop_gradient(nll_BS)


def _logits(x_BcD: jax.Array, table_VD: jax.Array, logits_dtype: jnp.dtype) -> jax.Array:
    """`[B, c, V]` logits in float32 or better, rounded to `logits_dtype` on the way."""
    wide = jnp.promote_types(x_BcD.dtype, jnp.float32)
    logits = jnp.einsum("bcd,vd->bcv", x_BcD, table_VD, preferred_element_type=wide)
    return logits.astype(logits_dtype).astype(wide)


def _picked(logits: jax.Array, targets_Bc: jax.Array) -> jax.Array:
    return jnp.take_along_axis(logits, targets_Bc[..., None], axis=-1)[..., 0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _cross_entropy(
    x_CBcD: jax.Array,
    table_VD: jax.Array,
    targets_CBc: jax.Array,
    mask_CBc: jax.Array,
    logits_dtype: jnp.dtype,
) -> tuple[jax.Array, jax.Array]:
    def one(total: jax.Array, chunk: Any) -> tuple[jax.Array, jax.Array]:
        x_BcD, targets_Bc, mask_Bc = chunk
        logits = _logits(x_BcD, table_VD, logits_dtype)
        nll_Bc = jax.nn.logsumexp(logits, axis=-1) - _picked(logits, targets_Bc)
        return total + (nll_Bc * mask_Bc).sum(), nll_Bc

    zero = jnp.zeros((), jnp.promote_types(x_CBcD.dtype, jnp.float32))
    return jax.lax.scan(one, zero, (x_CBcD, targets_CBc, mask_CBc))


def _forward(
    x_CBcD: jax.Array,
    table_VD: jax.Array,
    targets_CBc: jax.Array,
    mask_CBc: jax.Array,
    logits_dtype: jnp.dtype,
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]:
    wide = jnp.promote_types(x_CBcD.dtype, jnp.float32)

    def one(carry: Any, chunk: Any) -> tuple[Any, Any]:
        total, dtable_VD = carry
        x_BcD, targets_Bc, mask_Bc = chunk
        logits = _logits(x_BcD, table_VD, logits_dtype)
        top_Bc1 = logits.max(-1, keepdims=True)
        # Softmax minus one-hot, never formed: the normaliser scales rows after the product, and
        # the one-hot is a gather (dx) and a scatter (dtable). Every pass over [B, c, V] counts.
        exp_BcV = jnp.exp(logits - top_Bc1)
        sum_Bc = exp_BcV.sum(-1)
        nll_Bc = jnp.log(sum_Bc) + top_Bc1[..., 0] - _picked(logits, targets_Bc)
        scale_Bc1 = (mask_Bc / sum_Bc)[..., None]
        exp_BcV = exp_BcV.astype(x_BcD.dtype)
        mean_BcD = jnp.einsum("bcv,vd->bcd", exp_BcV, table_VD, preferred_element_type=wide)
        dx_BcD = mean_BcD * scale_Bc1 - table_VD[targets_Bc] * mask_Bc[..., None]
        scaled_BcD = (x_BcD * scale_Bc1).astype(x_BcD.dtype)
        dtable_VD += jnp.einsum("bcv,bcd->vd", exp_BcV, scaled_BcD, preferred_element_type=wide)
        dtable_VD = dtable_VD.at[targets_Bc].add(-(x_BcD * mask_Bc[..., None]).astype(wide))
        return (total + (nll_Bc * mask_Bc).sum(), dtable_VD), (nll_Bc, dx_BcD.astype(x_BcD.dtype))

    start = (jnp.zeros((), wide), jnp.zeros(table_VD.shape, wide))
    (total, dtable_VD), (nll_CBc, dx_CBcD) = jax.lax.scan(
        one, start, (x_CBcD, targets_CBc, mask_CBc)
    )
    residuals = dx_CBcD, dtable_VD.astype(table_VD.dtype), nll_CBc.astype(mask_CBc.dtype)
    return (total, nll_CBc), residuals


def _backward(
    logits_dtype: jnp.dtype, residuals: Any, cotangents: tuple[jax.Array, jax.Array]
) -> tuple[Any, ...]:
    del logits_dtype
    dx_CBcD, dtable_VD, nll_CBc = residuals
    scale = cotangents[0]
    dx_CBcD = (dx_CBcD * scale).astype(dx_CBcD.dtype)
    return dx_CBcD, (dtable_VD * scale).astype(dtable_VD.dtype), None, (nll_CBc * scale).astype(nll_CBc.dtype)


_cross_entropy.defvjp(_forward, _backward)
