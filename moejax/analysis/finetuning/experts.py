"""Which experts tasks use: `RUN/esft/TASK/analysis.json` and `RUN/esft/overlap.json`, no trust.

`python -m tools.esft score` and `overlap` write them (docs/esft.md).
"""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moejax.analysis.records import MAX_LAYERS, is_int, number, read_record, string
from moejax.config.knobs import ConfigError

FORMAT_VERSION = 1
FOLDER, ANALYSIS, OVERLAP = "esft", "analysis.json", "overlap.json"
SCORES = ("gate", "token")
MAX_ROWS, MAX_TASKS = 1 << 10, 256


@dataclasses.dataclass(frozen=True, eq=False)
class Concentration:
    """How few experts carry a share of a score. Axis letter `L`: MoE layers, in model order.

    Attributes:
      mass: that share.
      layers_L: model indices.
      experts_L: how many carry it; `share_L` of the layer's experts; `uniform_L`: what it would
        be if all were used alike.
    """

    mass: float
    layers_L: NDArray[np.int32]
    experts_L: NDArray[np.float64]
    share_L: NDArray[np.float64]
    uniform_L: NDArray[np.float64]

    @property
    def share(self) -> float:
        """Mean over layers."""
        return float(self.share_L.mean())


@dataclasses.dataclass(frozen=True)
class Grouped:
    """What whole groups of experts need: `share` of all experts for the same threshold."""

    affinity: str
    size: int
    score: str
    p: float
    single: float
    grouped: float
    share: float


@dataclasses.dataclass(frozen=True, eq=False)
class Use:
    """How a task uses a checkpoint's experts.

    Attributes:
      task: as its folder is called.
      step, tokens: of the checkpoint; that were scored.
      concentration: by score.
      curve: by score (p, share of experts that it selects).
      stability: by score the overlap of what two halves of the sample select; NaN: not known.
      groups: selections of whole groups.
    """

    task: str
    step: int
    tokens: int
    concentration: dict[str, Concentration]
    curve: dict[str, tuple[tuple[float, float], ...]]
    stability: dict[str, float]
    groups: tuple[Grouped, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Overlap:
    """How much tasks' selections share: Jaccard `[A, A]`, mean over layers, and by chance."""

    tasks: tuple[str, ...]
    score: str
    p: float
    jaccard_AA: NDArray[np.float64]
    chance_AA: NDArray[np.float64]


def find_uses(root: str | os.PathLike[str]) -> list[Path]:
    """The analyses of a run directory, by task."""
    top = Path(root) / FOLDER
    if not top.is_dir():
        return []
    found = (top / name / ANALYSIS for name in sorted(os.listdir(top)))
    return [path for path in found if path.is_file()]


def read_use(path: str | os.PathLike[str]) -> Use:
    """Reads an analysis.

    Raises:
      ConfigError: one line: too large, not JSON, of another version, or without the concentration
        of an analysis.
    """
    path = Path(path)
    record = read_record(path, FORMAT_VERSION)
    found = {name: _concentration(path, record, name) for name in SCORES}
    groups = record.get("grouping")
    listed = groups if isinstance(groups, list) else []
    return Use(
        task=string(path.parent.name),
        step=_whole(record.get("step")),
        tokens=_whole(record.get("tokens")),
        concentration=found,
        curve={name: _curve(record, name) for name in SCORES},
        stability={name: number(_at(record, "selected", name, "stability")) for name in SCORES},
        groups=tuple(_grouped(row) for row in listed[:MAX_ROWS] if isinstance(row, dict)),
    )


def read_overlap(path: str | os.PathLike[str]) -> Overlap | None:
    """Reads an overlap; None where there is no such file.

    Raises:
      ConfigError: one line: as `read_use`, or tables that do not fit the tasks.
    """
    path = Path(path)
    if not path.is_file():
        return None
    record = read_record(path, FORMAT_VERSION)
    tasks = record.get("tasks")
    if not isinstance(tasks, list) or not 0 < len(tasks) <= MAX_TASKS:
        raise ConfigError(f"{path}: tasks is no list of 1 to {MAX_TASKS} names")
    tables = (_table(path, record, name, len(tasks)) for name in ("jaccard", "chance"))
    names = tuple(map(string, tasks))
    return Overlap(names, string(record.get("score")), number(record.get("p")), *tables)


def _concentration(path: Path, record: dict[str, Any], name: str) -> Concentration:
    layers = _at(record, "concentration", name, "layers")
    own = layers if isinstance(layers, dict) else {}
    rows = {
        int(key): row
        for key, row in own.items()
        if key.isdecimal() and key.isascii() and len(key) < 9 and isinstance(row, dict)
    }
    if not rows or len(rows) < len(own) or len(rows) > MAX_LAYERS:
        raise ConfigError(f"{path}: concentration.{name}.layers is no table of layers")
    order = sorted(rows)
    columns = (
        np.array([number(rows[layer].get(key)) for layer in order])
        for key in ("experts", "share", "uniform")
    )
    mass = number(_at(record, "concentration", name, "mass"))
    return Concentration(mass, np.array(order, np.int32), *columns)


def _curve(record: dict[str, Any], name: str) -> tuple[tuple[float, float], ...]:
    listed = _at(record, "curve", name)
    rows = [row for row in listed[:MAX_ROWS] if isinstance(row, dict)] if _is_list(listed) else []
    pairs = ((number(row.get("p")), number(row.get("share"))) for row in rows)
    return tuple(pair for pair in pairs if all(map(math.isfinite, pair)))


def _grouped(row: dict[str, Any]) -> Grouped:
    return Grouped(
        affinity=string(row.get("affinity")),
        size=_whole(row.get("size")),
        score=string(row.get("score")),
        p=number(row.get("p")),
        single=number(row.get("single")),
        grouped=number(row.get("grouped")),
        share=number(row.get("share")),
    )


def _table(path: Path, record: dict[str, Any], name: str, size: int) -> NDArray[np.float64]:
    rows: Any = record.get(name)
    if not _is_list(rows) or len(rows) != size:
        raise ConfigError(f"{path}: {name} does not have {size} rows")
    if any(not _is_list(row) or len(row) != size for row in rows):
        raise ConfigError(f"{path}: {name} does not have {size} columns")
    return np.array([[number(one) for one in row] for row in rows], np.float64)


def _at(record: Any, *keys: str) -> Any:
    for key in keys:
        record = record.get(key) if isinstance(record, dict) else None
    return record


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _whole(value: Any) -> int:
    return value if is_int(value) and 0 <= value < 1 << 53 else 0
