"""A choice by platform that is made where the platform is known: when a program is lowered.

While a function is traced nobody knows what it will run on: a program for a TPU pod may be
compiled on a laptop. `jax.lax.platform_dependent` has the choice made in time, but traces every
alternative, and tracing kernels that a CPU never runs takes longer than all the rest of a layer of
many widths (docs/performance.md). Here only the alternative that is lowered is traced.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

PLATFORMS = ("cpu", "tpu", "cuda", "rocm")

_by_platform_p = Primitive("by_platform")
_by_platform_p.multiple_results = True


def by_platform(function: Callable[..., Any], like: Any, args: tuple, static: Hashable) -> Any:
    """`function(platform, *args, static)` with the platform that the program is lowered for.

    It cannot be differentiated: give it to a custom VJP, once for each pass.

    Args:
      function: pure; traced when the program is lowered. Its result has the structure, shapes and
        dtypes of `like`.
      like: a pytree of anything with a shape and a dtype.
      args: pytrees of arrays.
      static: hashable.
    """
    leaves, structure = jax.tree.flatten(like)
    outs = tuple((tuple(leaf.shape), jnp.dtype(leaf.dtype)) for leaf in leaves)
    return jax.tree.unflatten(structure, _bind(function, outs, args, static))


# Traced once for each kind of call: the lowering is kept by the identity of `flat`.
@functools.partial(jax.jit, static_argnums=(0, 1, 3), inline=True)
def _bind(function: Callable[..., Any], outs: tuple, args: tuple, static: Hashable) -> list:
    leaves, structure = jax.tree.flatten(args)

    def flat(platform: str, *given: jax.Array) -> list[jax.Array]:
        return jax.tree.leaves(function(platform, *jax.tree.unflatten(structure, given), static))

    return _by_platform_p.bind(*leaves, flat=flat, outs=outs)


@_by_platform_p.def_abstract_eval
def _abstract(*_: Any, flat: Callable[..., Any], outs: tuple) -> list[ShapedArray]:
    return [ShapedArray(shape, dtype) for shape, dtype in outs]


def _batch(args: tuple, axes: tuple, *, flat: Callable[..., Any], outs: tuple) -> tuple:
    # The axis of an array that is not batched is None.
    size = next(arg.shape[axis] for arg, axis in zip(args, axes, strict=True) if axis is not None)

    def batched(platform: str, *leaves: jax.Array) -> list[jax.Array]:
        return jax.vmap(functools.partial(flat, platform), axes, axis_size=size)(*leaves)

    outs = tuple(((size, *shape), dtype) for shape, dtype in outs)
    return _by_platform_p.bind(*args, flat=batched, outs=outs), [0] * len(outs)


batching.primitive_batchers[_by_platform_p] = _batch


def _lowering(platform: str) -> Callable[..., Any]:
    def traced(*leaves: jax.Array, flat: Callable[..., Any], outs: tuple) -> list[jax.Array]:
        results = flat(platform, *leaves)
        assert tuple((leaf.shape, leaf.dtype) for leaf in results) == outs
        return results

    return mlir.lower_fun(traced, multiple_results=True)


for _platform in PLATFORMS:
    mlir.register_lowering(_by_platform_p, _lowering(_platform), _platform)
