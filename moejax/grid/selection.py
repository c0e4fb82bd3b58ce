"""Selection: the cells that `--filter axis=label` means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from moejax.config import ConfigError, nearest
from moejax.grid.cells import Cell
from moejax.grid.sweep import SEED

C = TypeVar("C", bound=Cell)


def select(cells: Sequence[C], filters: Sequence[str]) -> tuple[C, ...]:
    """Cells for which every filter `AXIS=LABEL[|LABEL...]` holds; `seed` is an axis too.

    Raises:
      ConfigError: no such form, axis or label, or nothing is left.
    """
    kept = tuple(cells)
    for text in filters:
        name, equals, labels = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"--filter={text}: expected AXIS=LABEL[|LABEL...]")
        known: dict[str, None] = {}
        for cell in cells:
            known.update(dict.fromkeys(labels_of(cell)))
        if name not in known:
            hint = nearest(name, known) or f"; axes: {', '.join(known) or 'none'}"
            raise ConfigError(f"--filter={text}: unknown axis {name!r}{hint}")
        wanted = set(labels.split("|"))
        there = dict.fromkeys(labels_of(cell).get(name, "") for cell in cells)
        for label in sorted(wanted - set(there)):
            options = [one for one in there if one]
            hint = nearest(label, options) or f"; labels: {', '.join(options)}"
            raise ConfigError(f"--filter={text}: axis {name!r} has no {label!r}{hint}")
        kept = tuple(cell for cell in kept if labels_of(cell).get(name, "") in wanted)
    if not kept:
        what = " ".join(f"--filter={text}" for text in filters)
        raise ConfigError(f"{what or 'grid'}: no cell is left of {len(cells)}")
    return kept


def labels_of(cell: Cell) -> dict[str, str]:
    """Labels of a cell with its seed among them."""
    return cell.axes | ({} if cell.seed is None else {SEED: str(cell.seed)})
