"""What it would cost to train experts in groups of those that are alike (ESFT, appendix B).

NumPy only. Axis letters: `E` experts of a layer that can be trained, `D` model width.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moejax.config import ConfigError
from moejax.finetune.concentration import mass
from moejax.finetune.scores import GATE, Table
from moejax.finetune.selection import select, smallest_prefix

Floats = NDArray[np.float64]
Groups = tuple[tuple[int, ...], ...]

SIZES = (2, 4)
COOCCURRENCE, COSINE, RANDOM = "cooccurrence", "cosine", "random"
AFFINITIES = {
    COOCCURRENCE: "tokens that use both, over those that use either",
    COSINE: "cosine of the columns of the router",
    RANDOM: "groups drawn at random: the control",
}
DRAWS = 8
"""Random groupings, whose mean is told."""


def cooccurrence(pairs_EE: Floats) -> Floats:
    """Affinity `[E, E]`: tokens that used both over tokens that used either.

    Args:
      pairs_EE: tokens that used both; on the diagonal those that used the one.
    """
    used_E = np.diag(pairs_EE)
    either_EE = used_E[:, None] + used_E[None, :] - pairs_EE
    return np.where(either_EE > 0, pairs_EE / np.maximum(either_EE, 1), 0.0)


def cosine(router_DE: Floats) -> Floats:
    """Affinity `[E, E]`: cosine of an expert's columns of the router; 0 for one that is 0."""
    norm_E = np.linalg.norm(router_DE, axis=0)
    unit_DE = router_DE / np.where(norm_E > 0, norm_E, 1.0)
    return unit_DE.T @ unit_DE


def greedy_groups(affinity_EE: Floats, size: int) -> Groups:
    """Groups of `size` experts, most alike first; one is smaller where they do not divide.

    The pair with the greatest affinity begins a group, which takes the expert with the greatest
    mean affinity to its members until it is full; then the next. Of equals the lower ids.

    Raises:
      ConfigError: a size below 1.
    """
    if size < 1:
        raise ConfigError(f"size={size}: a group has an expert; nearest valid value 1")
    free = list(range(len(affinity_EE)))
    groups = []
    while free:
        if len(free) <= size or size == 1:
            group = free[: max(size, 1)]
        else:
            own_EE = affinity_EE[np.ix_(free, free)].astype(np.float64)
            np.fill_diagonal(own_EE, -np.inf)
            first, second = np.unravel_index(int(own_EE.argmax()), own_EE.shape)
            group = sorted((free[first], free[second]))
            while len(group) < size:
                rest = [one for one in free if one not in group]
                near_E = affinity_EE[np.ix_(rest, group)].mean(axis=1)
                group.append(rest[int(near_E.argmax())])
        groups.append(tuple(group))
        free = [one for one in free if one not in group]
    return tuple(groups)


def random_groups(experts: int, size: int, seed: int) -> Groups:
    """Groups of `size` drawn at random."""
    order = np.random.default_rng(seed).permutation(experts)
    return tuple(
        tuple(int(one) for one in order[first : first + size]) for first in range(0, experts, size)
    )


def groups_in(path: Path, found: Any, table: Table, affinity: str, size: int) -> dict[int, Groups]:
    """Groups of experts by layer, as an `analysis.json` holds them.

    Args:
      path: of the file, for messages.
      found: its content.
      table: scores of the same experts.
      affinity, size: of a row; not `random`.

    Raises:
      ConfigError: it has no such groups, or those of other experts.
    """
    rows = found.get("grouping") if isinstance(found, dict) else None
    rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    known = {(row.get("affinity"), row.get("size")): row.get("groups") for row in rows}
    held = known.get((affinity, size))
    if not isinstance(held, dict):
        there = sorted({f"{name} of {many}" for (name, many), one in known.items() if one})
        said = ", ".join(there) or "none"
        raise ConfigError(f"{path}: has no groups by {affinity} of {size}; there are: {said}")
    made: dict[int, Groups] = {}
    for layer, row in table.items():
        ids, groups = list(row), held.get(str(layer))
        try:
            numbers = [[int(one) for one in group] for group in groups or ()]
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{path}: its groups of layer {layer} are damaged") from error
        if sorted(one for group in numbers for one in group) != list(range(len(ids))):
            raise ConfigError(f"{path}: its groups of layer {layer} are not of the experts scored")
        made[layer] = tuple(tuple(ids[one] for one in group) for group in numbers)
    return made


def select_by_group(
    table: Table, groups: Mapping[int, Groups], p: float
) -> dict[int, tuple[int, ...]]:
    """By layer the experts of whole groups, best total first, until their scores add up to p."""
    chosen = {}
    for layer, row in table.items():
        own = groups[layer]
        totals = {number: sum(row[one] for one in group) for number, group in enumerate(own)}
        chosen[layer] = tuple(one for number in smallest_prefix(totals, p) for one in own[number])
    return chosen


def grouping(
    table: Table, affinity: Mapping[str, Mapping[int, Floats]], p: float, score: str = GATE
) -> list[dict[str, Any]]:
    """What selecting whole groups needs, against single experts.

    Args:
      table: scores; experts must be numbered from 0 without gaps.
      affinity: by name of `AFFINITIES` and layer `[E, E]`; `random` is added.
      p: of the selection.
      score: the name of the table.

    Returns:
      A row for every affinity and size of `SIZES`: `single`, experts selected one by one (all
      layers); `grouped`, experts in the groups that are needed for as much (of random groups the
      mean of `DRAWS`); `ratio`; `share` of all experts; `mass` that they hold of the total score;
      and, but for random ones, `groups` by layer.
    """
    single = select(table, p)
    count = sum(len(chosen) for chosen in single.values())
    every = sum(len(row) for row in table.values())
    found = []
    for name in (*affinity, RANDOM):
        for size in SIZES:
            draws = []
            for draw in range(DRAWS if name == RANDOM else 1):
                draws.append(
                    {
                        layer: random_groups(len(row), size, [draw, layer])  # type: ignore[arg-type]
                        if name == RANDOM
                        else greedy_groups(affinity[name][layer], size)
                        for layer, row in table.items()
                    }
                )
            chosen = [select_by_group(table, made, p) for made in draws]
            grouped = float(np.mean([sum(map(len, one.values())) for one in chosen]))
            row: dict[str, Any] = {
                "affinity": name,
                "size": size,
                "score": score,
                "p": p,
                "single": count,
                "grouped": grouped,
                "ratio": grouped / max(count, 1),
                "share": grouped / every,
                "mass": float(np.mean([mass(table, one) for one in chosen])),
            }
            if name != RANDOM:
                row["groups"] = {str(layer): made for layer, made in sorted(draws[0].items())}
            found.append(row)
    return found
