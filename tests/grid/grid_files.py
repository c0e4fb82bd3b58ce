"""Grid files and finished run directories for tests, written in milliseconds."""

from __future__ import annotations

import json
from pathlib import Path

from moejax.grid.cells import Cell, Grid
from moejax.grid.load import load_grid
from moejax.grid.places import Places

REPOSITORY = Path(__file__).resolve().parent.parent.parent
LM = REPOSITORY / "configs" / "lm.py"
HEAD = "from moejax.grid import *\nfrom moejax.experts import WidthPlan\n"


def write_grid(directory: Path, sweep: str, name: str = "sample") -> Path:
    """A grid file that returns `Sweep(<sweep>)`; LM stands for the path of configs/lm.py."""
    path = directory / f"{name}.py"
    path.write_text(f"{HEAD}LM = {str(LM)!r}\ndef get_grid():\n    return Sweep({sweep})\n")
    return path


def sample_grid(directory: Path, sweep: str, name: str = "sample") -> Grid:
    return load_grid(str(write_grid(directory, sweep, name)))


def finish(root: Path, cell: Cell, loss: float | None, **changes: object) -> Path:
    """What a finished run of a cell leaves, as far as comparisons read it."""
    run = Places(root).workdir(cell.directory)
    run.mkdir(parents=True, exist_ok=True)
    final = {
        "format_version": 1,
        "step": 10,
        "tokens": 1000,
        "eval": {"loss": loss, "bits_per_byte": None if loss is None else loss / 2},
        "compute": {"flops": 1e9},
        "time": {"elapsed": 2.0},
    }
    status = {"format_version": 1, "state": "done", "step": 10, "total_steps": 10, "reason": ""}
    data = {"format_version": 1, "manifest_hash": "m", "tokenizer_hash": "t"}
    env = {"format_version": 1, "git": {"sha": "a" * 40, "dirty": False}, "cores": 2}
    files = {"final": final, "status": status, "data": data, "env": env}
    files["config"] = {"format_version": 1, "hash": cell.hash, "config": cell.config}
    for name, content in files.items():
        content.update(changes.get(name, {}))  # type: ignore[call-overload]
        (run / f"{name}.json").write_text(json.dumps(content))
    line = {"step": 10, "tokens": 1000, "eval/loss": loss, "perf/tokens_per_second": 500.0}
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    return run
