"""Synthetic run directories in the run-directory format: dense, top_k, top_p, hetero_top_p.

Deterministic, in milliseconds, with known numbers: what a training run would write, without one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

CLASSES = (
    "word start",
    "continuation",
    "space",
    "punctuation",
    "digit",
    "newline",
    "end of document",
)
DOMAINS = ("drama", "scripture", "code")
KINDS = ("dense", "top_k", "top_p", "hetero_top_k", "hetero_top_p")
CAUSES = ("k_max", "capacity", "row_budget", "exchange_send", "exchange_receive")
_FINAL_LOSS = {
    "dense": 2.192,
    "top_k": 2.118,
    "top_p": 2.093,
    "hetero_top_k": 2.101,
    "hetero_top_p": 2.071,
}


def make_run(
    root: Path,
    kind: str = "top_k",
    *,
    name: str | None = None,
    layers: int = 4,
    experts: int = 8,
    steps: int = 400,
    tokens_per_step: int = 2560,
    trace_tokens: int = 4000,
    state: str = "done",
    seed: int = 0,
    unit: int = 32,
    classes: tuple[str, ...] = CLASSES,
    domains: tuple[str, ...] = DOMAINS,
    config: dict[str, Any] | None = None,
    env: dict[str, Any] | None = None,
    reason: str = "",
) -> Path:
    """Writes one run and returns its directory."""
    run = root / (name or kind)
    run.mkdir(parents=True)
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    dense = kind == "dense"
    moe_layers = 0 if dense else layers
    widths = _widths(kind, experts, unit)
    write_json(
        run / "config.json",
        {"format_version": 1, "hash": f"{seed:012x}", "config": _config(kind, seed, config)},
    )
    write_json(run / "model.json", _model(kind, layers, widths, unit))
    write_json(run / "data.json", _data(classes, domains))
    write_json(run / "env.json", _env(run, kind) | (env or {}))
    done = steps if state == "done" else steps * 3 // 5
    status = {
        "format_version": 1,
        "state": state,
        "step": done,
        "total_steps": steps,
        "heartbeat": 1780000000.5,
        "attempt": 1,
        "pid": 4242,
        "host": "box",
        "reason": reason,
        "exit_code": 0 if state == "done" else None,
    }
    write_json(run / "status.json", status)
    routing = _routing(rng, kind, moe_layers, experts, widths, trace_tokens)
    trace = _trace(rng, kind, moe_layers, widths, trace_tokens, len(classes), len(domains))
    if moe_layers:
        routing["active_L"] = trace["active_LT"].mean(1)
        routing["active_width_L"] = trace["width_LT"].mean(1)
    flops_per_token = (
        1.5e6 * (1.0 if dense else float(np.mean(routing["active_width_L"])) / (2 * 4 * unit))
        + 1.1e6
    )
    rows = _metrics(rng, kind, done, tokens_per_step, flops_per_token, routing)
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save(run / "routing" / f"{done:08d}.npz", routing)
    save(run / "trace" / f"{done:08d}.npz", trace)
    if state == "done":
        write_json(run / "final.json", _final(rows, routing, flops_per_token, kind))
    return run


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def edit_json(path: Path, **changes: object) -> None:
    write_json(path, json.loads(path.read_text()) | changes)


def save(path: Path, arrays: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    with open(path, "wb") as file:
        np.savez_compressed(file, **arrays)


def _widths(kind: str, experts: int, unit: int) -> np.ndarray:
    if not kind.startswith("hetero"):
        return np.full(experts, 4 * unit, np.int32)
    return (np.linspace(1, 7, experts).round().astype(np.int32) * unit).astype(np.int32)


def _config(kind: str, seed: int, extra: dict[str, Any] | None) -> dict[str, Any]:
    router = {"name": "top_p" if kind.endswith("top_p") else "top_k", "renormalise": True}
    router |= {"p": 0.4, "k_max": 6} if kind.endswith("top_p") else {"k": 2}
    widths = {"plan": "arithmetic" if kind.startswith("hetero") else "uniform", "unit": 32}
    model = {
        "d_model": 128,
        "layers": 4,
        "moe": None if kind == "dense" else {"router": router, "widths": widths},
    }
    return {
        "name": kind,
        "seed": seed,
        "model": model,
        "data": {"corpus": "embedded", "seq_len": 128},
        "optimizer": {"name": "adamw", "lr": 3e-3},
        "train": {"batch_size": 20, "steps": 400},
    } | (extra or {})


def _model(kind: str, layers: int, widths: np.ndarray, unit: int) -> dict[str, Any]:
    dense = kind == "dense"
    layer = {
        "kind": "dense" if dense else "moe",
        "router": None if dense else ("top_p" if kind.endswith("top_p") else "top_k"),
        "experts": 0 if dense else len(widths),
        "widths": [] if dense else widths.tolist(),
        "shared_width": 0,
        "dense_width": 8 * unit if dense else 0,
        "nominal_active_experts": 0.0 if dense else 2.0,
        "nominal_active_width": 0.0 if dense else 2.0 * float(widths.mean()),
    }
    ffn = 3 * 128 * layers
    return {
        "format_version": 1,
        "convention": "norms and router included; embeddings once",
        "total_parameters": 262144 + ffn * int(8 * unit if dense else widths.sum()),
        "embedding_parameters": 32768,
        "active_parameters": 262144 + ffn * 8 * unit,
        "active_non_embedding_parameters": 229376 + ffn * 8 * unit,
        "flops_per_token": 2.6e6,
        "flops_per_width": 2304.0,
        "layers": [{"index": i, **layer} for i in range(layers)],
    }


def _data(classes: tuple[str, ...], domains: tuple[str, ...]) -> dict[str, Any]:
    return {
        "format_version": 1,
        "corpus": "embedded",
        "tokenizer": "bytes",
        "manifest_hash": "3f2a9c41d0be77aa",
        "tokenizer_hash": "0badc0ffee123456",
        "vocab_size": 257,
        "bytes_per_token": {"train": 1.0, "validation": 1.0},
        "splits": {
            s: {"tokens": n, "documents": n // 4000, "bytes": n}
            for s, n in (("train", 9000000), ("validation", 480000))
        },
        "baselines": {
            "unigram": 3.312,
            "bigram": 2.496,
            "convention": "add-one, counts from train",
        },
        "token_classes": list(classes),
        "domains": list(domains),
        "languages": ["en"],
    }


def _env(run: Path, kind: str) -> dict[str, Any]:
    return {
        "format_version": 1,
        "git": {"sha": "5d41402abc4b2a76b9719d911017c592ae5d3f0a", "dirty": False},
        "python": "3.11.7",
        "packages": {"jax": "0.10.2", "flax": "0.12.8", "numpy": "2.4.6"},
        "platform": "cpu",
        "devices": ["cpu"],
        "cores": 2,
        "argv": [
            "experiments/train.py",
            f"--config=configs/lm.py:size=nano,moe={kind}",
            f"--workdir=runs/{kind}",
        ],
    }


def _routing(rng, kind, layers, experts, widths, tokens) -> dict[str, Any]:
    spread = {"top_k": 0.25, "hetero_top_k": 0.45, "top_p": 0.6, "hetero_top_p": 0.75}.get(
        kind, 0.0
    )
    share = np.exp(spread * rng.standard_normal((layers, experts)))
    if kind == "hetero_top_p" and layers > 1 and experts > 3:
        share[1, 3] = 0.0
    share = share / share.sum(1, keepdims=True)
    count = np.round(share * tokens * 2).astype(np.int64)
    kept = count.sum(1)
    dropped = {f"dropped_{c}_L": np.zeros(layers, np.int64) for c in CAUSES}
    if kind == "top_p" and layers:
        dropped["dropped_k_max_L"] = np.round(kept * 0.004).astype(np.int64)
    return {
        "format_version": np.int64(1),
        "split": np.array("eval"),
        "tokens": np.int64(tokens),
        "layers_L": np.arange(layers, dtype=np.int32),
        "width_LE": np.tile(widths, (layers, 1)).astype(np.int32),
        "count_LE": count,
        "prob_LE": share.astype(np.float64),
        "requested_L": kept + sum(dropped.values()),
        "kept_L": kept,
        "active_L": np.full(layers, 2.0),
        "active_width_L": np.full(layers, 2.0 * float(widths.mean())),
        "entropy_L": np.full(layers, 1.2),
        **dropped,
    }


def _trace(rng, kind, layers, widths, tokens, classes, domains) -> dict[str, Any]:
    text = np.random.default_rng(7)  # all runs are evaluated on the same text
    rank = np.minimum((text.pareto(0.8, tokens) * 2).astype(np.int32), 256)
    token_class = np.minimum(text.geometric(0.4, tokens) - 1, classes - 1).astype(np.uint8)
    domain = (np.arange(tokens) * domains // tokens).astype(np.uint8)
    hard = 0.35 * np.log1p(rank) + 0.25 * token_class
    active = np.full((layers, tokens), 2)
    if kind.endswith("top_p"):
        slope = np.linspace(1.3, 0.7, max(layers, 1))[:layers, None]
        active = np.clip(
            np.round(slope * (0.9 + hard) + 0.7 * rng.standard_normal((layers, tokens))), 1, 6
        ).astype(int)
    mean_width = widths.mean() * (1.0 if kind in ("top_k", "top_p") else 0.82)
    noise = (
        1
        if not kind.startswith("hetero")
        else 1 + 0.15 * rng.standard_normal((layers, tokens)) + 0.05 * hard
    )
    loss = np.maximum(0.02, 1.2 + 0.5 * hard + 0.4 * rng.standard_normal(tokens)).astype(np.float32)
    loss[text.random(tokens) < 0.01] = np.nan
    slots = np.arange(6)[None, None, :] < active[..., None]
    expert = np.where(slots, rng.integers(0, len(widths), (layers, tokens, 6)), 65535)
    zeros = np.zeros(tokens, np.int32)
    return {
        "format_version": np.int64(1),
        "layers_L": np.arange(layers, dtype=np.int32),
        "width_LE": np.tile(widths, (layers, 1)).astype(np.int32),
        "expert_LTK": expert.astype(np.uint16),
        "active_LT": active.astype(np.uint16),
        "width_LT": np.round(active * mean_width * noise).astype(np.int32),
        "token_T": zeros,
        "target_T": zeros,
        "class_T": token_class,
        "frequency_rank_T": rank,
        "domain_T": domain,
        "language_T": np.zeros(tokens, np.uint8),
        "position_T": zeros,
        "loss_T": loss,
    }


def _metrics(rng, kind, steps, tokens_per_step, flops_per_token, routing) -> list[dict[str, Any]]:
    end = _FINAL_LOSS[kind]
    rows = []
    moe = (
        {}
        if kind == "dense"
        else {
            "load_max_over_mean": 1.6,
            "load_cv": 0.4,
            "dead_fraction": 0.0,
            "entropy": 1.2,
            "active_experts": float(np.mean(routing["active_L"])),
            "active_width": float(np.mean(routing["active_width_L"])),
            "dropped/capacity": 0.0,
        }
    )
    for step in range(5, steps + 1, 5):
        tokens = step * tokens_per_step
        loss = end + 3.3 * float(np.exp(-step / 28)) + 0.9 * float(np.exp(-step / 170))
        common = {
            "step": step,
            "tokens": tokens,
            "compute/flops": tokens * flops_per_token,
            "time/elapsed": 0.11 * step * (flops_per_token / 2.6e6),
            "time/unix": 1780000000.0 + step,
        }
        rows.append(
            common
            | {
                "train/loss": loss + 0.06 * float(rng.standard_normal()),
                "train/total_loss": loss + 0.01,
                "train/grad_norm": 1.0,
                "train/lr": 3e-3,
                "perf/tokens_per_second": 23000.0 + 100 * float(rng.standard_normal()),
                "perf/step_seconds": 0.11,
                "perf/mfu": 0.2,
            }
            | {f"train/routing/{k}": v for k, v in moe.items()}
        )
        if step % 25 == 0 or step == steps:
            value = loss - 0.9 * float(np.exp(-steps / 170)) * (step / steps)
            rows.append(
                common
                | {
                    "eval/loss": value,
                    "eval/perplexity": float(np.exp(value)),
                    "eval/bits_per_byte": value / float(np.log(2)),
                    "eval/tokens": 16384,
                }
                | {f"eval/routing/{k}": v for k, v in moe.items()}
            )
    return rows


def _final(rows, routing, flops_per_token, kind) -> dict[str, Any]:
    last = next(row for row in reversed(rows) if "eval/loss" in row)
    dense = kind == "dense"
    return {
        "format_version": 1,
        "step": last["step"],
        "tokens": last["tokens"],
        "eval": {key: last[f"eval/{key}"] for key in ("loss", "perplexity", "bits_per_byte")},
        "measured": {
            "active_parameters": 655360
            if dense
            else int(262144 + 1536 * float(np.mean(routing["active_width_L"]))),
            "active_non_embedding_parameters": 622592,
            "flops_per_token": flops_per_token,
            "active_experts": None if dense else float(np.mean(routing["active_L"])),
            "active_width": None if dense else float(np.mean(routing["active_width_L"])),
        },
        "compute": {"flops": last["compute/flops"]},
        "time": {"elapsed": last["time/elapsed"]},
    }


def make_curve(
    root: Path,
    name: str,
    losses: list[Any],
    *,
    kind: str = "dense",
    seed: int | None = 0,
    tokens: float = 1000.0,
    flops_per_token: float = 2e6,
    tokens_per_second: float = 100.0,
    rates: list[float] | None = None,
    total_steps: int | None = None,
    state: str = "done",
    config: dict[str, Any] | None = None,
) -> Path:
    """A run of evaluations with these losses every 10 steps and `tokens`; no routing, no trace.

    `rates` are the learning rates at the same steps; without them it falls in a straight line.
    """
    run = root / name
    run.mkdir(parents=True)
    widths = _widths(kind, 4, 32)
    body = _config(kind, 0, {"name": name, "seed": seed} | (config or {}))
    if seed is None:
        del body["seed"]
    write_json(run / "config.json", {"format_version": 1, "hash": "0", "config": body})
    write_json(run / "model.json", _model(kind, 2, widths, 32))
    write_json(run / "data.json", _data(CLASSES, DOMAINS))
    write_json(run / "env.json", _env(run, kind))
    count = len(losses)
    rows = []
    for i, loss in enumerate(losses, 1):
        common = {
            "step": 10 * i,
            "tokens": tokens * i,
            "compute/flops": tokens * i * flops_per_token,
            "time/elapsed": tokens * i / tokens_per_second,
        }
        rate = 1 - i / count if rates is None else rates[i - 1]
        train = {"train/loss": 3.0, "train/lr": rate, "perf/tokens_per_second": tokens_per_second}
        rows += [common | train, common | {"eval/loss": loss, "eval/tokens": 16384}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status = {"format_version": 1, "state": state, "step": 10 * count}
    write_json(run / "status.json", status | {"total_steps": total_steps or 10 * count})
    measured = {"active_parameters": 1000.0, "flops_per_token": flops_per_token}
    write_json(run / "final.json", {"format_version": 1, "measured": measured})
    return run
