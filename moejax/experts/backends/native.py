"""CPU back end in C++ (moejax/experts/native): one call into the kernel for each pass.

The kernel sorts, gathers, computes and combines by itself, in float32. Its forward pass keeps the
hidden units' pre-activations for the backward pass, in a buffer for as many rows as are planned
(`rows_per_token`); experts that find no room in it are computed again, so that a buffer for the
worst case is never needed and every row is exact.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moejax.config.knobs import ConfigError
from moejax.experts.native import Library, Unavailable, load
from moejax.experts.plan import Plan, planned_saving_by_platform
from moejax.experts.spec import ACTIVATIONS, ExpertsSpec, Weights, projections

PANEL = 32
"""Hidden units that the kernel keeps together (native/gemm.h)."""

NUMBERS = {name: number for number, name in enumerate(ACTIVATIONS)}
"""What native/activations.h calls each activation."""


def find(x_TD: jax.Array, weight_TK: jax.Array, weights: Weights) -> Library:
    """The kernel for these arrays.

    Raises:
      Unavailable: this machine has none, or they are not float32.
    """
    dtypes = {array.dtype for array in (x_TD, weight_TK, *weights.values())}
    others = sorted(str(dtype) for dtype in dtypes - {jnp.dtype("float32")})
    if others:
        raise Unavailable(f"it computes in float32, not {others[0]}")
    if weight_TK.size >= 2**31:
        raise Unavailable(f"{weight_TK.size} assignments are more than 2**31 - 1")
    return load()


def saved(
    x_TD: jax.Array, weight_TK: jax.Array, weights: Weights, plan: Plan, spec: ExpertsSpec
) -> jax.ShapeDtypeStruct:
    """The buffer of pre-activations: room for the planned rows at mean width, and never for more
    than there can be. It depends on shapes and dtypes alone, not on the machine."""
    if x_TD.dtype != jnp.float32:
        return jax.ShapeDtypeStruct((0,), jnp.float32)
    panels = [math.ceil(width / PANEL) for width in spec.widths if width]
    most = plan.max_rows * max(panels, default=0)
    planned = math.ceil(spec.rows_per_token * x_TD.shape[0]) or plan.max_rows
    mean = math.ceil(planned * sum(panels) / max(1, len(panels)))
    into = len(projections(spec.activation)) - 1
    return jax.ShapeDtypeStruct((into * PANEL * min(most, mean),), jnp.float32)


def call_forward(
    kernel: Library,
    size: int,
    x_TD: jax.Array,
    weight_TK: jax.Array,
    weights: Weights,
    plan: Plan,
    spec: ExpertsSpec,
) -> tuple[jax.Array, jax.Array]:
    """`y_TD` `[T, D]`, and `size` numbers for the backward pass, all float32."""
    results = (
        jax.ShapeDtypeStruct(x_TD.shape, jnp.float32),
        jax.ShapeDtypeStruct((size,), jnp.float32),
    )
    call = jax.ffi.ffi_call(kernel.forward, results, vmap_method="sequential")
    arrays = (weights[name] for name in spec.weight_names)
    y_TD, kept = call(x_TD, plan.expert_TK, weight_TK, *arrays, **_attributes(spec))
    return y_TD, kept


def call_backward(
    kernel: Library,
    x_TD: jax.Array,
    weight_TK: jax.Array,
    weights: Weights,
    plan: Plan,
    kept: jax.Array,
    dy_TD: jax.Array,
    spec: ExpertsSpec,
) -> tuple[jax.Array, jax.Array, Weights]:
    """Gradients for tokens, combine weights and weights, in their shapes."""
    arrays = [weights[name] for name in spec.weight_names]
    results = [
        jax.ShapeDtypeStruct(array.shape, jnp.float32) for array in (x_TD, weight_TK, *arrays)
    ]
    call = jax.ffi.ffi_call(kernel.backward, results, vmap_method="sequential")
    dx_TD, dweight_TK, *grads = call(
        x_TD, plan.expert_TK, weight_TK, kept, dy_TD, *arrays, **_attributes(spec)
    )
    return dx_TD, dweight_TK, dict(zip(spec.weight_names, grads, strict=True))


def forward(platform: str, *args: Any) -> jax.Array:
    """The forward pass where no gradient is wanted: nothing is kept."""
    return call_forward(_required(platform, *args[:3]), 0, *args)[0]


def saving(platform: str, *args: Any) -> tuple[jax.Array, jax.Array]:
    """The forward pass where one is."""
    return call_forward(_required(platform, *args[:3]), saved(*args).shape[0], *args)


def backward(platform: str, *args: Any) -> tuple[jax.Array, jax.Array, Weights]:
    """The vector-Jacobian product."""
    return call_backward(_required(platform, *args[:3]), *args)


native = planned_saving_by_platform(forward, saving, saved, backward)
"""The back end; raises ConfigError where a program is lowered that cannot have it."""


def _required(platform: str, *arrays: Any) -> Library:
    try:
        if platform != "cpu":
            raise Unavailable(f"it is for CPUs, and this program for {platform}")
        return find(*arrays)
    except Unavailable as reason:
        raise ConfigError(
            f"backend='native': {reason}; nearest valid value backend='auto'"
        ) from reason


def _attributes(spec: ExpertsSpec) -> dict[str, Any]:
    return {
        "widths": np.asarray(spec.widths, np.int64),
        "activation": np.int64(NUMBERS[spec.activation]),
    }
