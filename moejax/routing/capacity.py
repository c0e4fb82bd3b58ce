"""Bounds on assignments: per-expert capacity and a row budget. Off by default: dropless.

A bound is a pure function `Routing -> Routing` that empties slots; back ends never drop anything
themselves, so every back end drops the same tokens. Combine weights of the surviving slots are
left as they are (Switch/GShard: an overflowing token passes through the residual).

Padding has no share in a bound: bounds follow the number of valid tokens, and only the size of
buffers (`max_rows`) follows the static shape of the batch.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from moejax.config.knobs import knob
from moejax.routing.contract import Routing
from moejax.routing.ledger import Ledger

CONVENTIONS = ("with_k", "without_k", "moe_plus_plus")
PRIORITIES = ("position", "confidence")


@dataclasses.dataclass(frozen=True)
class CapacityConfig:
    """How many assignments an expert, and the whole batch, may take."""

    factor: float = knob(
        0.0, low=0.0, unit="x balanced load", doc="Expert capacity factor; 0: no capacity."
    )
    eval_factor: float = knob(
        0.0, low=0.0, unit="x balanced load", doc="Factor when not training; 0: as `factor`."
    )
    convention: str = knob(
        "with_k",
        choices=CONVENTIONS,
        doc="with_k: ceil(T*K/E * factor) (Megatron). without_k: round(T/E * factor) "
        "(flaxformer). moe_plus_plus: an expert that computes nothing gets 1/tau of the "
        "capacity of an FFN expert. Same name, different budgets.",
    )
    tau: float = knob(
        0.75,
        low=0.0,
        low_open=True,
        doc="Capacity of an FFN expert over that of a zero-computation expert, for the convention "
        "moe_plus_plus.",
    )
    priority: str = knob(
        "position",
        choices=PRIORITIES,
        doc="Who is served first: position: earlier tokens. confidence: tokens with the largest "
        "score (batch prioritised routing, V-MoE; not causal).",
    )
    minimum: int = knob(0, low=0, unit="assignments", doc="Least capacity (flaxformer: 4).")
    row_budget: float = knob(
        0.0,
        low=0.0,
        unit="assignments per token",
        doc="Most assignments of the batch, per token, on average; 0: no budget.",
    )

    def causal(self, slots: int) -> bool:
        """Whether what is dropped of a token depends on no later token.

        With more than one slot it does whatever the priority: a later token's first choice is
        served before an earlier token's second."""
        bounded = self.factor > 0 or self.eval_factor > 0 or self.row_budget > 0
        return not bounded or (self.priority == "position" and slots == 1)

    def expert_capacity(
        self, num_tokens: int, active: float, widths: tuple[int, ...], *, train: bool = True
    ) -> tuple[int, ...] | None:
        """Assignments that each expert may hold (methods H.1, H.6), or None when unbounded.

        Args:
          active: K, the experts that a token is planned to use (`Router.nominal_active`).
          widths: hidden width of each expert; 0 is a zero-computation expert.
          train: False uses `eval_factor`.
        """
        factor = self.factor if train else (self.eval_factor or self.factor)
        if factor == 0.0:
            return None
        shares = [num_tokens * factor * share for share in self._shares(active, widths)]
        if self.convention == "without_k":
            return tuple(max(round(share), self.minimum) for share in shares)
        # 110.00000000000001 assignments are 110.
        return tuple(max(math.ceil(round(share, 6)), self.minimum) for share in shares)

    def _shares(self, active: float, widths: tuple[int, ...]) -> list[float]:
        """Balanced load of each expert, in assignments per token of the batch."""
        num_experts = len(widths)
        if self.convention == "without_k":
            return [1 / num_experts] * num_experts
        if self.convention == "with_k":
            return [active / num_experts] * num_experts
        weights = [self.tau if width else 1.0 for width in widths]
        return [active * weight / sum(weights) for weight in weights]

    def _capacity_of(
        self,
        tokens: jax.Array,
        num_tokens: int,
        active: float,
        widths: tuple[int, ...],
        train: bool,
    ) -> jax.Array:
        """int32 `[E]`: `expert_capacity` of a number of tokens that is data, at most `num_tokens`.

        The same for a full batch. In float32 otherwise: a bound within 3e-7 of a whole number is
        that number, so one beyond a million may be one too small.
        """
        full = self.expert_capacity(num_tokens, active, widths, train=train)
        factor = self.factor if train else (self.eval_factor or self.factor)
        load_E = tokens * (factor * np.asarray(self._shares(active, widths), np.float32))
        if self.convention == "without_k":
            whole_E = jnp.round(load_E)
        else:
            whole_E = jnp.ceil(load_E * (1 - 3e-7) - 1e-6)
        bound_E = jnp.maximum(whole_E.astype(jnp.int32), self.minimum)
        full_E = jnp.asarray(full, jnp.int32)
        return jnp.where(tokens == num_tokens, full_E, jnp.minimum(bound_E, full_E))

    def apply(
        self,
        routing: Routing,
        ledger: Ledger,
        *,
        active: float,
        widths: tuple[int, ...] | None = None,
        valid_T: jax.Array | None = None,
        train: bool = True,
    ) -> tuple[Routing, Ledger]:
        """Capacity first, then the row budget; what they turn away goes into the ledger.

        Args:
          active, widths, train: as `expert_capacity`; without `widths` all experts are alike.
          valid_T: bool `[T]`, the tokens that count; default: all.
        """
        num_tokens = routing.expert_TK.shape[0]
        tokens = jnp.asarray(num_tokens) if valid_T is None else valid_T.sum(dtype=jnp.int32)
        widths = widths or (1,) * routing.num_experts
        capacity = self.expert_capacity(num_tokens, active, widths, train=train)
        if capacity is not None:
            routing, dropped = limit_expert_rows(
                routing,
                capacity,
                bound_E=self._capacity_of(tokens, num_tokens, active, widths, train),
                priority=self.priority,
            )
            ledger = ledger.drop("capacity", dropped)
        if self.row_budget > 0.0:
            budget = math.ceil(self.row_budget * num_tokens)
            bound = jnp.ceil(tokens * jnp.float32(self.row_budget) * (1 - 3e-7)).astype(jnp.int32)
            bound = jnp.where(tokens == num_tokens, budget, jnp.minimum(bound, budget))
            routing, dropped = limit_rows(routing, budget, bound=bound, priority=self.priority)
            ledger = ledger.drop("row_budget", dropped)
        return routing, ledger


