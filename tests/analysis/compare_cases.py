"""Directories of small runs with known curves, and look-ups, for the tests of comparisons."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from run_factory import make_curve

from moejax.analysis.compare import Comparison, Row
from moejax.analysis.runs import Run, find_runs, load_runs

DENSE, MOE = [4.0, 3.5, 3.2], [3.9, 3.3, 3.0]


def write_pair(root: Path) -> Path:
    """Dense and top-k, three evaluations each; top-k costs 3/2 of the FLOPs and is half as fast."""
    make_curve(root, "dense", DENSE)
    make_curve(root, "moe", MOE, kind="top_k", flops_per_token=3e6, tokens_per_second=50)
    return root


def write_seeded(root: Path) -> Path:
    """Three seeds that differ a lot, top-k 0.1 below dense in each, and a seed of top-k's own."""
    for seed, shift in enumerate((0.0, 0.5, 1.0)):
        make_curve(root, f"dense-s{seed}", [v + shift for v in DENSE], seed=seed)
        losses = [v + shift - 0.1 + 0.01 * seed for v in DENSE]
        make_curve(root, f"moe-s{seed}", losses, seed=seed, kind="top_k")
    make_curve(root, "moe-s7", [9.0, 9.0, 9.0], seed=7, kind="top_k")
    return root


def runs_in(root: Path) -> list[Run]:
    return load_runs(find_runs([root]))[0]


def row_of(comparison: Comparison, name: str) -> Row:
    return next(row for row in comparison.rows if row.name == name)


def left_out(comparison: Comparison) -> dict[str, tuple[str, str]]:
    """run -> (cause, reason)."""
    return {one.run: (one.cause, one.reason) for one in comparison.excluded}


def edit_rows(path: Path, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    """Replaces every row of a run's metrics by what `change` makes of it; None drops the row."""
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    changed = [row for row in map(change, rows) if row]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
