"""The machine's own GEMM: what every FLOP/s is held against."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tools.benchmarks.timing import Candidate

SIZE = 2048
FLOPS = 2.0 * SIZE**3
NAME = f"gemm {SIZE}^3"


def gemm(dtype: jnp.dtype = jnp.float32) -> Candidate:
    """A square product by JAX, large enough to be at the peak."""
    left, right = jax.random.normal(jax.random.key(0), (2, SIZE, SIZE), dtype)
    product = jax.jit(jnp.matmul).lower(left, right).compile()
    return Candidate(NAME, lambda: jax.block_until_ready(product(left, right)))
