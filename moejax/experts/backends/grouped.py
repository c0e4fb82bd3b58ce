"""GPU and TPU back end: sort rows by expert, a few large grouped matmuls, combine by rows.

The rows of all assignments are gathered into one buffer, widest expert first. Experts of different
widths make a *staircase*: with distinct widths `v_1 < v_2 < ...`, step `s` is the slice
`v_{s-1} : v_s` of the hidden units. Experts at least `v_s` wide have that slice, and as they come
first their rows are a prefix of the buffer. Each step is one grouped FFN, and the outputs add: an
FFN, gated or not, is a sum over its hidden units. A uniform layer is one step.

    rows of     expert 2 (width 3)  expert 0 (2)  expert 1 (1)  empty
    units 0:1   ██████████████████████████████████████████████        step 1: experts 2, 0, 1
    units 1:2   ████████████████████████████████                      step 2: experts 2, 0
    units 2:3   ██████████████████                                    step 3: expert 2

The buffer is static. Where fewer rows are planned than there can be (top-p, rows from other
devices), it holds the planned number, and the sorted rows go through it in as many passes as it
takes: almost always one.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moejax.experts.backends.grouped_matmul import ROW_TILES, products
from moejax.experts.plan import Plan, planned_by_platform
from moejax.experts.spec import ACTIVATIONS, ExpertsSpec, Weights


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of the staircase.

    Attributes:
      experts: those that have this slice of the hidden units, widest first.
      width: `F`, hidden units in the slice.
      units: storage units of the slice, expert after expert.
    """

    experts: tuple[int, ...]
    width: int
    units: tuple[int, ...]


