"""The back end of the platform: on a CPU `native`, or `tiles` where that is not to be had;
`grouped` on everything else."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from moejax.experts.backends import grouped, native, tiles
from moejax.experts.native import Library, Unavailable
from moejax.experts.plan import planned_saving_by_platform
from moejax.experts.spec import Weights


def forward(platform: str, *args: Any) -> jax.Array:
    """The platform's forward pass, where no gradient is wanted."""
    if platform != "cpu":
        return grouped.forward(platform, *args)
    kernel = _native(*args[:3])
    return native.call_forward(kernel, 0, *args)[0] if kernel else tiles.forward(*args)


def saving(platform: str, *args: Any) -> tuple[jax.Array, jax.Array]:
    """The platform's forward pass, and what its backward pass wants of it."""
    (size,) = native.saved(*args).shape
    kernel = _native(*args[:3]) if platform == "cpu" else None
    if kernel:
        return native.call_forward(kernel, size, *args)
    # Nobody reads them, so XLA leaves them out; were the kernel there after all when the backward
    # pass is lowered, it would read NaN and not gradients of nothing.
    return forward(platform, *args), jnp.full(size, jnp.nan, jnp.float32)


def backward(platform: str, *args: Any) -> tuple[jax.Array, jax.Array, Weights]:
    """The platform's backward pass."""
    kernel = _native(*args[:3]) if platform == "cpu" else None
    if kernel:
        return native.call_backward(kernel, *args)
    x_TD, weight_TK, weights, plan, _, dy_TD, spec = args
    if platform == "cpu":
        return tiles.backward(x_TD, weight_TK, weights, plan, dy_TD, spec)
    return grouped.backward(platform, x_TD, weight_TK, weights, plan, dy_TD, spec)


auto = planned_saving_by_platform(forward, saving, native.saved, backward)
"""The back end."""

_said: set[str] = set()


def _native(*arrays: Any) -> Library | None:
    """The kernel, or None after one line that says why not; each reason is told once."""
    try:
        return native.find(*arrays)
    except Unavailable as reason:
        if str(reason) not in _said:
            _said.add(str(reason))
            logging.warning("experts run on 'tiles', not on the native kernel: %s", reason)
        return None
