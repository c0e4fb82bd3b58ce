"""Suites by name: each module's `workload(context)` says what is timed together."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from tools.benchmarks.context import Context
from tools.benchmarks.rows import Workload

SUITES = (
    "expert_ffn",
    "moe_layer",
    "hetero",
    "top_p",
    "growth",
    "skew",
    "lm_step",
    "lm_parts",
    "pipeline",
    "compile",
    "gpu",
)
WITH_PEERS = ("moe_layer", "lm_step", "gpu")
"""Those that compare with torch and transformers."""


def suite_of(name: str) -> Callable[[Context], Workload]:
    """The suite's `workload`; imports what it needs and no other suite."""
    found: Callable[[Context], Workload] = importlib.import_module(
        f"tools.benchmarks.suites.{name}"
    ).workload
    return found
