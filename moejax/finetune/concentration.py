"""What the scores of tasks say about experts: how few carry a task, and which two tasks share.

NumPy only. Axis letters: `E` experts of a layer that can be trained, `A` tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moejax.config import ConfigError
from moejax.finetune.scores import Origin, Table
from moejax.finetune.selection import Experts, select

Floats = NDArray[np.float64]

HALF = 0.5
P_GRID = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
"""Thresholds that the number of selected experts is told for."""


def fewest(score_E: Floats, share: float = HALF) -> int:
    """Experts that carry a share of a layer's total score, best first; 0 where it is 0."""
    total = float(score_E.sum())
    if total <= 0:
        return 0
    reached_E = np.cumsum(np.sort(score_E)[::-1]) / total
    return int(np.searchsorted(reached_E, share - 1e-9) + 1)


def concentration(table: Table, share: float = HALF) -> dict[str, Any]:
    """By layer how few experts carry `share` of the total score, and which part of the layer's
    experts that is; `uniform` is that part where all are used alike."""
    layers = {}
    for layer, scores in sorted(table.items()):
        score_E = np.asarray(list(scores.values()), np.float64)
        count = fewest(score_E, share)
        layers[str(layer)] = {
            "experts": count,
            "share": count / len(score_E),
            "uniform": int(np.ceil(share * len(score_E) - 1e-9)) / len(score_E),
        }
    return {
        "mass": share,
        "layers": layers,
        "mean_experts": float(np.mean([row["experts"] for row in layers.values()])),
        "mean_share": float(np.mean([row["share"] for row in layers.values()])),
        "mean_uniform": float(np.mean([row["uniform"] for row in layers.values()])),
    }


def curve(table: Table) -> list[dict[str, float]]:
    """How much is selected at every p of `P_GRID`: `p`, `experts`, their `share` of all experts and
    of the total score (`mass`), over all layers."""
    experts = sum(len(row) for row in table.values())
    return [
        {
            "p": p,
            "experts": sum(len(chosen) for chosen in found.values()),
            "share": sum(len(chosen) for chosen in found.values()) / experts,
            "mass": mass(table, found),
        }
        for p in P_GRID
        for found in [select(table, p)]
    ]


def mass(table: Table, experts: Experts) -> float:
    """Share of the total score that these experts hold, mean over layers with a score."""
    shares = []
    for layer, scores in table.items():
        total = sum(scores.values())
        if total > 0:
            shares.append(sum(scores[one] for one in experts.get(layer, ())) / total)
    return float(np.mean(shares)) if shares else 0.0


def jaccard(first: Sequence[int], second: Sequence[int]) -> float:
    """Shared over all experts of two sets; 1 for two empty ones."""
    either = set(first) | set(second)
    return len(set(first) & set(second)) / len(either) if either else 1.0


def chance_jaccard(first: int, second: int, experts: int) -> float:
    """What two random sets of these sizes would share: expected shared over expected united."""
    shared = first * second / experts
    united = first + second - shared
    return shared / united if united else 1.0


def overlap(selections: Mapping[str, Experts], counts: Mapping[int, int]) -> dict[str, Any]:
    """Overlap of the experts of tasks.

    Args:
      selections: chosen experts by task.
      counts: experts by layer.

    Returns:
      `tasks`; `jaccard` `[A][A]`, mean over layers, and `chance`, what random sets of those sizes
      would have; `layers`: by layer `jaccard` and the number of `shared` experts `[A][A]`.

    Raises:
      ConfigError: the tasks' selections are of different layers.
    """
    tasks = list(selections)
    layers = sorted(counts)
    for task, experts in selections.items():
        if sorted(experts) != layers:
            raise ConfigError(f"{task}: its selection is of other layers; score tasks of one model")

    def pairs(value: Any) -> list[list[float]]:
        return [[value(selections[a], selections[b]) for b in tasks] for a in tasks]

    by_layer = {
        str(layer): {
            "jaccard": pairs(lambda a, b, layer=layer: jaccard(a[layer], b[layer])),
            "shared": pairs(lambda a, b, layer=layer: len(set(a[layer]) & set(b[layer]))),
        }
        for layer in layers
    }
    return {
        "tasks": tasks,
        "jaccard": np.mean([row["jaccard"] for row in by_layer.values()], axis=0).tolist(),
        "chance": pairs(
            lambda a, b: float(
                np.mean([chance_jaccard(len(a[x]), len(b[x]), counts[x]) for x in layers])
            )
        ),
        "layers": by_layer,
    }


def require_same_model(origins: Sequence[Origin]) -> None:
    """Raises ConfigError unless all scores are of one model (those that say of which)."""
    hashes = {origin.base_hash for origin in origins if origin.base_hash}
    if len(hashes) > 1:
        names = ", ".join(sorted(one[:12] for one in hashes))
        raise ConfigError(f"--summary: scores of different models (bases {names}); score one anew")
