"""The compiled pass over a batch: experts, loss, prediction, and what is observed of each layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from moejax.models import Transformer
from moejax.models.block import Observe, Tokens
from moejax.models.cross_entropy import sharded_cross_entropy

Tree = dict[str, Any]


def make_pass(model: Transformer, observe: Observe) -> Callable[[Tree, Tree, Tree], Tree]:
    """A compiled `(params, router_state, batch of [B, S] arrays) -> what happened to its tokens`.

    Returns `trace` (`expert_LTK` by group of layers and `nll_BS`, as `Transformer.host_trace` takes
    it), `predicted_BS` int32, and `observed` by group: what `observe` returns, layers in front.
    Routers are as in the trainer's evaluation: not training, and with its key.
    """

    def forward(params: Tree, router_state: Tree, batch: Tree) -> Tree:
        tokens = Tokens(batch["tokens"], batch["positions"], batch["segment_ids"], model.mesh)
        x_BSD, outs = model.hidden(
            params, router_state, tokens, jax.random.key(0), train=False, observe=observe
        )
        table_VD = model.head_table(params)
        options: Tree = {"chunk": model.config.loss_chunk, "logits_dtype": model.config.dtypes[2]}
        _, nll_BS = sharded_cross_entropy(
            x_BSD, table_VD, batch["targets"], batch["loss_mask"], mesh=model.mesh, **options
        )
        return {
            "trace": {"expert_LTK": model.by_group(outs, "expert_TK"), "nll_BS": nll_BS},
            "predicted_BS": predictions(x_BSD, table_VD, **options),
            "observed": model.by_group(outs, "observed"),
        }

    if model.mesh is None:
        return jax.jit(forward)
    return jax.jit(forward, out_shardings=NamedSharding(model.mesh, PartitionSpec()))


def predictions(
    x_BSD: jax.Array, table_VD: jax.Array, *, chunk: int, logits_dtype: jnp.dtype
) -> jax.Array:
    """int32 `[B, S]`: the id with the largest logit (the lowest such id), `chunk` positions of S at
    a time; 0: all."""
    length = x_BSD.shape[1]
    chunk = min(chunk or length, length)
    wide = jnp.promote_types(x_BSD.dtype, jnp.float32)

    def best(x_BCD: jax.Array) -> jax.Array:
        logits = jnp.einsum("bcd,vd->bcv", x_BCD, table_VD, preferred_element_type=wide)
        return jnp.argmax(logits.astype(logits_dtype), axis=-1).astype(jnp.int32)

    whole = length // chunk * chunk
    x_NBCD = x_BSD[:, :whole].reshape(x_BSD.shape[0], -1, chunk, x_BSD.shape[2]).swapaxes(0, 1)
    found_BS = jax.lax.map(best, x_NBCD).swapaxes(0, 1).reshape(x_BSD.shape[0], whole)
    if whole == length:
        return found_BS
    return jnp.concatenate([found_BS, best(x_BSD[:, whole:])], axis=1)
