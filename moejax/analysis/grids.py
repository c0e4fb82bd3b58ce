"""Roots of grids in a report: what their `grid.json` adds to the runs that are there."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path

from moejax.analysis import text
from moejax.analysis.runs import MAX_JSON_BYTES, Note, Record, Run, looks_like_run
from moejax.config.files import read_json
from moejax.config.knobs import ConfigError


def grid_notes(paths: Sequence[str | os.PathLike[str]]) -> list[Note]:
    """Cells without a run yet, and runs that their grid no longer has; [] for other directories."""
    found: list[Note] = []
    for root in map(Path, paths):
        path = root / "grid.json"
        if path.is_file():
            found += _notes(root, path)
    return found


def axes_of(run: Run) -> dict[str, str]:
    """Axis -> label of the run's cell in its grid; {} for a run that is no cell of a grid."""
    path = run.root.parent / "grid.json"
    try:
        now = path.stat()
    except OSError:
        return {}
    return _cells(path, now.st_mtime_ns, now.st_size).get(run.root.name, {})


@functools.lru_cache(maxsize=32)
def _cells(path: Path, changed: int, size: int) -> dict[str, dict[str, str]]:
    """Directory -> axis -> label of a `grid.json`; {} if it cannot be read.

    `changed` and `size` are in the key so that a file that grows is read again.
    """
    try:
        record = Record(read_json(path) if size <= MAX_JSON_BYTES else None)
    except (ConfigError, OSError, RecursionError):
        return {}
    cells = record.get("cells")
    found: dict[str, dict[str, str]] = {}
    for cell in map(Record, cells if isinstance(cells, list) else []):
        directory, axes = cell.get("directory"), cell.get("axes")
        if isinstance(directory, str) and isinstance(axes, list):
            pairs = [a for a in axes if isinstance(a, list) and len(a) == 2]
            found[directory] = {text.clean(a, 60): text.clean(b, 120) for a, b in pairs}
    return found


def _notes(root: Path, path: Path) -> list[Note]:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ConfigError(f"{path.name}: larger than {MAX_JSON_BYTES:,} bytes")
        record = Record(read_json(path))
    except (ConfigError, OSError, RecursionError) as error:
        what = text.clean(str(error).replace(str(path), path.name))
        return [Note(text.clean(root.name), "warning", path.name, what)]
    notes = []
    cells = record.get("cells")
    for cell in map(Record, cells if isinstance(cells, list) else []):
        directory = cell.get("directory")
        # A name that could lead out of the root is no directory of ours.
        if not isinstance(directory, str) or os.path.basename(directory) != directory:
            continue
        name = text.clean(directory, 120)
        there = looks_like_run(os.path.join(root, directory))
        if cell.get("vanished") is True and there:
            notes.append(Note(name, "warning", path.name, "the grid no longer has this cell"))
        elif not there and cell.get("vanished") is not True:
            notes.append(Note(name, "excluded", path.name, "this cell has not run yet"))
    return notes
