"""Record: `grid.json` at a grid's root, which says what the grid was when its cells were started.

Commands that look at results read this file and never the grid's Python file; what runs a grid
first reconciles the two.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moejax.config import ConfigError, diff, format_diff, read_json, write_json
from moejax.grid.cells import SAFE_NAME, Cell, Grid
from moejax.grid.claims import Claims
from moejax.grid.launchers.squeue import Squeue
from moejax.grid.places import Places
from moejax.train.errors import MismatchError
from moejax.train.rundir import RunDir, has_results

FORMAT_VERSION = 1
NAME = "grid.json"
_SHOWN = 3
"""Changed cells whose differences are printed."""


@dataclasses.dataclass(frozen=True)
class RecordedCell(Cell):
    """A cell of the record; `vanished` where the grid no longer has it, but its directory stays."""

    vanished: bool = False


@dataclasses.dataclass(frozen=True)
class Record:
    """What a root holds: the grid's name, the --grid argument, and every cell it ever had."""

    grid: str
    source: str
    cells: tuple[RecordedCell, ...]

    @property
    def current(self) -> tuple[RecordedCell, ...]:
        """The cells that the grid still has."""
        return tuple(cell for cell in self.cells if not cell.vanished)


def exists(root: str | os.PathLike[str]) -> bool:
    """Whether a directory is a grid's root."""
    return (Path(root) / NAME).is_file()


def load(root: str | os.PathLike[str]) -> Record:
    """Reads `grid.json`, as data.

    Raises:
      ConfigError: there is none, it is damaged, or a name in it could leave the root.
    """
    path = Path(root) / NAME
    if not path.is_file():
        raise ConfigError(
            f"{root}: holds no grid ({NAME} is missing); nearest valid: "
            "python -m experiments.grid run --grid=... --root=..."
        )
    record = read_json(path)
    version = record.get("format_version") if isinstance(record, dict) else None
    if version != FORMAT_VERSION:
        raise ConfigError(
            f"{path}: has format_version {version!r}; this moejax reads {FORMAT_VERSION}"
        )
    try:
        cells = tuple(_cell(one) for one in record["cells"])
        found = Record(str(record["grid"]), str(record["source"]), cells)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path}: is damaged ({type(error).__name__}: {error})") from error
    return found


def save(root: str | os.PathLike[str], record: Record) -> None:
    """Writes `grid.json`, whole or not at all."""
    cells = [
        {field.name: getattr(cell, field.name) for field in dataclasses.fields(RecordedCell)}
        # Pairs, because write_json sorts keys and the order of the axes is the author's.
        | {"directory": cell.directory, "axes": [list(pair) for pair in cell.axes.items()]}
        for cell in record.cells
    ]
    content = {
        "format_version": FORMAT_VERSION,
        "grid": record.grid,
        "source": record.source,
        "cells": cells,
    }
    write_json(Path(root) / NAME, content)


@dataclasses.dataclass(frozen=True)
class Changes:
    """How a grid differs from the record of its root.

    Attributes:
      new: cells that the root did not have.
      vanished: started cells that the grid does not have.
      changed: (as recorded, as it is now) of started cells with another config.
    """

    new: tuple[Cell, ...]
    vanished: tuple[RecordedCell, ...]
    changed: tuple[tuple[RecordedCell, Cell], ...]


def compare(root: str | os.PathLike[str], old: Record, grid: Grid) -> Changes:
    """What differs; a recorded cell without a result counts as if it had never been there.

    So one that failed at its start, say by a wrong path, can be corrected. One that somebody has
    claimed, say for a job that waits in a queue, counts as begun.
    """
    places = Places(root)
    claims = Claims(places, job_active=Squeue().active)
    before = {
        one.name: one
        for one in old.cells
        if has_results(RunDir(places.workdir(one.directory))) or claims.held(one.directory)
    }
    recorded, names = {one.name for one in old.cells}, {cell.name for cell in grid.cells}
    pairs = [(before[cell.name], cell) for cell in grid.cells if cell.name in before]
    return Changes(
        new=tuple(cell for cell in grid.cells if cell.name not in recorded),
        vanished=tuple(one for one in before.values() if one.name not in names),
        changed=tuple((one, cell) for one, cell in pairs if one.hash != cell.hash),
    )


def reconcile(root: str | os.PathLike[str], grid: Grid) -> Record:
    """Brings the record up to date with the grid as it is now, writes it and returns it.

    New cells are added. Cells that the grid no longer has stay, with `vanished` set, and come back
    when it has them again. The caller holds the root's lock.

    Raises:
      MismatchError: a cell that was started has another config now; with the differences.
      ConfigError: the root belongs to another grid, is damaged, or cannot be written.
    """
    old = load(root) if exists(root) else Record(grid.name, grid.source, ())
    if old.grid != grid.name:
        raise ConfigError(
            f"--root={root}: belongs to the grid {old.grid!r}, not {grid.name!r}; nearest valid: "
            "another --root"
        )
    found = compare(root, old, grid)
    if found.changed:
        raise MismatchError(_refusal(root, found.changed))
    kept = [RecordedCell(**_fields(cell)) for cell in grid.cells]
    gone = [dataclasses.replace(cell, vanished=True) for cell in found.vanished]
    record = Record(grid.name, grid.source, (*kept, *gone))
    if record != old or not exists(root):
        try:
            save(root, record)
        except OSError as error:
            raise ConfigError(f"--root={root}: cannot be written ({error.strerror})") from error
    return record


def _refusal(root: Any, changed: Sequence[tuple[Cell, Cell]]) -> str:
    lines = [
        f"--root={root}: {len(changed)} cells that were started have another config now; nearest "
        "valid: the grid as it was, or another --root. Differences (there -> here):"
    ]
    for old, new in changed[:_SHOWN]:
        lines += [f"{new.name}:", *format_diff(diff(old.config, new.config)).splitlines()]
    if len(changed) > _SHOWN:
        lines.append(f"... and {len(changed) - _SHOWN} more cells")
    return "\n".join(lines)


def _fields(cell: Cell) -> dict[str, Any]:
    return {field.name: getattr(cell, field.name) for field in dataclasses.fields(Cell)}


def _cell(one: dict[str, Any]) -> RecordedCell:
    seed = one["seed"]
    cell = RecordedCell(
        name=str(one["name"]),
        overrides=dict(one["overrides"]),
        axes={str(axis): str(label) for axis, label in one["axes"]},
        seed=None if seed is None else int(seed),
        config=dict(one["config"]),
        hash=str(one["hash"]),
        argv=tuple(map(str, one["argv"])),
        vanished=bool(one["vanished"]),
    )
    safe = SAFE_NAME.fullmatch(cell.name) and len(cell.hash) == 10 and cell.hash.isalnum()
    if not safe or one["directory"] != cell.directory:
        raise ValueError(f"unsafe or wrong directory {one['directory']!r}")
    return cell
