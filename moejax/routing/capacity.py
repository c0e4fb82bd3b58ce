"""Bounds on assignments: per-expert capacity and a row budget. Off by default: dropless.

A bound is a pure function `Routing -> Routing` that empties slots; back ends never drop anything
themselves, so every back end drops the same tokens. Combine weights of the surviving slots are
left as they are (Switch/GShard: an overflowing token passes through the residual).
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from moejax.config.knobs import knob
from moejax.routing.contract import Routing
from moejax.routing.ledger import Ledger


@dataclasses.dataclass(frozen=True)
class CapacityConfig:
    """How many assignments an expert, and the whole batch, may take."""

    factor: float = knob(
        0.0, low=0.0, unit="x balanced load", doc="Expert capacity factor; 0: no capacity."
    )
    count_slots: bool = knob(
        True,
        doc="True: capacity = ceil(T*K/E * factor) (Megatron). False: without K, "
        "round(T/E * factor) (flaxformer). Same name, different budget.",
    )
    minimum: int = knob(0, low=0, unit="assignments", doc="Least capacity (flaxformer: 4).")
    row_budget: float = knob(
        0.0,
        low=0.0,
        unit="assignments per token",
        doc="Most assignments of the batch, per token, on average; 0: no budget.",
    )

    def expert_capacity(self, num_tokens: int, active: float, num_experts: int) -> int | None:
        """Assignments an expert may hold (methods H.1), or None when unbounded.

        `active` is K: the experts that a token is planned to use (`Router.nominal_active`).
        """
        if self.factor == 0.0:
            return None
        if self.count_slots:
            capacity = math.ceil(num_tokens * active / num_experts * self.factor)
        else:
            capacity = round(num_tokens / num_experts * self.factor)
        return max(capacity, self.minimum)

    def apply(self, routing: Routing, ledger: Ledger, *, active: float) -> tuple[Routing, Ledger]:
        """Capacity first, then the row budget; what they turn away goes into the ledger."""
        num_tokens = routing.expert_TK.shape[0]
        capacity = self.expert_capacity(num_tokens, active, routing.num_experts)
        if capacity is not None:
            routing, dropped = limit_expert_rows(routing, capacity)
            ledger = ledger.drop("capacity", dropped)
        if self.row_budget > 0.0:
            routing, dropped = limit_rows(routing, math.ceil(self.row_budget * num_tokens))
            ledger = ledger.drop("row_budget", dropped)
        return routing, ledger


def limit_expert_rows(routing: Routing, capacity: int) -> tuple[Routing, jax.Array]:
    """Keeps the first `capacity` assignments of each expert, slot-major.

    Slot-major (GShard, flaxformer): every token's first choice is served before any token's
    second choice, and within a slot earlier tokens come first.

    Returns:
      The bounded routing and the int32 number of assignments dropped.
    """
    expert_N = routing.expert_TK.T.reshape(-1)
    keep_N = rank_in_expert(expert_N, routing.num_experts) < capacity
    return _keep(routing, keep_N, routing.num_experts * capacity)


def limit_rows(routing: Routing, budget: int) -> tuple[Routing, jax.Array]:
    """Keeps the first `budget` assignments of the batch, slot-major (see `limit_expert_rows`)."""
    filled_N = routing.filled_TK.T.reshape(-1)
    keep_N = jnp.cumsum(filled_N.astype(jnp.int32)) <= budget
    return _keep(routing, keep_N, budget)


def rank_in_expert(expert_N: jax.Array, num_experts: int) -> jax.Array:
    """int32 `[N]`: how many earlier assignments name the same expert."""
    order_N = jnp.argsort(expert_N, stable=True)
    count_E = jnp.zeros(num_experts + 1, jnp.int32).at[expert_N].add(1)
    start_E = jnp.cumsum(count_E) - count_E
    rank_sorted_N = jnp.arange(expert_N.shape[0], dtype=jnp.int32) - start_E[expert_N[order_N]]
    return jnp.zeros_like(rank_sorted_N).at[order_N].set(rank_sorted_N, unique_indices=True)


def _keep(routing: Routing, keep_N: jax.Array, max_rows: int) -> tuple[Routing, jax.Array]:
    num_tokens, slots = routing.expert_TK.shape
    filled_TK = routing.filled_TK
    keep_TK = filled_TK & keep_N.reshape(slots, num_tokens).T
    bounded = dataclasses.replace(
        routing,
        expert_TK=jnp.where(keep_TK, routing.expert_TK, routing.num_experts),
        weight_TK=jnp.where(keep_TK, routing.weight_TK, 0),
        max_rows=min(routing.max_rows, max_rows),
    )
    return bounded, filled_TK.sum(dtype=jnp.int32) - keep_TK.sum(dtype=jnp.int32)
