"""Scores of a run on disk: `RUN/esft/TASK/`, and what is chosen and analysed from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moejax.config import ConfigError, write_json
from moejax.finetune.concentration import concentration, curve, jaccard, overlap, require_same_model
from moejax.finetune.formats import (
    SUMMARY,
    read_summary,
    write_expert_weights,
    write_summary,
)
from moejax.finetune.grouping import (
    COOCCURRENCE,
    COSINE,
    Groups,
    cooccurrence,
    cosine,
    grouping,
    select_by_group,
)
from moejax.finetune.measure import LayerUse, Measured, measure, scores_of
from moejax.finetune.sampling import Documents, Sampling
from moejax.finetune.scores import GATE, SCORES, TOKEN, Origin, Scores
from moejax.finetune.selection import (
    DEFAULT_P,
    Experts,
    Selection,
    random_like,
    select,
    trainable_experts,
    union,
)
from moejax.models import Transformer
from moejax.probe.opened import OpenedRun, Restored, Say
from moejax.surgery.layers import take_layers

FORMAT_VERSION = 1
FOLDER = "esft"
ANALYSIS, OVERLAP = "analysis.json", "overlap.json"
Tree = dict[str, Any]


def score_run(
    run: OpenedRun,
    restored: Restored,
    documents: Documents,
    sampling: Sampling | None = None,
    out: Path | None = None,
    say: Say = print,
    each: bool = False,
) -> Path:
    """Scores a checkpoint on a text; writes `summary.json` and `analysis.json` beside it.

    Args:
      run: whose model it is.
      restored: of one step.
      documents: the text.
      sampling: how much of it.
      out: the summary; default `RUN/esft/TASK/summary.json`.
      say: told what was written.
      each: also `expert_weights_LAYER.txt`, gates of every token.

    Returns:
      The summary.

    Raises:
      ConfigError: as `measure`.
    """
    path = out or run.root / FOLDER / documents.name / SUMMARY
    base_hash = run.params_hash(restored.step)
    found = measure(run, restored, documents, sampling, base_hash, say, each)
    write_summary(path, found.scores)
    columns = router_columns(run.model, restored.params)
    write_json(path.with_name(ANALYSIS), analysis(found, columns, documents.name))
    for layer, use in found.layers.items():
        if use.chosen:
            write_expert_weights(path.with_name(f"expert_weights_{layer}.txt"), use.chosen)
    say(_scored(path, found))
    return path


def choose(
    several: Sequence[Scores],
    score: str = GATE,
    p: float = 0.0,
    seed: int | None = None,
    shared_experts: bool = False,
    non_expert_modules: bool = False,
    groups: Mapping[int, Groups] | None = None,
) -> Selection:
    """What ESFT trains for a task, or for several together.

    Args:
      several: scores of one model on each task; more than one: the union of what each selects.
      score: a key of `SCORES`.
      p: the threshold; 0: the published one.
      seed: not None: as many experts of each layer, drawn at random.
      shared_experts, non_expert_modules: passed on.
      groups: by layer, of which whole ones are selected; None: experts one by one.

    Raises:
      ConfigError: no such score, a p outside (0, 1], or scores of different models.
    """
    require_same_model([one.origin for one in several])
    tables = [one.of(score) for one in several]
    if any({k: set(row) for k, row in table.items()} != _ids(tables[0]) for table in tables):
        raise ConfigError("--summary: scores of different models: other layers or experts")
    p = p or DEFAULT_P[score]
    experts: Experts = union(
        [
            select(table, p) if groups is None else select_by_group(table, groups, p)
            for table in tables
        ]
    )
    if seed is not None:
        experts = random_like(experts, tables[0], seed)
    origin = several[0].origin
    if len(several) > 1:
        tasks = "+".join(one.origin.task or "?" for one in several)
        tokens = sum(one.origin.tokens for one in several)
        origin = dataclasses.replace(origin, task=tasks, tokens=tokens)
    if not origin.experts:
        counts = {layer: len(row) for layer, row in tables[0].items()}
        origin = dataclasses.replace(origin, experts=counts)
    return Selection(experts, shared_experts, non_expert_modules, origin, score, p, seed)


def analysis(
    found: Measured, columns: Mapping[int, NDArray[Any]] | None = None, task: str = ""
) -> dict[str, Any]:
    """What `analysis.json` holds (docs/esft.md lists it).

    Args:
      found: of `measure`.
      columns: by layer the router's `[D, E]` of the experts with weights, where it is linear.
      task: name of the text.
    """
    scores, origin = found.scores, found.scores.origin
    affinity: dict[str, dict[int, NDArray[Any]]] = {
        COOCCURRENCE: {layer: cooccurrence(use.pairs_NN) for layer, use in found.layers.items()}
    }
    if columns:
        affinity[COSINE] = {layer: cosine(column_DE) for layer, column_DE in columns.items()}
    return {
        "format_version": FORMAT_VERSION,
        "task": task or origin.task,
        "spec": origin.task,
        "run": origin.run,
        "step": origin.step,
        "base_hash": origin.base_hash,
        "tokens": origin.tokens,
        "samples": origin.samples,
        "length": origin.length,
        "seed": origin.seed,
        "layers": {
            str(layer): {
                "experts": len(use.experts),
                "slots": use.slots,
                "gate_sum": float(use.gate_JE.mean(0)[list(use.experts)].sum()),
                "token_sum": float(use.ratio_JE.mean(0)[list(use.experts)].sum()),
            }
            for layer, use in found.layers.items()
        },
        "concentration": {name: concentration(scores.of(name)) for name in SCORES},
        "curve": {name: curve(scores.of(name)) for name in SCORES},
        "selected": {
            name: {
                "p": DEFAULT_P[name],
                "experts": {str(k): v for k, v in select(scores.of(name), DEFAULT_P[name]).items()},
                "stability": _stability(found.layers, name),
            }
            for name in SCORES
        },
        "grouping": [
            row
            for name in SCORES
            for row in grouping(_renumbered(scores.of(name)), affinity, DEFAULT_P[name], name)
        ],
    }


def overlap_of(several: Mapping[str, Scores], score: str = GATE, p: float = 0.0) -> dict[str, Any]:
    """What `overlap.json` holds: how far tasks use the same experts.

    Args:
      several: scores of one model, by name of the task; at least two.
      score, p: what experts are selected by, as in `choose`.

    Raises:
      ConfigError: fewer than two tasks, or as `choose`.
    """
    if len(several) < 2:
        raise ConfigError("--summary: an overlap is of two tasks or more; give another --summary")
    require_same_model([one.origin for one in several.values()])
    first = next(iter(several.values()))
    p = p or DEFAULT_P.get(score, 0.0)
    selections = {task: select(one.of(score), p) for task, one in several.items()}
    counts = {layer: len(row) for layer, row in first.of(score).items()}
    return {
        "format_version": FORMAT_VERSION,
        "run": first.origin.run,
        "step": first.origin.step,
        "base_hash": first.origin.base_hash,
        "score": score,
        "p": p,
        "selected": {task: sum(map(len, experts.values())) for task, experts in selections.items()},
        "experts": sum(counts.values()),
    } | overlap(selections, counts)


def read_summaries(paths: Sequence[str]) -> dict[str, Scores]:
    """Summaries by the name of their task: that of the folder, or of the file.

    Raises:
      ConfigError: no file, one that is no summary, or two of one name.
    """
    if not paths:
        raise ConfigError("--summary: is required, e.g. --summary=runs/base/esft/law/summary.json")
    found: dict[str, Scores] = {}
    for name in paths:
        path = Path(name)
        path = path / SUMMARY if path.is_dir() else path
        task = path.parent.name if path.name == SUMMARY else path.stem
        if task in found:
            raise ConfigError(f"--summary={name}: a summary of {task!r} was given before")
        found[task] = read_summary(path)
    return found


def router_columns(model: Transformer, params: Tree) -> dict[int, NDArray[Any]]:
    """By layer float64 `[D, N]`: the router's columns of the experts with weights; empty if a
    router has no matrix of one column per expert."""
    blocks = take_layers(model.config, params["segments"])
    found = {}
    for layer, experts in trainable_experts(model.config).items():
        matrix = blocks[layer]["ffn"].get("router", {}).get("w_DE")
        if matrix is None:
            return {}
        found[layer] = np.asarray(matrix, np.float64)[:, list(experts)]
    return found


def _stability(layers: Mapping[int, LayerUse], name: str) -> float | None:
    """Mean Jaccard of what both halves of the samples select at the published p; None of one."""
    samples = min(len(use.gate_JE) for use in layers.values())
    if samples < 2:
        return None
    halves = [
        select(scores_of(layers, half).of(name), DEFAULT_P[name])
        for half in (slice(0, samples // 2), slice(samples // 2, samples))
    ]
    return float(np.mean([jaccard(halves[0][layer], halves[1][layer]) for layer in layers]))


def _renumbered(table: Mapping[int, Mapping[int, float]]) -> dict[int, dict[int, float]]:
    """Experts with weights counted from 0, as in the affinities."""
    return {layer: dict(enumerate(row.values())) for layer, row in table.items()}


def _ids(table: Mapping[int, Mapping[int, float]]) -> dict[int, set[int]]:
    return {layer: set(row) for layer, row in table.items()}


def _scored(path: Path, found: Measured) -> str:
    origin: Origin = found.scores.origin
    sums = [sum(row.values()) for row in found.scores.gate.values()]
    tokens = [sum(row.values()) for row in found.scores.token.values()]
    return (
        f"{path}: {origin.tokens:,} tokens ({origin.samples} x {origin.length}) of {origin.task}, "
        f"{len(found.layers)} MoE layers; sums per layer: {GATE} {min(sums):.3f}..{max(sums):.3f}, "
        f"{TOKEN} {min(tokens):.3f}..{max(tokens):.3f}"
    )


def selected_line(path: Path, chosen: Selection, tables: Sequence[Mapping[int, Any]]) -> str:
    """What a selection is, in one line."""
    every = sum(map(len, tables[0].values()))
    counts = [len(experts) for experts in chosen.experts.values()]
    exhausted = [
        layer
        for layer, experts in chosen.experts.items()
        if len(experts) == len(tables[0][layer]) and sum(tables[0][layer].values()) < chosen.p
    ]
    how = f"random (seed {chosen.seed}), counts of" if chosen.seed is not None else "by"
    line = (
        f"{path}: {chosen.count} of {every} experts {how} {chosen.score} p={chosen.p:g}, "
        f"{min(counts)}..{max(counts)} per layer"
    )
    if exhausted and len(tables) == 1:
        line += f"; all of layers {', '.join(map(str, exhausted))}: their scores do not reach p"
    return line
