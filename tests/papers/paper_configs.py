"""The configs of configs/papers: loading them, and the table of their sizes in docs/papers.md."""

from __future__ import annotations

import functools
import importlib
from typing import Any

from moejax.config import build, counts
from moejax.train import Experiment

MAIN = {
    "dynamic_moe": "dynamic",
    "hmoe": "top_p_0.4b",
    "deepseek_moe": "2b",
    "deepseek_v2": "lite",
    "deepseek_v3": "v3",
    "switch": "base_64",
    "gshard": "base",
    "st_moe": "base",
    "olmoe": "1b_7b",
    "mixtral": "8x7b",
    "qwen3_moe": "30b_a3b",
    "remoe": "remoe",
    "moe_plus_plus": "0.6b",
}
"""Every paper and its default variant."""


def module(paper: str) -> Any:
    return importlib.import_module(f"configs.papers.{paper}")


def variants() -> list[tuple[str, str]]:
    return [(paper, variant) for paper in MAIN for variant in module(paper).VARIANTS]


@functools.cache
def load(paper: str, variant: str, *, quick: bool = False) -> Experiment:
    """Built and checked as the trainer does it."""
    arg = f"variant={variant}" + (",quick=true" if quick else "")
    return build(Experiment, module(paper).get_config(arg))


def sizes(paper: str, variant: str) -> counts.Parameters:
    return counts.parameters(load(paper, variant).model.shape())


def table() -> str:
    """Total and active parameters of every variant, as docs/papers.md shows them."""
    rows = ["| config | total | active |", "| --- | ---: | ---: |"]
    for paper, variant in variants():
        count = sizes(paper, variant)
        numbers = " | ".join(f"{number / 1e6:,.1f}M" for number in (count.total, count.active))
        rows.append(f"| `{paper}.py:variant={variant}` | {numbers} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
