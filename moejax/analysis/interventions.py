"""Sweeps of interventions: `RUN/interventions/WHAT/CORPUS/STEP.json`, read without trust.

What the numbers mean is in docs/interventions.md; `moejax.probe.interventions` makes them.
"""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from moejax.analysis import text
from moejax.config.files import read_json, write_json
from moejax.config.knobs import ConfigError

FORMAT_VERSION = 1
FOLDER = "interventions"
MAX_BYTES = 64 << 20
MAX_ROWS = 1 << 16
MAX_LAYERS = 4096


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over tokens in nats, and its 95 % interval over sequences; NaN: not known."""

    mean: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a text costs under one value of a sweep. Axis letter `L`: MoE layers, in model order.

    Attributes:
      value: what was swept, as it was written: a number, or a share like `1/16`; an expert's id.
      layers: model indices of the layers that the intervention acts on; none: the untouched model.
      loss: nats per scored token.
      change: this loss minus that of the untouched model, paired: the interval is that of the
        differences of sequences. 0 of the untouched model itself.
      active_L: float64 experts per token that were computed, mean over tokens.
      width_L: float64 hidden units of those experts per token.
      shared_L: float64 hidden units of the shared expert that is still there.
    """

    value: str
    layers: tuple[int, ...]
    loss: Estimate
    change: Estimate
    active_L: NDArray[np.float64]
    width_L: NDArray[np.float64]
    shared_L: NDArray[np.float64]

    @property
    def active(self) -> float:
        """Experts per token, mean over layers; NaN without layers."""
        return _mean(self.active_L)

    @property
    def width(self) -> float:
        """Hidden units per token, the shared expert's included, mean over layers."""
        return _mean(self.width_L + self.shared_L)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """One intervention at all its values, of one checkpoint over one text.

    Attributes:
      what: disable_top, shared_for_routed, k, p or drop_one.
      when, renormalise, acts_on: the conventions (docs/interventions.md).
      corpus, spec, part: the text, as in `Labels`.
      step: of the checkpoint.
      tokens: scored ones.
      sequences: those that they are in.
      tokens_sha256: as in `Labels`: equal where a trace is of the same tokens.
      layers_L: int32, model indices of the MoE layers.
      experts_L: int32, experts that each has.
      routers: the router of each, by its registered name.
      untouched: the model as it is.
      rows: one per value (and layer), in the order of the sweep.
    """

    what: str
    when: str
    renormalise: bool
    acts_on: str
    corpus: str
    spec: str
    part: str
    step: int
    tokens: int
    sequences: int
    tokens_sha256: str
    layers_L: NDArray[np.int32]
    experts_L: NDArray[np.int32]
    routers: tuple[str, ...]
    untouched: Measured
    rows: tuple[Measured, ...]


@dataclasses.dataclass(frozen=True)
class SweepFile:
    """A sweep that is there, not opened yet: its folder names and its step."""

    folder: str
    corpus: str
    step: int
    path: Path


def find_sweeps(root: str | os.PathLike[str]) -> list[SweepFile]:
    """The sweeps of a run directory: by folder, corpus, step."""
    top = Path(root) / FOLDER
    found = []
    for folder in _folders(top):
        for corpus in _folders(folder):
            steps = [
                (int(stem), corpus / name)
                for name in sorted(os.listdir(corpus))
                if name.endswith(".json") and (stem := name.removesuffix(".json")).isdecimal()
                if stem.isascii() and len(stem) <= 18
            ]
            found += [SweepFile(folder.name, corpus.name, step, p) for step, p in sorted(steps)]
    return found


def write_sweep(path: str | os.PathLike[str], sweep: Sweep) -> None:
    """Writes a sweep atomically; equal sweeps give equal bytes. NaN is null."""
    record = {
        field.name: getattr(sweep, field.name)
        for field in dataclasses.fields(sweep)
        if field.name not in ("untouched", "rows")
    }
    record |= {name: record[name].tolist() for name in ("layers_L", "experts_L")}
    record["untouched"] = _row(sweep.untouched)
    record["rows"] = [_row(row) for row in sweep.rows]
    write_json(path, {"format_version": FORMAT_VERSION, **record})


def read_sweep(path: str | os.PathLike[str]) -> Sweep:
    """Reads a sweep. Strings are made visible and bounded; numbers that are none become NaN.

    Raises:
      ConfigError: one line: missing, too large, not JSON, of another version, or without the
        layers and rows of a sweep.
    """
    path = Path(path)
    record = _record(path)
    layers_L = _integers(path, record, "layers_L")
    experts_L = _integers(path, record, "experts_L")
    if len(experts_L) != len(layers_L):
        raise ConfigError(
            f"{path}: experts_L has {len(experts_L)} layers but layers_L has {len(layers_L)}"
        )
    rows = record.get("rows")
    if not isinstance(rows, list) or len(rows) > MAX_ROWS:
        raise ConfigError(f"{path}: rows is no list of at most {MAX_ROWS:,} rows")
    names = record.get("routers")
    fields: dict[str, Any] = {
        name: _string(record.get(name))
        for name in ("what", "when", "acts_on", "corpus", "spec", "part", "tokens_sha256")
    }
    fields |= {name: _count(path, record, name) for name in ("step", "tokens", "sequences")}
    return Sweep(
        **fields,
        renormalise=record.get("renormalise") is True,
        layers_L=layers_L,
        experts_L=experts_L,
        routers=tuple(map(_string, names[:MAX_LAYERS])) if isinstance(names, list) else (),
        untouched=_measured(path, "untouched", record.get("untouched"), layers_L),
        rows=tuple(
            _measured(path, f"rows[{number}]", row, layers_L) for number, row in enumerate(rows)
        ),
    )


