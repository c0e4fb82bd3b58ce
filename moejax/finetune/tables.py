"""Analyses of experts as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moejax.config import ConfigError


def overlap_table(found: Mapping[str, Any]) -> str:
    """Jaccard of every pair of tasks, mean over layers; in brackets that of random sets.

    Args:
      found: of `moejax.finetune.esft.overlap_of`.
    """
    tasks = found["tasks"]
    width = max(14, *(len(task) + 2 for task in tasks))
    lines = [
        f"experts by {found['score']} p={found['p']:g}: shared over united, mean over layers "
        "(random sets)",
        " " * width + "".join(task.rjust(width) for task in tasks),
    ]
    for row, task in enumerate(tasks):
        cells = [
            f"{found['jaccard'][row][column]:.3f} ({found['chance'][row][column]:.3f})"
            for column in range(len(tasks))
        ]
        lines.append(task.ljust(width) + "".join(cell.rjust(width) for cell in cells))
    return "\n".join(lines)


def groups_table(path: Path, found: Any) -> str:
    """What whole groups need, of an `analysis.json`.

    Raises:
      ConfigError: it holds no such analysis.
    """
    rows = found.get("grouping") if isinstance(found, dict) else None
    if not isinstance(rows, list) or not rows:
        raise ConfigError(f"{path}: holds no grouping; write it with python -m tools.esft score")
    lines = [
        f"{'score':<7}{'p':>5}  {'groups by':<14}{'of':>3}{'single':>8}{'grouped':>9}{'ratio':>7}"
        f"{'share':>7}{'mass':>7}"
    ]
    try:
        lines += [
            f"{row['score']:<7}{row['p']:>5g}  {row['affinity']:<14}{row['size']:>3}"
            f"{row['single']:>8}{row['grouped']:>9.1f}{row['ratio']:>7.2f}{row['share']:>7.1%}"
            f"{row['mass']:>7.1%}"
            for row in rows
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: its grouping is damaged ({error})") from error
    return "\n".join(lines)
