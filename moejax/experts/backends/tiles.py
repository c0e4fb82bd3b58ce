"""CPU back end: work through each expert's tokens in tiles; gather, compute and combine inside.

Only the assignments are sorted; rows are gathered a tile at a time and added straight into the
output, so no `[T*K, D]` buffer exists, empty slots and empty experts cost nothing, and the cost
follows the activated width. Tiles need a loop whose trip count is data (how many tokens an expert
got), which reverse-mode autodiff cannot cross: hence the custom VJP, which recomputes the hidden
activations instead of storing them (they would need a buffer for the worst case).

Experts are grouped by width, so that every matrix multiplication has a static shape: one compiled
tile body per distinct width.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from moejax.experts.plan import Plan, planned
from moejax.experts.spec import ACTIVATIONS, ROOM, ExpertsSpec, Weights

Carry = Any


def forward(
    x_TD: jax.Array,
    weight_TK: jax.Array,
    weights: Weights,
    plan: Plan,
    spec: ExpertsSpec,
) -> jax.Array:
    """`y_t = sum_k weight[t, k] * E_{expert[t, k]}(x_t)`, `[T, D]` in the dtype of `x_TD`."""
    spec = fitted(spec, x_TD.shape[0])
    layout = _layout(plan, spec)
    activation = ACTIVATIONS[spec.activation]
    y_TD = jnp.zeros(x_TD.shape, jnp.promote_types(x_TD.dtype, jnp.float32))
    for width, experts in spec.by_width().items():

        def one_expert(index: jax.Array, y_TD: jax.Array, width: int, experts: Any) -> jax.Array:
            expert, (*into_FD, down_FD) = _expert(index, experts, width, weights, spec)

            def one_tile(tile: jax.Array, y_TD: jax.Array) -> jax.Array:
                _, token_R, x_RD, weight_R = _gather(x_TD, weight_TK, layout, expert, tile, spec)
                hidden_RF = activation(*(_nt(x_RD, w_FD) for w_FD in into_FD))
                out_RD = (hidden_RF * weight_R[:, None].astype(hidden_RF.dtype)) @ down_FD
                return _add_rows(y_TD, token_R, out_RD)

            return lax.fori_loop(0, _num_tiles(layout, expert, spec), one_tile, y_TD)

        y_TD = _for_each(experts, functools.partial(one_expert, width=width, experts=experts), y_TD)
    return y_TD.astype(x_TD.dtype)


def backward(
    x_TD: jax.Array,
    weight_TK: jax.Array,
    weights: Weights,
    plan: Plan,
    dy_TD: jax.Array,
    spec: ExpertsSpec,
) -> tuple[jax.Array, jax.Array, Weights]:
    """The vector-Jacobian product of `forward` for `x_TD`, `weight_TK` and `weights`."""
    spec = fitted(spec, x_TD.shape[0])
    layout = _layout(plan, spec)
    activation = ACTIVATIONS[spec.activation]
    acc = jnp.promote_types(x_TD.dtype, jnp.float32)
    grads = {name: jnp.zeros_like(weights[name]) for name in spec.weight_names}
    carry: Carry = (jnp.zeros(x_TD.shape, acc), jnp.zeros(weight_TK.size, acc), grads)
    for width, experts in spec.by_width().items():

        def one_expert(index: jax.Array, carry: Carry, width: int, experts: Any) -> Carry:
            dx_TD, dweight_N, grads, *dweights = carry
            expert, (*into_FD, down_FD) = _expert(index, experts, width, weights, spec)

            def one_tile(tile: jax.Array, carry: Carry) -> Carry:
                dx_TD, dweight_N, *dinto_FD, ddown_FD = carry
                row_R, token_R, x_RD, weight_R = _gather(
                    x_TD, weight_TK, layout, expert, tile, spec
                )
                dy_RD = jnp.take(dy_TD, token_R, axis=0, mode="fill", fill_value=0)
                hidden_RF, activation_vjp = jax.vjp(
                    activation, *(_nt(x_RD, w_FD) for w_FD in into_FD)
                )
                weight_R1 = weight_R[:, None].astype(hidden_RF.dtype)
                dweighted_RF = _nt(dy_RD, down_FD)
                dweight_R = (dweighted_RF * hidden_RF).sum(-1, dtype=acc)
                dpre_RF = activation_vjp(dweighted_RF * weight_R1)
                dx_RD = functools.reduce(
                    jnp.add, (d_RF @ w_FD for d_RF, w_FD in zip(dpre_RF, into_FD, strict=True))
                )
                first = tile == 0
                return (
                    _add_rows(dx_TD, token_R, dx_RD),
                    dweight_N.at[row_R].set(dweight_R, mode="drop", unique_indices=True),
                    *(
                        jnp.where(first, 0, dw_FD) + _tn(d_RF, x_RD)
                        for dw_FD, d_RF in zip(dinto_FD, dpre_RF, strict=True)
                    ),
                    jnp.where(first, 0, ddown_FD) + _tn(hidden_RF * weight_R1, dy_RD),
                )

            tiles = _num_tiles(layout, expert, spec)
            dx_TD, dweight_N, *dweights = lax.fori_loop(
                0, tiles, one_tile, (dx_TD, dweight_N, *dweights)
            )
            start = jnp.asarray(np.asarray(spec.starts))[expert]
            shape = (width // spec.unit, spec.unit, x_TD.shape[-1])
            grads = {
                name: lax.dynamic_update_slice_in_dim(
                    grads[name],
                    jnp.where(tiles == 0, 0, d_FD).reshape(shape).astype(grads[name].dtype),
                    start,
                    axis=0,
                )
                for name, d_FD in zip(spec.weight_names, dweights, strict=True)
            }
            return dx_TD, dweight_N, grads, *dweights

        # One expert's gradients go through buffers that the next one writes over: none is filled
        # with zeros for every expert.
        buffers = (jnp.zeros((width, x_TD.shape[-1]), acc) for _ in spec.weight_names)
        body = functools.partial(one_expert, width=width, experts=experts)
        carry = _for_each(experts, body, (*carry, *buffers))[:3]
    dx_TD, dweight_N, grads = carry
    dweight_TK = dweight_N.reshape(weight_TK.shape).astype(weight_TK.dtype)
    return dx_TD.astype(x_TD.dtype), dweight_TK, grads


tiles = planned(forward, backward)
"""The back end."""


def fitted(spec: ExpertsSpec, num_tokens: int) -> ExpertsSpec:
    """The spec with tiles that fit what an expert is planned to get, a fifth above it: a tile that
    an expert does not fill is computed all the same. `spec.tile` is the most."""
    experts = sum(width > 0 for width in spec.widths)
    planned = 1.2 * spec.rows_per_token / ROOM * num_tokens / max(1, experts)
    if not planned:
        return spec
    each = planned / math.ceil(planned / spec.tile)
    return dataclasses.replace(spec, tile=min(spec.tile, max(8, math.ceil(each / 8) * 8)))


def _layout(plan: Plan, spec: ExpertsSpec) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The plan's arrays; a tile may read past the last assignment, masked by the expert's count."""
    return jnp.pad(plan.order_N, (0, spec.tile)), plan.start_E, plan.count_E