def limit_expert_rows(
    routing: Routing,
    capacity: int | tuple[int, ...],
    *,
    bound_E: jax.Array | None = None,
    priority: str = "position",
) -> tuple[Routing, jax.Array]:
    """Keeps the first `capacity` assignments of each expert, slot-major.

    Slot-major (GShard, flaxformer): every token's first choice is served before any token's
    second choice, and within a slot tokens come in order of `priority`.

    Args:
      capacity: one bound for all experts, or one for each.
      bound_E: int32 `[E]`, the bounds where they are data; `capacity` is then the most they can be.

    Returns:
      The bounded routing and the int32 number of assignments dropped.
    """
    if isinstance(capacity, int):
        capacity = (capacity,) * routing.num_experts
    order_T = _priority_order(routing, priority)
    expert_N = _in_order(routing.expert_TK, order_T).T.reshape(-1)
    if bound_E is None:
        bound_E = jnp.asarray(capacity, jnp.int32)
    bound_E = jnp.append(bound_E, 0)  # nobody waits for the sentinel
    keep_N = rank_in_expert(expert_N, routing.num_experts) < bound_E[expert_N]
    return _keep(routing, keep_N, order_T, sum(capacity))


def limit_rows(
    routing: Routing,
    budget: int,
    *,
    bound: jax.Array | None = None,
    priority: str = "position",
) -> tuple[Routing, jax.Array]:
    """Keeps the first `budget` assignments of the batch, slot-major (see `limit_expert_rows`);
    the first `bound` of them, an int32 scalar of at most `budget`, if it is given."""
    order_T = _priority_order(routing, priority)
    filled_N = _in_order(routing.filled_TK, order_T).T.reshape(-1)
    keep_N = jnp.cumsum(filled_N.astype(jnp.int32)) <= (budget if bound is None else bound)
    return _keep(routing, keep_N, order_T, budget)


def _priority_order(routing: Routing, priority: str) -> jax.Array | None:
    """int32 `[T]`: tokens in the order in which they are served; None: as they stand."""
    if priority == "position":
        return None
    score_TN = routing.weight_TK if routing.scores_TE is None else routing.scores_TE
    return jnp.argsort(-jax.lax.stop_gradient(score_TN).max(-1), stable=True).astype(jnp.int32)


def _in_order(array_TK: jax.Array, order_T: jax.Array | None) -> jax.Array:
    return array_TK if order_T is None else array_TK[order_T]


def rank_in_expert(expert_N: jax.Array, num_experts: int) -> jax.Array:
    """int32 `[N]`: how many earlier assignments name the same expert."""
    order_N = jnp.argsort(expert_N, stable=True)
    count_E = jnp.zeros(num_experts + 1, jnp.int32).at[expert_N].add(1)
    start_E = jnp.cumsum(count_E) - count_E
    rank_sorted_N = jnp.arange(expert_N.shape[0], dtype=jnp.int32) - start_E[expert_N[order_N]]
    return jnp.zeros_like(rank_sorted_N).at[order_N].set(rank_sorted_N, unique_indices=True)


def _keep(
    routing: Routing, keep_N: jax.Array, order_T: jax.Array | None, max_rows: int
) -> tuple[Routing, jax.Array]:
    num_tokens, slots = routing.expert_TK.shape
    filled_TK = routing.filled_TK
    served_TK = keep_N.reshape(slots, num_tokens).T
    if order_T is not None:
        served_TK = jnp.zeros_like(served_TK).at[order_T].set(served_TK, unique_indices=True)
    keep_TK = filled_TK & served_TK
    bounded = dataclasses.replace(
        routing,
        expert_TK=jnp.where(keep_TK, routing.expert_TK, routing.num_experts),
        weight_TK=jnp.where(keep_TK, routing.weight_TK, 0),
        max_rows=min(routing.max_rows, max_rows),
    )
    return bounded, filled_TK.sum(dtype=jnp.int32) - keep_TK.sum(dtype=jnp.int32)
