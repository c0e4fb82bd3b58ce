"""Which assignments an expert computation works on, and in which order; back ends share it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from moejax.experts.platform import by_platform
from moejax.experts.spec import ExpertsSpec, Weights
from moejax.routing.contract import Routing

PACKED_KEYS = 2**31
"""How many different keys the packed sort of `_order` can tell apart (int32)."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["order_N", "start_E", "count_E", "expert_TK"],
    meta_fields=["max_rows"],
)
@dataclasses.dataclass(frozen=True)
class Plan:
    """Assignments sorted by expert. An assignment is `t*K + k`: slot `k` of token `t`.

    Attributes:
      order_N: int32 `[T*K]`, the assignments of the widest expert first, empty slots last.
      start_E: int32 `[E]`, position in `order_N` of each expert's first assignment.
      count_E: int32 `[E]`, assignments of each expert.
      expert_TK: int32 `[T, K]`, the routing's own table, for a back end that sorts by itself; XLA
        leaves out what a back end does not use.
      max_rows: static bound on the filled slots, as in `Routing`.
    """

    order_N: jax.Array
    start_E: jax.Array
    count_E: jax.Array
    expert_TK: jax.Array
    max_rows: int


Backend = Callable[[jax.Array, Routing, Weights, ExpertsSpec], jax.Array]
"""`(x_TD, routing, weights, spec) -> y_TD`."""


def planned(
    forward: Callable[..., jax.Array],
    backward: Callable[..., tuple[jax.Array, jax.Array, Weights]],
) -> Backend:
    """A back end from its two passes.

    What the backward pass needs of the forward one it computes again: hidden activations would
    need a buffer for the worst case.

    Args:
      forward: `(x_TD, weight_TK, weights, plan, spec) -> y_TD`, in the dtype of `x_TD`.
      backward: its vector-Jacobian product, `(x_TD, weight_TK, weights, plan, dy_TD, spec) ->
        (dx_TD, dweight_TK, dweights)`.
    """
    return planned_saving(
        forward,
        lambda *args: (forward(*args), ()),
        lambda x_TD, weight_TK, weights, plan, saved, dy_TD, spec: backward(
            x_TD, weight_TK, weights, plan, dy_TD, spec
        ),
    )


def planned_saving(
    forward: Callable[..., jax.Array],
    saving: Callable[..., tuple[jax.Array, Any]],
    backward: Callable[..., tuple[jax.Array, jax.Array, Weights]],
) -> Backend:
    """A back end whose forward pass may leave something to the backward one.

    Args:
      forward: `(x_TD, weight_TK, weights, plan, spec) -> y_TD`, where no gradient is wanted.
      saving: the same, `-> (y_TD, saved)`, where one is.
      backward: `(x_TD, weight_TK, weights, plan, saved, dy_TD, spec) -> (dx_TD, dweight_TK,
        dweights)`.
    """

    @functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
    def compute(
        x_TD: jax.Array, weight_TK: jax.Array, weights: Weights, plan: Plan, spec: ExpertsSpec
    ) -> jax.Array:
        return forward(x_TD, weight_TK, weights, plan, spec)

    def compute_forward(
        x_TD: jax.Array, weight_TK: jax.Array, weights: Weights, plan: Plan, spec: ExpertsSpec
    ) -> tuple[jax.Array, Any]:
        y_TD, saved = saving(x_TD, weight_TK, weights, plan, spec)
        return y_TD, (x_TD, weight_TK, weights, plan, saved)

    def compute_backward(spec: ExpertsSpec, residuals: Any, dy_TD: jax.Array) -> tuple[Any, ...]:
        return *backward(*residuals, dy_TD, spec), None

    compute.defvjp(compute_forward, compute_backward)

    def backend(
        x_TD: jax.Array, routing: Routing, weights: Weights, spec: ExpertsSpec
    ) -> jax.Array:
        return compute(x_TD, routing.weight_TK, weights, plan_of(routing, spec), spec)

    return backend


def planned_by_platform(
    forward: Callable[..., jax.Array],
    backward: Callable[..., tuple[jax.Array, jax.Array, Weights]],
) -> Backend:
    """The same from passes whose first argument is the platform that they are lowered for."""
    return planned(
        lambda *args: by_platform(forward, args[0], args[:-1], args[-1]),
        lambda *args: by_platform(backward, args[:3], args[:-1], args[-1]),
    )


def planned_saving_by_platform(
    forward: Callable[..., jax.Array],
    saving: Callable[..., tuple[jax.Array, jax.Array]],
    saved: Callable[..., jax.ShapeDtypeStruct],
    backward: Callable[..., tuple[jax.Array, jax.Array, Weights]],
) -> Backend:
    """The same with something saved, of one shape whatever the platform.

    Args:
      saved: `(x_TD, weight_TK, weights, plan, spec) ->` its shape and dtype.
    """
    return planned_saving(
        lambda *args: by_platform(forward, args[0], args[:-1], args[-1]),
        lambda *args: by_platform(saving, (args[0], saved(*args)), args[:-1], args[-1]),
        lambda *args: by_platform(backward, args[:3], args[:-1], args[-1]),
    )


def plan_of(routing: Routing, spec: ExpertsSpec) -> Plan:
    """Sorts the assignments of a routing."""
    expert_N = routing.expert_TK.reshape(-1)
    experts = np.asarray(spec.widest_first, np.int32)
    count_E = jnp.zeros(spec.num_experts, jnp.int32).at[expert_N].add(1, mode="drop")
    if (np.diff(experts) > 0).all():
        start_E = jnp.cumsum(count_E) - count_E
    else:
        rank_E = np.argsort(experts).astype(np.int32)
        expert_N = jnp.asarray(np.append(rank_E, spec.num_experts))[expert_N]
        ranked_E = count_E[experts]
        start_E = (jnp.cumsum(ranked_E) - ranked_E)[rank_E]
    order_N = _order(expert_N, spec.num_experts)
    return Plan(order_N, start_E, count_E, routing.expert_TK, routing.max_rows)


def _order(key_N: jax.Array, num_experts: int) -> jax.Array:
    """Positions of `key_N` (0 to `num_experts`) in ascending order of key, then of position."""
    size = key_N.shape[0]
    if (num_experts + 1) * size < PACKED_KEYS:
        # One unstable sort of a packed key is three times cheaper than a stable argsort on CPU.
        packed_N = key_N * size + jnp.arange(size, dtype=jnp.int32)
        return lax.sort(packed_N, is_stable=False) % size
    return jnp.argsort(key_N, stable=True).astype(jnp.int32)
