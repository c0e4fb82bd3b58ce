"""The machine's own GEMM: what every FLOP/s is held against."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tools.benchmarks.timing import Candidate

SIZE = 2048
FLOPS = 2.0 * SIZE**3
NAME = f"gemm {SIZE}^3"


def gemm(size: int = 0, dtype: jnp.dtype = jnp.float32, name: str = NAME) -> Candidate:
    """A square product by JAX, large enough to be at the peak; size 0: `SIZE`."""
    shape = (2, size or SIZE, size or SIZE)
    left, right = jax.random.normal(jax.random.key(0), shape, dtype)
    product = jax.jit(jnp.matmul).lower(left, right).compile()
    return Candidate(name, lambda: jax.block_until_ready(product(left, right)))


def size_of(flops: float, multiple: int = 128) -> int:
    """The square product that comes nearest to so many FLOPs, in whole tiles of a GPU."""
    return multiple * max(1, round((flops / 2) ** (1 / 3) / multiple))