def _for_each(
    experts: tuple[int, ...], body: Callable[[jax.Array, Carry], Carry], carry: Carry
) -> Carry:
    return lax.fori_loop(0, len(experts), body, carry)


def _expert(
    index: jax.Array, experts: tuple[int, ...], width: int, weights: Weights, spec: ExpertsSpec
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """The `index`-th expert of a width class and its rows, `[F, D]` each, down the last."""
    expert = jnp.asarray(np.asarray(experts, np.int32))[index]
    start = jnp.asarray(np.asarray(spec.starts, np.int32))[expert]
    rows = [
        lax.dynamic_slice_in_dim(weights[name], start, width // spec.unit, axis=0)
        for name in spec.weight_names
    ]
    return expert, tuple(row_NUD.reshape(width, row_NUD.shape[-1]) for row_NUD in rows)


def _num_tiles(layout: Any, expert: jax.Array, spec: ExpertsSpec) -> jax.Array:
    return (layout[2][expert] + spec.tile - 1) // spec.tile


def _gather(
    x_TD: jax.Array,
    weight_TK: jax.Array,
    layout: Any,
    expert: jax.Array,
    tile: jax.Array,
    spec: ExpertsSpec,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """One tile of an expert's assignments: assignment ids, token ids, rows, combine weights.

    Rows past the expert's last assignment get ids out of range (distinct ones, so that scatters
    may assume unique indices and drop them), zero rows and weight 0.
    """
    order_N, start_E, count_E = layout
    num_tokens, slots = weight_TK.shape
    offset_R = jnp.arange(spec.tile, dtype=jnp.int32)
    live_R = tile * spec.tile + offset_R < count_E[expert]
    row_R = lax.dynamic_slice_in_dim(order_N, start_E[expert] + tile * spec.tile, spec.tile)
    token_R = jnp.where(live_R, row_R // slots, num_tokens + offset_R)
    row_R = jnp.where(live_R, row_R, num_tokens * slots + offset_R)
    x_RD = jnp.take(x_TD, token_R, axis=0, mode="fill", fill_value=0)
    weight_R = jnp.take(weight_TK.reshape(-1), row_R, mode="fill", fill_value=0)
    return row_R, token_R, x_RD, weight_R


def _add_rows(y_TD: jax.Array, token_R: jax.Array, rows_RD: jax.Array) -> jax.Array:
    """Adds rows to their tokens. An expert sees a token at most once, so ids are unique."""
    return y_TD.at[token_R].add(rows_RD.astype(y_TD.dtype), mode="drop", unique_indices=True)


def _nt(a_RD: jax.Array, b_FD: jax.Array) -> jax.Array:
    """`a @ b.T`."""
    return lax.dot_general(a_RD, b_FD, (((1,), (1,)), ((), ())))


def _tn(a_RF: jax.Array, b_RD: jax.Array) -> jax.Array:
    """`a.T @ b`, accumulated in float32 or better."""
    acc = jnp.promote_types(a_RF.dtype, jnp.float32)
    return lax.dot_general(a_RF, b_RD, (((0,), (0,)), ((), ())), preferred_element_type=acc)
