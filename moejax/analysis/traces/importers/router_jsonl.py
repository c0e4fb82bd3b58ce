"""JSON lines as Megatron-LM's `--moe-routing-trace-path` writes them, one file per rank.

One object per line: `step`, `block` ("decoder", "mtp"), `layer`, `rank`, `num_tokens`, `topk`,
`top_indices` (`num_tokens` lists of `topk` ids), and `mtp_idx` where `block` is "mtp". While
training a step is an iteration; in inference it is one forward pass, a prompt or a single token.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moejax.analysis import text
from moejax.analysis.arrays import MAX_ARRAY_BYTES
from moejax.analysis.traces.importers.table import Imported, to_trace
from moejax.analysis.traces.trace import EMPTY_SLOT
from moejax.config.knobs import ConfigError

MAX_LINE_BYTES = 64 << 20
_STAGE = "pre_dispatch"
Layer = tuple[str, int, int]
"""Block, `mtp_idx` (-1: none), layer."""


@dataclasses.dataclass(frozen=True)
class _Record:
    """One line: the experts `[T, K]` of one layer's tokens on one rank."""

    step: int
    layer: Layer
    rank: int
    expert_TK: NDArray[Any]
    where: str


def import_jsonl(
    files: Sequence[str | Path], *, experts: int | None = None, step: int | None = None
) -> Imported:
    """Reads the files of all ranks and joins layers, ranks and steps.

    Tokens are in the order of steps, then ranks, then lines. Layers of a block "decoder" keep their
    number; those of other blocks follow behind them.

    Args:
      files: one per rank, or all ranks in one.
      experts: experts of a layer; None: one more than the highest id that occurs.
      step: only this step of the files; None: all of them, as one text.

    Raises:
      ConfigError: one line with file and line number: not JSON, a key missing or of another type,
        counts that disagree, a layer that is missing; or no such step.
    """
    records: list[_Record] = []
    cells = 0
    for record in _records(files):
        if step is not None and record.step != step:
            records.append(dataclasses.replace(record, expert_TK=record.expert_TK[:0]))
            continue
        cells += record.expert_TK.size
        if cells * 2 > MAX_ARRAY_BYTES:
            raise ConfigError(
                f"{record.where}: more than {MAX_ARRAY_BYTES // 2:,} expert ids; import fewer "
                "steps or files"
            )
        records.append(record)
    if not records:
        raise ConfigError(f"{text.clean(Path(files[0]).name) if files else 'no file'}: no record")
    steps = sorted({record.step for record in records})
    if step is not None and step not in steps:
        near = min(steps, key=lambda other: abs(other - step))
        raise ConfigError(f"--step={step}: there is no record of it; nearest {near}")
    layers = sorted({record.layer for record in records}, key=_order)
    chosen = steps if step is None else [step]
    columns = [_joined([r for r in records if r.step == one], layers, one) for one in chosen]
    slots = max(table.shape[1] for tables in columns for table in tables)
    expert_LTK = np.stack(
        [
            np.concatenate([_padded(tables[row], slots) for tables in columns])
            for row in range(len(layers))
        ]
    )
    where = text.clean(Path(files[0]).name) + (f" and {len(files) - 1} more" if files[1:] else "")
    trace = to_trace(
        expert_LTK,
        _indices(layers),
        experts=experts,
        columns={},
        step=step or 0,
        where=where,
    )
    notes = [f"{len(steps)} steps joined into one text"] if step is None and len(steps) > 1 else []
    if experts is None:
        notes.append(f"{trace.num_experts} experts: one more than the highest id; --experts=E says")
    names = [text.clean(Path(file).name) for file in files]
    return Imported(
        trace,
        tuple(_name(layer) for layer in layers),
        {"format": "jsonl", "files": names[:1000], "num_files": len(names), "steps": len(chosen)},
        tuple(notes),
    )


def _records(files: Sequence[str | Path]) -> Iterator[_Record]:
    for file in map(Path, files):
        name = text.clean(file.name)
        try:
            with open(file, "rb") as stream:
                number = 0
                while line := stream.readline(MAX_LINE_BYTES + 1):
                    number += 1
                    where = f"{name}: line {number}"
                    if len(line) > MAX_LINE_BYTES:
                        raise ConfigError(f"{where}: longer than {MAX_LINE_BYTES:,} bytes")
                    if line.strip():
                        yield _record(line, where)
        except OSError as error:
            raise ConfigError(f"{name}: cannot be read ({error.strerror})") from error


