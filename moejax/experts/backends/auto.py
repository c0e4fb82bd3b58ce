"""The back end of the platform: `tiles` on a CPU, `grouped` on everything else."""

from __future__ import annotations

from typing import Any

import jax

from moejax.experts.backends import grouped, tiles
from moejax.experts.plan import planned_by_platform
from moejax.experts.spec import Weights


def forward(platform: str, *args: Any) -> jax.Array:
    """`tiles.forward` or `grouped.forward`."""
    return tiles.forward(*args) if platform == "cpu" else grouped.forward(platform, *args)


def backward(platform: str, *args: Any) -> tuple[jax.Array, jax.Array, Weights]:
    """`tiles.backward` or `grouped.backward`."""
    return tiles.backward(*args) if platform == "cpu" else grouped.backward(platform, *args)


auto = planned_by_platform(forward, backward)
"""The back end."""
