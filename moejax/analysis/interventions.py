"""Sweeps of interventions: `RUN/interventions/WHAT/CORPUS/STEP.json`, read without trust.

What the numbers mean is in docs/interventions.md; `moejax.probe.interventions` makes them.
"""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moejax.analysis import text
from moejax.analysis.records import (
    MAX_LAYERS,
    Estimate,
    StepFile,
    count,
    estimate,
    find_steps,
    is_int,
    layers,
    listed_rows,
    number,
    numbers,
    read_record,
    string,
)
from moejax.config.files import write_json
from moejax.config.knobs import ConfigError

FORMAT_VERSION = 1
FOLDER = "interventions"
MAX_ROWS = 1 << 16


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


def find_sweeps(root: str | os.PathLike[str]) -> list[StepFile]:
    """The sweeps of a run directory: by folder, corpus, step."""
    return find_steps(Path(root) / FOLDER)


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
    record = read_record(path, FORMAT_VERSION)
    layers_L, experts_L = layers(path, record)
    rows = listed_rows(path, record, MAX_ROWS)
    names = record.get("routers")
    fields: dict[str, Any] = {
        name: string(record.get(name))
        for name in ("what", "when", "acts_on", "corpus", "spec", "part", "tokens_sha256")
    }
    fields |= {name: count(path, record, name) for name in ("step", "tokens", "sequences")}
    return Sweep(
        **fields,
        renormalise=record.get("renormalise") is True,
        layers_L=layers_L,
        experts_L=experts_L,
        routers=tuple(map(string, names[:MAX_LAYERS])) if isinstance(names, list) else (),
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


def _row(row: Measured) -> dict[str, Any]:
    return {
        "value": row.value,
        "layers": row.layers,
        "loss": numbers(row.loss),
        "change": numbers(row.change),
        "active_L": row.active_L.tolist(),
        "width_L": row.width_L.tolist(),
        "shared_L": row.shared_L.tolist(),
    }


def _measured(path: Path, where: str, value: object, layers_L: NDArray[np.int32]) -> Measured:
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: {where} is not an object")
    acts = value.get("layers")
    known = set(layers_L.tolist())
    if not isinstance(acts, list) or not all(is_int(layer) and layer in known for layer in acts):
        raise ConfigError(f"{path}: {where}.layers are not layers of layers_L")
    arrays = {}
    for name in ("active_L", "width_L", "shared_L"):
        found = value.get(name)
        if not isinstance(found, list) or len(found) != len(layers_L):
            raise ConfigError(f"{path}: {where}.{name} does not have {len(layers_L)} layers")
        arrays[name] = np.array([number(one) for one in found], np.float64)
    return Measured(
        value=string(value.get("value")),
        layers=tuple(acts),
        loss=estimate(value.get("loss")),
        change=estimate(value.get("change")),
        **arrays,
    )