def _record(line: bytes, where: str) -> _Record:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: is not JSON, or cut short") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{where}: is not a JSON object")
    block = found.get("block", "decoder")
    if not isinstance(block, str) or len(block) > 80:
        raise ConfigError(f"{where}: block is {text.clean(block, 40)!r}, expected a name")
    stage = found.get("stage", _STAGE)
    if stage != _STAGE:
        shown = text.clean(stage, 40)
        raise ConfigError(f"{where}: stage is {shown!r}, this reader knows {_STAGE!r}")
    step, layer, rank = (_integer(found, key, where) for key in ("step", "layer", "rank"))
    inner = _integer(found, "mtp_idx", where) if "mtp_idx" in found else -1
    expert_TK = _ids(found, where)
    return _Record(step, (text.clean(block), inner, layer), rank, expert_TK, where)


def _integer(found: dict[str, Any], key: str, where: str) -> int:
    value = found.get(key)
    if key not in found:
        raise ConfigError(f"{where}: has no {key!r}")
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 31:
        raise ConfigError(f"{where}: {key} is {text.clean(value, 40)}, expected a whole number")
    return value


def _ids(found: dict[str, Any], where: str) -> NDArray[Any]:
    """`[num_tokens, topk]`, int32."""
    tokens, slots = (_integer(found, key, where) for key in ("num_tokens", "topk"))
    rows = found.get("top_indices")
    if not isinstance(rows, list) or len(rows) != tokens:
        many = len(rows) if isinstance(rows, list) else "no list of"
        raise ConfigError(f"{where}: top_indices holds {many} tokens, num_tokens is {tokens}")
    for token, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != slots:
            many = len(row) if isinstance(row, list) else "no list of"
            raise ConfigError(f"{where}: token {token} has {many} experts, topk is {slots}")
    if not all(type(cell) is int and -1 <= cell < EMPTY_SLOT for row in rows for cell in row):
        raise ConfigError(f"{where}: top_indices holds something else than ids of experts")
    return np.array(rows, np.int32).reshape(tokens, slots)


def _joined(records: list[_Record], layers: list[Layer], step: int) -> list[NDArray[Any]]:
    """The table `[T, K]` of each layer of one step; lines of a rank stay in their order."""
    by_layer: dict[Layer, list[_Record]] = {}
    for record in records:
        by_layer.setdefault(record.layer, []).append(record)
    tables: list[NDArray[Any]] = []
    wanted: list[int] = []
    for layer in layers:
        mine = sorted(by_layer.get(layer, []), key=lambda record: record.rank)
        if not mine:
            raise ConfigError(
                f"{records[-1].where}: step {step} ends without {_name(layer)}, which other steps "
                "have"
            )
        sizes = [len(record.expert_TK) for record in mine]
        if not tables:
            wanted = sizes
        if sizes != wanted:
            raise ConfigError(
                f"{mine[-1].where}: {_name(layer)} of step {step} has {sum(sizes):,} tokens in "
                f"{len(sizes)} lines, but {_name(layers[0])} has {sum(wanted):,} in {len(wanted)}"
            )
        if len({record.expert_TK.shape[1] for record in mine}) > 1:
            raise ConfigError(f"{mine[-1].where}: topk of {_name(layer)} differs from other lines")
        tables.append(np.concatenate([record.expert_TK for record in mine]))
    return tables


def _padded(table: NDArray[Any], slots: int) -> NDArray[Any]:
    return np.pad(table, ((0, 0), (0, slots - table.shape[1])), constant_values=-1)


def _order(layer: Layer) -> tuple[bool, str, int, int]:
    return layer[0] != "decoder", *layer


def _indices(layers: list[Layer]) -> list[int]:
    """Different, ascending numbers: a decoder's own, then the next ones."""
    found: list[int] = []
    for block, _, number in layers:
        found.append(number if block == "decoder" else (found[-1] + 1 if found else 0))
    return found


def _name(layer: Layer) -> str:
    block, inner, number = layer
    return f"{block} {inner}.{number}" if inner >= 0 else f"{block} {number}"
