"""Experts forced off in a model that still has them: what pruning is measured by, and held to.

An array says which experts are off, so every choice of them runs through one compiled program.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moejax.experts.config import MoeConfig
from moejax.models import Transformer
from moejax.probe.interventions.edit import AFTER, BEFORE, Edit
from moejax.probe.interventions.program import Edits
from moejax.probe.interventions.rules import RULES
from moejax.routing.contract import RouterInputs, Routing, State
from moejax.surgery.pruning import ALL, REMOVE


@functools.partial(jax.tree_util.register_dataclass, data_fields=["open_E"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class AllOpen:
    """Every token uses every open expert with weight 1, whatever its router chose (an
    `EditRouting`). `open_E` is bool `[E]`; in a model it has a leading axis of layers."""

    open_E: jax.Array

    def __call__(self, routing: Routing, inputs: RouterInputs, state: State) -> Routing:
        """The routing in its place."""
        del state
        tokens, experts = routing.expert_TK.shape[0], routing.num_experts
        open_TE = jnp.broadcast_to(self.open_E & inputs.valid_T[:, None], (tokens, experts))
        return dataclasses.replace(
            routing,
            expert_TK=jnp.where(open_TE, jnp.arange(experts), experts).astype(jnp.int32),
            weight_TK=open_TE.astype(routing.weight_TK.dtype),
            requested_T=open_TE.sum(-1, dtype=jnp.int32),
            max_rows=tokens * experts,
        )


def can_close(model: Transformer, router: str) -> bool:
    """Whether `closed` knows how each router would choose among the experts that are left."""
    return router != REMOVE or all(type(group.config.router) in RULES for group in model.groups)


def closed(model: Transformer, kept: Mapping[int, np.ndarray], router: str) -> Edits:
    """The edits that force experts off, as `prune(..., router)` removes them.

    Args:
      model: the whole model.
      kept: by number of the layer, bool `[experts]`: the FFN experts that stay on. All MoE layers
        must be there.
      router: a key of `ROUTERS_AFTER`; `can_close` says whether it can be done.
    """
    found: Edits = []
    for stack in model.segments:
        found.append({})
        for position, moe in enumerate(stack.segment.pattern):
            if moe is None:
                continue
            open_LE = np.ones((stack.segment.repeat, moe.num_experts), bool)
            for row, layer in enumerate(stack.segment.layers(position)):
                open_LE[row, : moe.experts] = kept[layer]
            found[-1][str(position)] = (
                AllOpen(jnp.asarray(open_LE)) if router == ALL else _edit(moe, open_LE, router)
            )
    return found


def _edit(moe: MoeConfig, open_LE: np.ndarray, router: str) -> Edit:
    repeat = len(open_LE)
    before = router == REMOVE

    def whole(value: Any, dtype: Any) -> jax.Array:
        return jnp.full(repeat, value, dtype)

    return Edit(
        top=whole(0, jnp.int32),
        drop_E=jnp.asarray(~open_LE),
        k=whole(getattr(moe.router, "k", 0), jnp.int32),
        p=whole(getattr(moe.router, "p", 0.0), jnp.float32),
        extra=whole(0, jnp.int32),
        shared=whole(True, jnp.bool_),
        router=moe.router,
        slots=moe.router.slots(moe.num_experts),
        when=BEFORE if before else AFTER,
        renormalise=before,
    )
