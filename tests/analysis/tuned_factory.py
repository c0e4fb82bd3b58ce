"""Synthetic bases and fine-tuned runs with their scores, as the tools write them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from run_factory import edit_json, make_curve, write_json

DOCUMENTS = 12
HARD_D = 2.0 + np.linspace(-0.5, 0.5, DOCUMENTS)  # what documents cost the base
TOKENS_D = np.arange(20, 20 + DOCUMENTS)
STEP, BEST = 100, 30
HASHES = {"law": "aa11", "code": "bb22", "mathematics": "cc33"}


def listed(loss_D, tokens_D=TOKENS_D, prefix="d"):
    """Losses by document as `tools.task score` writes them."""
    pairs = zip(loss_D, tokens_D, strict=True)
    return [
        {"id": f"{prefix}{i}", "tokens": int(tokens), "loss": float(loss)}
        for i, (loss, tokens) in enumerate(pairs)
    ]


def interval(loss_D, tokens_D=TOKENS_D):
    mean = float((loss_D * tokens_D).sum() / tokens_D.sum())
    return {"mean": mean, "low": mean - 0.3, "high": mean + 0.3}


def write_score(run: Path, task: str, change=0.0, forgotten=0.0, step=STEP, **fields):
    """The score of a run: what documents cost the base, and so much more."""
    loss_D, general_D = HARD_D + change, HARD_D + 1.0 + forgotten
    record = {
        "format_version": 1,
        "run": str(run),
        "step": step,
        "base_hash": "",
        "task": f"task:{task}",
        "task_hash": HASHES[task],
        "split": "test",
        "examples": 3 * DOCUMENTS,
        "documents": DOCUMENTS,
        "answer_loss": interval(loss_D),
        "answer_accuracy": 0.4 - 0.1 * float(np.mean(change)),
        "exact_match": None,
        "general_loss": interval(general_D),
        "general_tokens": int(TOKENS_D.sum()),
        "general_text_hash": "9e9e",
        "answer_documents": listed(loss_D),
        "general_documents": listed(general_D, prefix="g"),
    }
    (run / "tasks").mkdir(exist_ok=True)
    write_json(run / "tasks" / f"{task}.json", record | fields)


def make_base(root: Path, name: str = "base", active: float = 2.0, tasks=("law",)) -> Path:
    """A trained MoE with its own scores on some tasks."""
    run = make_curve(root, name, [3.0, 2.5], kind="top_k")
    shape_active(run, active)
    for task in tasks:
        write_score(run, task)
    return run


def shape_active(run: Path, active: float) -> None:
    layers = json.loads((run / "model.json").read_text())["layers"]
    edit_json(run / "model.json", layers=[x | {"nominal_active_experts": active} for x in layers])


def make_tuned(
    root: Path,
    base: Path,
    method: str = "esft_gate",
    task: str = "law",
    seed: int = 0,
    change=-0.5,
    forgotten=0.1,
    *,
    name: str = "",
    active: float = 2.0,
    trainable: int = 1000,
    kind: dict | None = None,
    p: float = 0.0,
    base_hash: str = "",
    score: bool = True,
    final: dict | None = None,
    **fields,
) -> Path:
    """A fine-tuned run, scored at its best step."""
    base_hash = base_hash or f"hash-of-{base.name}"
    config = {
        "finetune": {
            "base": str(base),
            "base_step": STEP,
            "base_hash": base_hash,
            "task": task,
            "label": method,
            "p": p,
            "keep_best": True,
            "patience": 0,
            "method": kind or {"name": method},
        }
    }
    name = name or f"{base.name}-{method}-{task}-seed{seed}"
    run = make_curve(root, name, [2.0, 1.9], kind="top_k", seed=seed, config=config)
    shape_active(run, active)
    record = {
        "method": method,
        "task": task,
        "p": p,
        "base_hash": base_hash,
        "trainable_parameters": trainable,
        "total_parameters": 20_000,
        "adapter_bytes": 4 * trainable,
        "optimizer_bytes": 8 * trainable,
        "step_bytes": 1_000_000,
        "step_seconds": 0.05,
        "best_step": BEST,
        "best_loss": 1.9,
        "stopped_early": False,
    }
    edit_json(run / "final.json", finetune=record | (final or {}))
    if score:
        write_score(run, task, change, forgotten, BEST, base_hash=base_hash, **fields)
    return run
