"""`grid run`: starts what is missing, and stays until every selected cell has ended."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from moejax.config.knobs import ConfigError
from moejax.grid.arguments import Arguments
from moejax.grid.cells import Cell
from moejax.grid.claims import Claims, exclusively
from moejax.grid.commands.plan import machine_of
from moejax.grid.driver import Driver, Policy, Runnable, to_json, verdict
from moejax.grid.estimate import estimate, gib, refusals
from moejax.grid.exits import EXIT_DONE
from moejax.grid.launchers import Spec
from moejax.grid.launchers.choose import choose
from moejax.grid.launchers.local import Local
from moejax.grid.launchers.printed import Printer
from moejax.grid.live import make_display, row, summary, table
from moejax.grid.load import load_grid
from moejax.grid.places import Places
from moejax.grid.record import reconcile
from moejax.grid.selection import select
from moejax.grid.shard import shard
from moejax.grid.status import DONE, FAILED, MISSING, CellState, read_states
from moejax.train.errors import StorageError
from moejax.train.rundir import storage_reason


def main(arguments: Arguments) -> int:
    """Runs the cells that the flags select; returns one of the codes of `exits`.

    Raises:
      ConfigError: nothing was started: a wrong flag, a grid that does not load or has changed.
      StorageError: the root cannot be written any more; the cells of this machine saved and ended.
    """
    policy = Policy(
        failed=arguments.retry_failed,
        rerun=arguments.rerun,
        fail_fast=arguments.fail_fast,
        wait=arguments.wait,
    )
    return run(arguments, policy)


def run(arguments: Arguments, policy: Policy) -> int:
    """Runs what `policy` wants of the cells that the flags select."""
    places = Places(arguments.need_root())
    grid = load_grid(arguments.need_grid(), arguments.imports)
    cells = shard(select(grid.cells, arguments.filter), arguments.shard)
    launcher = choose(arguments, places, grid.name)
    claimable(places)
    with exclusively(places):
        record = reconcile(places.root, grid)
    gone = [cell.name for cell in record.cells if cell.vanished]
    if gone:
        print(f"note: not in the grid any more, left alone: {', '.join(gone)}", file=sys.stderr)
    if isinstance(launcher, Local):
        refuse_what_cannot_fit(cells, places, launcher, arguments)
    if isinstance(launcher, Printer):
        return print_only(cells, places, launcher, policy)
    try:
        driver = Driver(cells, places, launcher, make_display(cells, arguments.every), policy)
        code = driver.run()
    except BrokenPipeError:
        raise  # nobody reads what this prints
    except OSError as error:
        raise StorageError(storage_reason(error, places.root)) from error
    report(cells, driver.states, as_json=arguments.json)
    return code


def claimable(places: Places) -> None:
    """Makes the root, or says in one line why cells cannot live there.

    Raises:
      ConfigError: a file is in the way, or the directory cannot be written.
    """
    root: Path = places.root
    try:
        root.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(f"--root={root}: a file is in the way; choose another root") from None
    except OSError as error:
        raise ConfigError(f"--root={root}: cannot be made ({error.strerror})") from error
    if not os.access(root, os.W_OK | os.X_OK):
        raise ConfigError(f"--root={root}: is not writable; choose another root")


def refuse_what_cannot_fit(
    cells: Sequence[Cell], places: Places, launcher: Local, arguments: Arguments
) -> None:
    """Holds what is still to be run against the memory and disk of this machine, as `plan` does.

    Raises:
      ConfigError: the first thing that does not fit.
    """
    states = read_states(places, [cell.directory for cell in cells], Claims(places))
    left = [cell for cell in cells if states[cell.directory].state in (*MISSING, FAILED)]
    if left:
        machine = machine_of(left, arguments)
        estimates = estimate(left, machine)
        problems = refusals(left, estimates, machine)
        if problems:
            raise ConfigError(problems[0])
        most = max(own.memory for own in estimates)
        if not launcher.accelerated and launcher.parallel * most > machine.memory:
            raise ConfigError(
                f"--max-parallel={launcher.parallel}: so many cells need about "
                f"{gib(launcher.parallel * most)} GiB of memory, {machine.name} has "
                f"{gib(machine.memory)}; nearest valid value {int(machine.memory // most)}"
            )


def print_only(cells: Sequence[Runnable], places: Places, printer: Printer, policy: Policy) -> int:
    """Prints how to start what is missing."""
    states = read_states(places, [cell.directory for cell in cells], Claims(places))
    wanted = {*(MISSING if policy.missing else ()), *((FAILED,) if policy.failed else ())}
    if policy.rerun:
        raise ConfigError(
            f"--rerun: --launcher={printer.name} does not move old runs aside; use local or slurm"
        )
    specs = [
        Spec(cell.name, cell.directory, tuple(cell.argv), str(places.workdir(cell.directory)))
        for cell in cells
        if states[cell.directory].state in wanted
    ]
    if not specs:
        return verdict(states.values())
    print(printer.render(specs), end="", flush=True)
    return EXIT_DONE


def report(cells: Sequence[Runnable], states: dict[str, CellState], *, as_json: bool) -> None:
    """The end of a run on stdout: what is not done and why, and how many are."""
    if as_json:
        print(json.dumps(to_json(cells, states), indent=2))
        return
    rows = [
        row(cell.name, states[cell.directory])
        for cell in cells
        if states[cell.directory].state != DONE
    ]
    if rows:
        print(table(rows))
    print(summary(list(states.values())))