HEADER = (
    f"{'value':>9}  {'layers':>8}  {'loss':>7}  {'95 %':>15}  {'change':>8}  {'95 %':>17}"
    f"  {'experts':>7}  {'width':>7}"
)
"""Of `line`: columns of a small table in fixed width."""


def line(row: Measured, num_layers: int) -> str:
    """A row of the table; `num_layers` is how many MoE layers there are. A dash: not known."""
    if not row.layers:
        acts = "none"
    elif len(row.layers) == num_layers:
        acts = "all"
    else:
        acts = ",".join(map(str, row.layers))
    loss, change = row.loss, row.change
    return (
        f"{text.clean(row.value, 20):>9}  {text.shorten(acts, 8):>8}  {_cell(loss.mean):>7}  "
        f"{_cell(loss.low) + ' ' + _cell(loss.high):>15}  {_cell(change.mean, '+'):>8}  "
        f"{_cell(change.low, '+') + ' ' + _cell(change.high, '+'):>17}  "
        f"{_cell(row.active, digits=2):>7}  {_cell(row.width, digits=1):>7}"
    )


def _cell(value: float, sign: str = "", digits: int = 4) -> str:
    return f"{value:{sign}.{digits}f}" if math.isfinite(value) else text.MISSING


def _mean(array_L: NDArray[np.float64]) -> float:
    return float(array_L.mean()) if array_L.size else math.nan


def _folders(top: Path) -> list[Path]:
    if not top.is_dir():
        return []
    return [top / name for name in sorted(os.listdir(top)) if (top / name).is_dir()]


def _row(row: Measured) -> dict[str, Any]:
    def numbers(estimate: Estimate) -> dict[str, float | None]:
        pairs = dataclasses.asdict(estimate).items()
        return {name: value if math.isfinite(value) else None for name, value in pairs}

    return {
        "value": row.value,
        "layers": row.layers,
        "loss": numbers(row.loss),
        "change": numbers(row.change),
        "active_L": row.active_L.tolist(),
        "width_L": row.width_L.tolist(),
        "shared_L": row.shared_L.tolist(),
    }


def _record(path: Path) -> dict[str, Any]:
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
    version = record.get("format_version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        shown = text.clean(version, 20)
        raise ConfigError(f"{path}: format_version is {shown}, this reader knows {FORMAT_VERSION}")
    return record


def _measured(path: Path, where: str, value: object, layers_L: NDArray[np.int32]) -> Measured:
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: {where} is not an object")
    acts = value.get("layers")
    known = set(layers_L.tolist())
    if not isinstance(acts, list) or not all(_is_int(layer) and layer in known for layer in acts):
        raise ConfigError(f"{path}: {where}.layers are not layers of layers_L")
    arrays = {}
    for name in ("active_L", "width_L", "shared_L"):
        found = value.get(name)
        if not isinstance(found, list) or len(found) != len(layers_L):
            raise ConfigError(f"{path}: {where}.{name} does not have {len(layers_L)} layers")
        arrays[name] = np.array([_number(one) for one in found], np.float64)
    return Measured(
        value=_string(value.get("value")),
        layers=tuple(acts),
        loss=_estimate(value.get("loss")),
        change=_estimate(value.get("change")),
        **arrays,
    )


def _estimate(value: object) -> Estimate:
    found = value if isinstance(value, dict) else {}
    return Estimate(*(_number(found.get(name)) for name in ("mean", "low", "high")))


def _integers(path: Path, record: dict[str, Any], name: str) -> NDArray[np.int32]:
    value = record.get(name)
    if (
        not isinstance(value, list)
        or not 1 <= len(value) <= MAX_LAYERS
        or not all(_is_int(one) and 0 <= one < 1 << 31 for one in value)
    ):
        raise ConfigError(f"{path}: {name} is no list of 1 to {MAX_LAYERS:,} numbers")
    return np.array(value, np.int32)


def _count(path: Path, record: dict[str, Any], name: str) -> int:
    value = record.get(name)
    if not _is_int(value) or not 0 <= value < 1 << 63:
        raise ConfigError(f"{path}: {name} is no whole number")
    return value


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
        return math.nan
    return float(value)


def _string(value: object) -> str:
    return text.clean(value, 200) if isinstance(value, str) else ""
