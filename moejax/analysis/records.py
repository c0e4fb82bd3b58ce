"""JSON files of a run directory that hold measurements: found, and read without trust."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from moejax.analysis import text
from moejax.config.files import read_json
from moejax.config.knobs import ConfigError

MAX_BYTES = 64 << 20
MAX_LAYERS = 4096


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over tokens in nats, and its 95 % interval over sequences; NaN: not known."""

    mean: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class StepFile:
    """A file that is there, not opened yet: its folder names and its step."""

    folder: str
    corpus: str
    step: int
    path: Path


def find_steps(top: Path) -> list[StepFile]:
    """The files `top/FOLDER/CORPUS/STEP.json`: by folder, corpus, step."""
    found = []
    for folder in _folders(top):
        for corpus in _folders(folder):
            steps = [
                (int(stem), corpus / name)
                for name in sorted(os.listdir(corpus))
                if name.endswith(".json") and (stem := name.removesuffix(".json")).isdecimal()
                if stem.isascii() and len(stem) <= 18
            ]
            found += [StepFile(folder.name, corpus.name, step, p) for step, p in sorted(steps)]
    return found


def _folders(top: Path) -> list[Path]:
    if not top.is_dir():
        return []
    return [top / name for name in sorted(os.listdir(top)) if (top / name).is_dir()]


def read_record(path: Path, version: int) -> dict[str, Any]:
    """A JSON object of this format version.

    Raises:
      ConfigError: one line: missing, too large, not a JSON object, of another version.
    """
    try:
        if path.is_file() and path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_BYTES:,} bytes")
        record = read_json(path)
    except (RecursionError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        # Nested too deeply, or an integer of too many digits.
        raise ConfigError(f"{path}: is not JSON ({text.clean(error, 80)})") from error
    if not isinstance(record, dict):
        raise ConfigError(f"{path}: is not a JSON object")
    there = record.get("format_version")
    if there != version or isinstance(there, bool):
        shown = text.clean(there, 20)
        raise ConfigError(f"{path}: format_version is {shown}, this reader knows {version}")
    return record


def integers(path: Path, record: dict[str, Any], name: str) -> NDArray[np.int32]:
    """int32: a list of 1 to `MAX_LAYERS` whole numbers, 0 or more; raises ConfigError."""
    value = record.get(name)
    if (
        not isinstance(value, list)
        or not 1 <= len(value) <= MAX_LAYERS
        or not all(is_int(one) and 0 <= one < 1 << 31 for one in value)
    ):
        raise ConfigError(f"{path}: {name} is no list of 1 to {MAX_LAYERS:,} numbers")
    return np.array(value, np.int32)


def layers(path: Path, record: dict[str, Any]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """`layers_L` and `experts_L`, of one length; raises ConfigError."""
    layers_L = integers(path, record, "layers_L")
    experts_L = integers(path, record, "experts_L")
    if len(experts_L) != len(layers_L):
        raise ConfigError(
            f"{path}: experts_L has {len(experts_L)} layers but layers_L has {len(layers_L)}"
        )
    return layers_L, experts_L


def listed_rows(path: Path, record: dict[str, Any], most: int) -> list[Any]:
    """`rows`, a list of at most `most`; raises ConfigError."""
    rows = record.get("rows")
    if not isinstance(rows, list) or len(rows) > most:
        raise ConfigError(f"{path}: rows is no list of at most {most:,} rows")
    return rows


def count(path: Path, record: dict[str, Any], name: str) -> int:
    """A whole number, 0 or more; raises ConfigError."""
    value = record.get(name)
    if not is_int(value) or not 0 <= value < 1 << 63:
        raise ConfigError(f"{path}: {name} is no whole number")
    return value


def is_int(value: object) -> TypeGuard[int]:
    """A whole number, which True is not."""
    return isinstance(value, int) and not isinstance(value, bool)


def number(value: object) -> float:
    """A number of any size that arithmetic bears; NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
        return math.nan
    return float(value)


def string(value: object) -> str:
    """Visible and bounded; "" for anything else."""
    return text.clean(value, 200) if isinstance(value, str) else ""


def estimate(value: object) -> Estimate:
    """What `numbers` wrote; NaN for what is not there."""
    found = value if isinstance(value, dict) else {}
    return Estimate(*(number(found.get(name)) for name in ("mean", "low", "high")))


def numbers(of: Estimate) -> dict[str, float | None]:
    """As JSON: NaN is null."""
    pairs = dataclasses.asdict(of).items()
    return {name: value if math.isfinite(value) else None for name, value in pairs}
