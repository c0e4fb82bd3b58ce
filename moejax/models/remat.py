"""Rematerialisation policies by name: what of a block is kept for the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

POLICIES = ("none", "full", "dots", "dots_no_batch")


def rematerialise(block: Callable[..., Any], policy: str) -> Callable[..., Any]:
    """Wraps a block's apply function.

    `none` keeps everything; `full` recomputes the block; `dots` keeps the results of matrix
    multiplications, `dots_no_batch` only of those without batch dimensions.
    """
    if policy == "none":
        return block
    keep = {
        "full": None,
        "dots": jax.checkpoint_policies.dots_saveable,
        "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    }[policy]
    return jax.checkpoint(block, policy=keep)
