"""Data with known laws: obvious formulas, grids of runs, and the run directories of a ladder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from run_factory import write_json

HOFFMANN = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
KINDS = ("dense", "top_k", "top_p", "hetero_top_p")
SIZES = {"50k": 49_152, "110k": 110_592, "260k": 262_144, "510k": 512_000}
# L_inf, then A and alpha in C of each kind of the planted ladder.
FLOOR = 1.1
LADDER = {
    "dense": (95.0, 0.150),
    "top_k": (92.0, 0.150),
    "top_p": (140.0, 0.165),
    "hetero_top_p": (145.0, 0.166),
}


def chinchilla(n, d, k=HOFFMANN):
    return k["E"] + k["A"] / n ** k["alpha"] + k["B"] / d ** k["beta"]


def mesh(*axes):
    return [grid.ravel() for grid in np.meshgrid(*axes, indexing="ij")]


def isoflop_grid(budgets, spread=0.6, sizes=7, centre=1.0, k=HOFFMANN):
    """(n, d, c): sizes at each budget, log-evenly around `centre` times the optimum."""
    rows = []
    ratio = (k["alpha"] * k["A"] / (k["beta"] * k["B"])) ** (1 / (k["alpha"] + k["beta"]))
    for c in budgets:
        best = ratio * (c / 6) ** (k["beta"] / (k["alpha"] + k["beta"]))
        for step in np.linspace(-spread, spread, sizes):
            n = centre * best * 10**step
            rows.append((n, c / 6 / n, c))
    return np.array(rows).T


def ladder_runs(root: Path, *, noise=0.002, seeds=(0, 1), kinds=KINDS, sizes=SIZES, rng=None):
    """Run directories and `grid.json` as `scaling_ladder` leaves them, with the planted losses."""
    rng = rng if rng is not None else np.random.default_rng(0)
    cells = []
    for size, dense_n in sizes.items():
        for kind in kinds:
            # Top-p models activate more, and not the same share at every size.
            share = {"dense": 1.0, "top_k": 1.0}.get(kind, 1.5 + 0.02 * rng.standard_normal())
            n, tokens = dense_n * share, 20 * dense_n
            cell_error = noise * rng.standard_normal()
            for seed in seeds:
                flops = tokens * (6 * n + 250_000 + 0.6 * dense_n)
                floor, (a, alpha) = FLOOR, LADDER[kind]
                error = cell_error + noise * rng.standard_normal()
                loss = (floor + a * flops**-alpha) * (1 + error)
                name = f"size={size},moe={kind},seed={seed}-{len(cells):010x}"
                _run(root / name, kind, size, seed, n, tokens, flops, loss)
                axes = [["size", size], ["moe", kind]]
                cells.append({"directory": name, "axes": axes, "seed": seed, "vanished": False})
    write_json(root / "grid.json", {"format_version": 1, "grid": "ladder", "cells": cells})
    return root


def _run(run: Path, kind: str, size: str, seed: int, n: float, tokens: int, flops: float, loss):
    run.mkdir(parents=True)
    widths = [] if kind == "dense" else [64] * 8
    if kind == "hetero_top_p":
        widths = [36, 44, 52, 60, 68, 76, 84, 92]
    router = {"dense": None, "top_k": "top_k"}.get(kind, "top_p")
    layer = {
        "kind": "dense" if kind == "dense" else "moe",
        "router": router,
        "experts": len(widths),
        "widths": widths,
        "shared_width": 0,
    }
    model = {
        "format_version": 1,
        "total_parameters": 4 * n,
        "active_parameters": n + 65_536,
        "active_non_embedding_parameters": 2 * n if router == "top_p" else n,
        "layers": [layer] * 3,
    }
    config = {"name": f"ladder-{size}-{kind}", "seed": seed, "model": {"d_model": 32, "size": size}}
    config["model"]["moe"] = router
    config["model"]["widths"] = widths
    evals = [
        {
            "step": step,
            "tokens": tokens * step // 10,
            "compute/flops": flops * step / 10,
            "eval/loss": loss + 0.5 * (1 / step - 0.1),
        }
        for step in range(1, 11)
    ]
    final = {
        "format_version": 1,
        "step": 10,
        "tokens": tokens,
        "eval": {"loss": loss},
        "compute": {"flops": flops},
        "measured": {
            "active_non_embedding_parameters": n,
            "active_parameters": n + 65_536,
            "active_width": 128.0 if widths else None,
        },
    }
    status = {"format_version": 1, "state": "done", "step": 10, "total_steps": 10}
    data = {"format_version": 1, "manifest_hash": "m", "tokenizer_hash": "t"}
    write_json(run / "config.json", {"format_version": 1, "config": config})
    write_json(run / "model.json", model)
    write_json(run / "final.json", final)
    write_json(run / "status.json", status)
    write_json(run / "data.json", data)
    write_json(run / "env.json", {"format_version": 1})
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in evals))
