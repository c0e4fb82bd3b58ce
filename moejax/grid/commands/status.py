"""`grid status`: what every cell is doing, from the root's files alone."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence

from moejax.grid.arguments import Arguments
from moejax.grid.claims import Claims
from moejax.grid.driver import remaining, to_json, verdict
from moejax.grid.launchers.squeue import Squeue
from moejax.grid.live import row, summary, table
from moejax.grid.places import Places
from moejax.grid.record import RecordedCell, load
from moejax.grid.selection import select
from moejax.grid.shard import shard
from moejax.grid.status import ACTIVE, CellState, read_states

CLEAR = "\x1b[H\x1b[2J"


def main(arguments: Arguments) -> int:
    """Prints the state of the selected cells; returns one of the codes of `exits`.

    With `--watch` again and again, until no cell is claimed or running.

    Raises:
      ConfigError: there is no grid at the root, or no such cells.
    """
    places = Places(arguments.need_root())
    cells = shard(select(load(places.root).cells, arguments.filter), arguments.shard)
    claims = Claims(places, job_active=Squeue().active)
    while True:
        states = read_states(places, [cell.directory for cell in cells], claims)
        text = _json(cells, states) if arguments.json else _table(cells, states)
        clear = CLEAR if arguments.watch and sys.stdout.isatty() else ""
        print(clear + text, flush=True)
        code = verdict(state for _, state in _counted(cells, states))
        if not arguments.watch or not any(state.state in ACTIVE for state in states.values()):
            return code
        time.sleep(arguments.watch)


def _counted(
    cells: Sequence[RecordedCell], states: dict[str, CellState]
) -> list[tuple[RecordedCell, CellState]]:
    """Cells that the grid still has: the others cannot become done."""
    return [(cell, states[cell.directory]) for cell in cells if not cell.vanished]


def _json(cells: Sequence[RecordedCell], states: dict[str, CellState]) -> str:
    rows = to_json(cells, states)
    for cell, record in zip(cells, rows, strict=True):
        record |= {"axes": cell.axes, "seed": cell.seed, "vanished": cell.vanished}
    return json.dumps(rows, indent=2)


def _table(cells: Sequence[RecordedCell], states: dict[str, CellState]) -> str:
    rows = []
    for cell in cells:
        note = " (not in the grid any more)" if cell.vanished else ""
        rows.append(row(cell.name + note, states[cell.directory]))
    counted = [state for _, state in _counted(cells, states)]
    return f"{table(rows)}\n{summary(counted, remaining(counted))}"