def staircase(spec: ExpertsSpec) -> tuple[Step, ...]:
    """The steps from the slice that every expert with hidden units has to that of the widest. Every
    storage unit is in exactly one of them."""
    steps, below = [], 0
    for width in sorted({width for width in spec.widths if width}):
        experts = tuple(e for e in spec.widest_first if spec.widths[e] >= width)
        slice_ = range(below // spec.unit, width // spec.unit)
        units = tuple(spec.starts[expert] + unit for expert in experts for unit in slice_)
        steps.append(Step(experts, width - below, units))
        below = width
    return tuple(steps)


class _Rows(NamedTuple):
    """The row buffer. Rows behind the last assignment have ids out of range (so that scatters drop
    them), zeros and weight 0.

    Attributes:
      row_R: int32, assignment of each row.
      token_R: int32, its token.
      x_RD: its hidden state.
      weight_R: its combine weight, float32 or better.
    """

    row_R: jax.Array
    token_R: jax.Array
    x_RD: jax.Array
    weight_R: jax.Array

    def prefix(self, size: int) -> _Rows:
        """The first `size` rows."""
        return _Rows(*(array[:size] for array in self))


def forward(
    platform: str,
    x_TD: jax.Array,
    weight_TK: jax.Array,
    weights: Weights,
    plan: Plan,
    spec: ExpertsSpec,
) -> jax.Array:
    """`y_t = sum_k weight[t, k] * E_{expert[t, k]}(x_t)`, `[T, D]` in the dtype of `x_TD`."""
    nt, nn, _ = products(spec.grouped_matmul, platform, x_TD.dtype)
    activation = ACTIVATIONS[spec.activation]
    passes = _Passes(plan, x_TD.shape[0], spec)

    def one(index: jax.Array | int, y_TD: jax.Array) -> jax.Array:
        rows = _rows(x_TD, weight_TK, plan, passes, index)
        acc = rows.weight_R.dtype
        out_RD = jnp.zeros((), acc)
        for step, (*into_GFD, down_GFD) in _steps(weights, spec):
            sizes_G = passes.sizes(step, index)
            part = rows.prefix(passes.buffer(step))
            hidden_RF = activation(*(nt(part.x_RD, w_GFD, sizes_G) for w_GFD in into_GFD))
            step_RD = nn(_scaled(hidden_RF, part.weight_R), down_GFD, sizes_G)
            out_RD = _add_prefix(out_RD, step_RD.astype(acc))
        return y_TD.at[rows.token_R].add(out_RD, mode="drop")

    acc = jnp.promote_types(x_TD.dtype, jnp.float32)
    return passes.over(one, jnp.zeros(x_TD.shape, acc)).astype(x_TD.dtype)


def backward(
    platform: str,
    x_TD: jax.Array,
    weight_TK: jax.Array,
    weights: Weights,
    plan: Plan,
    dy_TD: jax.Array,
    spec: ExpertsSpec,
) -> tuple[jax.Array, jax.Array, Weights]:
    """The vector-Jacobian product of `forward` for `x_TD`, `weight_TK` and `weights`."""
    nt, nn, tn = products(spec.grouped_matmul, platform, x_TD.dtype)
    activation = ACTIVATIONS[spec.activation]
    passes = _Passes(plan, x_TD.shape[0], spec)
    acc = jnp.promote_types(x_TD.dtype, jnp.float32)

    def one(index: jax.Array | int, carry: _Gradients) -> _Gradients:
        rows = _rows(x_TD, weight_TK, plan, passes, index)
        dy_RD = jnp.take(dy_TD, rows.token_R, axis=0, mode="fill", fill_value=0)
        dx_RD, dweight_R = jnp.zeros((), acc), jnp.zeros((), acc)
        grads: list[list[jax.Array]] = []
        for step, (*into_GFD, down_GFD) in _steps(weights, spec):
            sizes_G = passes.sizes(step, index)
            part = rows.prefix(passes.buffer(step))
            dpart_RD = dy_RD[: len(part.row_R)]
            hidden_RF, activation_vjp = jax.vjp(
                activation, *(nt(part.x_RD, w_GFD, sizes_G) for w_GFD in into_GFD)
            )
            dweighted_RF = nt(dpart_RD, down_GFD, sizes_G)
            dweight_R = _add_prefix(
                dweight_R, (dweighted_RF.astype(acc) * hidden_RF.astype(acc)).sum(-1)
            )
            dpre_RF = activation_vjp(_scaled(dweighted_RF, part.weight_R))
            for d_RF, w_GFD in zip(dpre_RF, into_GFD, strict=True):
                dx_RD = _add_prefix(dx_RD, nn(d_RF, w_GFD, sizes_G).astype(acc))
            grads.append(
                [
                    *(tn(d_RF, part.x_RD, sizes_G) for d_RF in dpre_RF),
                    tn(_scaled(hidden_RF, part.weight_R), dpart_RD, sizes_G),
                ]
            )
        return _Gradients(
            carry.x_TD.at[rows.token_R].add(dx_RD, mode="drop"),
            carry.weight_N.at[rows.row_R].set(dweight_R, mode="drop", unique_indices=True),
            _stored(grads, weights, spec)
            if carry.weights is None
            else jax.tree.map(_add_wide, carry.weights, _stored(grads, weights, spec)),
        )

    zeros = None
    if not passes.only_one:
        zeros = {name: jnp.zeros(weights[name].shape, acc) for name in spec.weight_names}
    start = _Gradients(jnp.zeros(x_TD.shape, acc), jnp.zeros(weight_TK.size, acc), zeros)
    found = passes.over(one, start)
    dweight_TK = found.weight_N.reshape(weight_TK.shape).astype(weight_TK.dtype)
    assert found.weights is not None
    dweights = {name: grad.astype(weights[name].dtype) for name, grad in found.weights.items()}
    return found.x_TD.astype(x_TD.dtype), dweight_TK, dweights


class _Gradients(NamedTuple):
    """Of the hidden states and the combine weights, in float32 or better; of the stored weights."""

    x_TD: jax.Array
    weight_N: jax.Array
    weights: Weights | None


grouped = planned_by_platform(forward, backward)
"""The back end."""


@dataclasses.dataclass(frozen=True)
class _Passes:
    """The sorted rows, cut into windows of the size of the buffer."""

    plan: Plan
    num_tokens: int
    spec: ExpertsSpec

    @functools.cached_property
    def size(self) -> int:
        """Rows of the buffer: those that are planned, at most those that there can be."""
        planned = math.ceil(self.spec.rows_per_token * self.num_tokens)
        return min(self._most(self._everyone), _whole_tiles(planned or self.plan.max_rows))

    @property
    def only_one(self) -> bool:
        """Whether everything that there can be fits."""
        return self.size == self._most(self._everyone)

    @property
    def _everyone(self) -> Step:
        return staircase(self.spec)[0]

    def _most(self, step: Step) -> int:
        # A token holds each expert at most once.
        return _whole_tiles(min(self.plan.max_rows, self.num_tokens * len(step.experts)))

    def buffer(self, step: Step) -> int:
        """Rows to compute a step for."""
        return min(self.size, self._most(step))

    def rows(self) -> jax.Array:
        """int32: rows that there are."""
        return self.plan.count_E[np.asarray(self._everyone.experts)].sum()

    def sizes(self, step: Step, index: jax.Array | int) -> jax.Array:
        """int32 `[G]`: rows of each expert of a step in a window."""
        experts = np.asarray(step.experts)
        if self.only_one:
            return self.plan.count_E[experts]
        begin_G = self.plan.start_E[experts]
        ends_G = begin_G + self.plan.count_E[experts]
        first = index * self.size
        begin_G, ends_G = (jnp.clip(b - first, 0, self.size) for b in (begin_G, ends_G))
        return ends_G - begin_G

    def over(self, one: Callable[[Any, Any], Any], carry: Any) -> Any:
        """Runs `one(index, carry) -> carry` on every window that holds a row."""
        if self.only_one:
            return one(0, carry)
        return jax.lax.fori_loop(0, -(-self.rows() // self.size), one, carry)


def _whole_tiles(rows: int) -> int:
    """No kernel likes a number of rows that is no multiple of a tile."""
    rows = max(1, rows)
    tile = ROW_TILES[0] if rows > 8 * ROW_TILES[0] else ROW_TILES[-1]
    return -(-rows // tile) * tile


def _rows(
    x_TD: jax.Array, weight_TK: jax.Array, plan: Plan, passes: _Passes, index: jax.Array | int
) -> _Rows:
    """Gathers a window of the rows of every expert that has hidden units."""
    num_tokens, slots = weight_TK.shape
    offset_R = jnp.arange(passes.size, dtype=jnp.int32)
    position_R = index * passes.size + offset_R
    live_R = position_R < passes.rows()
    row_R = jnp.take(plan.order_N, position_R, mode="fill", fill_value=0)
    token_R = jnp.where(live_R, row_R // slots, num_tokens)
    # Different ids, so that a scatter may take them for unique.
    row_R = jnp.where(live_R, row_R, weight_TK.size + offset_R)
    acc = jnp.promote_types(x_TD.dtype, jnp.float32)
    return _Rows(
        row_R,
        token_R,
        jnp.take(x_TD, token_R, axis=0, mode="fill", fill_value=0),
        jnp.take(weight_TK.reshape(-1), row_R, mode="fill", fill_value=0).astype(acc),
    )


def _add_wide(total: jax.Array, part: jax.Array) -> jax.Array:
    return total + part.astype(total.dtype)


def _steps(weights: Weights, spec: ExpertsSpec) -> Iterator[tuple[Step, list[jax.Array]]]:
    """The steps with their slices of the weights, `[G, F, D]` each, down the last."""
    unit_order_N = _unit_order(spec)
    ordered = [
        weights[name] if unit_order_N is None else weights[name][unit_order_N]
        for name in spec.weight_names
    ]
    first = 0
    for step in staircase(spec):
        shape = (len(step.experts), step.width, ordered[0].shape[-1])
        last = first + len(step.units)
        yield step, [weight_NUD[first:last].reshape(shape) for weight_NUD in ordered]
        first = last


def _stored(grads: list[list[jax.Array]], weights: Weights, spec: ExpertsSpec) -> Weights:
    """Gradients of the steps' slices, `[G, F, D]`, as gradients of the stored arrays."""
    unit_order_N = _unit_order(spec)
    stored = {}
    for name, slices in zip(spec.weight_names, zip(*grads, strict=True), strict=True):
        shape = (-1, *weights[name].shape[1:])
        grad_NUD = jnp.concatenate([slice_GFD.reshape(shape) for slice_GFD in slices])
        if unit_order_N is not None:
            grad_NUD = grad_NUD[np.argsort(unit_order_N)]
        stored[name] = grad_NUD.astype(weights[name].dtype)
    return stored


@functools.cache
def _unit_order(spec: ExpertsSpec) -> np.ndarray | None:
    """Storage units in the order of the steps; None if that is the order they are stored in."""
    order_N = np.asarray([unit for step in staircase(spec) for unit in step.units], np.int32)
    return None if (order_N == np.arange(spec.num_units)).all() else order_N


def _add_prefix(total: jax.Array, part: jax.Array) -> jax.Array:
    """`total` with `part` added to its first rows; `part` itself if there is no total yet."""
    return total.at[: len(part)].add(part) if total.ndim else part


def _scaled(value_RF: jax.Array, weight_R: jax.Array) -> jax.Array:
    """Rows times their weight, in the dtype of the rows, rounded once."""
    return (value_RF.astype(weight_R.dtype) * weight_R[:, None]).astype(value_RF.dtype)
