"""The compiled pass of a sweep: losses and loads of a batch, under any values of the edits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from moejax.experts.layer import MoeOutput
from moejax.models import Transformer
from moejax.models.block import Tokens
from moejax.models.cross_entropy import sharded_cross_entropy
from moejax.routing.contract import RouterInputs

Tree = dict[str, Any]
Edits = list[Tree]
"""By segment, by position of its pattern: an `Edit` with a leading axis of layers."""


def make_losses(model: Transformer) -> Callable[[Tree, Tree, Tree, Edits | None], Tree]:
    """A compiled `(params, router_state, batch, edits) -> {nll_BS, count_LE by group}`.

    `nll_BS` is float32, nats, also where nothing is scored; `count_LE` int32, tokens that each
    expert computed (after capacity). It is compiled once for edits of equal shapes and static
    fields, and once for None, the untouched model. Routers are as in the trainer's evaluation.
    """

    def forward(params: Tree, router_state: Tree, batch: Tree, edits: Edits | None) -> Tree:
        tokens = Tokens(batch["tokens"], batch["positions"], batch["segment_ids"], model.mesh)
        x_BSD, outs = model.hidden(
            params if edits is None else _without_shared(params, edits),
            router_state,
            tokens,
            jax.random.key(0),
            train=False,
            observe=_count,
            edits=edits,
        )
        _, nll_BS = sharded_cross_entropy(
            x_BSD,
            model.head_table(params),
            batch["targets"],
            batch["loss_mask"],
            mesh=model.mesh,
            chunk=model.config.loss_chunk,
            logits_dtype=model.config.dtypes[2],
        )
        return {"nll_BS": nll_BS, "count_LE": model.by_group(outs, "observed")}

    if model.mesh is None:
        return jax.jit(forward)
    return jax.jit(forward, out_shardings=NamedSharding(model.mesh, PartitionSpec()))


def _count(out: MoeOutput, inputs: RouterInputs) -> jax.Array:
    del inputs
    return out.kept.count_E


def _without_shared(params: Tree, edits: Edits) -> Tree:
    """The parameters, in which a shared expert that does not stay returns 0."""
    params = jax.tree.map(lambda leaf: leaf, params)  # new dicts
    for segment, positions in enumerate(edits):
        for position, edit in positions.items():
            ffn = params["segments"][str(segment)][position]["ffn"]
            if "shared" in ffn:
                down_LFD = ffn["shared"]["down_FD"]
                ffn["shared"]["down_FD"] = jnp.where(edit.shared[:, None, None], down_LFD, 0)
    return params
