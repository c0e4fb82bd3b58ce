"""`plan`: what a grid is and needs, before anything runs. Touches no device, writes nothing."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moejax.analysis import text
from moejax.config import diff
from moejax.data.knobs import DataConfig
from moejax.grid import record
from moejax.grid.arguments import Arguments
from moejax.grid.cells import Cell, Grid
from moejax.grid.estimate import Estimate, estimate, refusals
from moejax.grid.load import load_grid
from moejax.grid.machine import Machine, named_machine, this_machine
from moejax.grid.places import Places
from moejax.grid.process import finished
from moejax.grid.selection import select
from moejax.grid.shard import shard
from moejax.grid.text_table import render
from moejax.train.errors import EXIT_USAGE


def main(arguments: Arguments) -> int:
    """Prints the plan; 2 if something cannot fit.

    Raises:
      ConfigError: what is wrong with the grid or the flags.
    """
    grid = load_grid(arguments.need_grid(), arguments.imports)
    cells = shard(select(grid.cells, arguments.filter), arguments.shard)
    machine = machine_of(cells, arguments)
    estimates = estimate(cells, machine)
    problems = refusals(cells, estimates, machine, _finished(arguments))
    if arguments.json:
        found = as_json(grid, cells, estimates, machine, problems) | _root(grid, arguments)
        print(json.dumps(found, indent=2))
    else:
        print("\n".join(_lines(grid, cells, estimates, machine, arguments.limit)))
        for name, own in _root(grid, arguments).get("root", {}).items():
            if own:
                print(f"{name:7} {text.clean(text.listing(own, 4))}")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return EXIT_USAGE if problems else 0


def machine_of(cells: Sequence[Cell], arguments: Arguments) -> Machine:
    """The machine of `--chip`, or this one as the root's finished cells know it."""
    root = Path(arguments.root).expanduser() if arguments.root else None
    if arguments.chip:
        return named_machine(arguments.chip, root)
    runs = [] if root is None else [Places(root).workdir(one) for one in _finished(arguments)]
    cache = DataConfig(cache_dir=cells[0].config["data"]["cache_dir"]).cache_path
    return this_machine(root, cache, runs)


def _root(grid: Grid, arguments: Arguments) -> dict[str, Any]:
    """Names of cells of the root that are done, and how the grid has changed since it was begun."""
    if not arguments.root or not record.exists(root := arguments.need_root()):
        return {}
    found = record.compare(root, record.load(root), grid)
    done = set(_finished(arguments))
    return {
        "root": {
            "done": [cell.name for cell in grid.cells if cell.directory in done],
            "new": [cell.name for cell in found.new],
            "vanished": [cell.name for cell in found.vanished],
            "changed": [cell.name for _, cell in found.changed],
        }
    }


def _finished(arguments: Arguments) -> list[str]:
    """Directories of the cells that the root has finished."""
    if not arguments.root or not record.exists(root := arguments.need_root()):
        return []
    cells = record.load(root).cells
    return [one.directory for one in cells if finished(Places(root).workdir(one.directory))]


def as_json(
    grid: Grid,
    cells: Sequence[Cell],
    estimates: Sequence[Estimate],
    machine: Machine,
    problems: Sequence[str],
) -> dict[str, Any]:
    """The plan for programs: SI units, seconds, bytes; null where a time is unknown."""
    return {
        "format_version": 1,
        "grid": grid.name,
        "source": grid.source,
        "machine": {
            "name": machine.name,
            "memory_bytes": machine.memory,
            "disk_free_bytes": machine.disk,
            "time": machine.origin,
        },
        "problems": list(problems),
        "cells": [
            {
                "name": cell.name,
                "directory": cell.directory,
                "axes": cell.axes,
                "seed": cell.seed,
                "argv": list(cell.argv),
                "diff": {
                    key: [_plain(old), _plain(new)]
                    for key, old, new in diff(grid.bases[_flag(cell)], cell.config)
                },
                "total_parameters": own.total_parameters,
                "active_parameters": own.active_parameters,
                "active_non_embedding_parameters": own.active_non_embedding,
                "flops_per_token": own.flops_per_token,
                "steps": own.steps,
                "tokens": own.tokens,
                "flops": own.flops,
                "seconds": own.seconds if math.isfinite(own.seconds) else None,
                "memory_bytes": own.memory,
                "disk_bytes": own.disk,
            }
            for cell, own in zip(cells, estimates, strict=True)
        ],
    }


def _plain(value: object) -> object:
    known = isinstance(value, None | bool | int | float | str | list | dict)
    return value if known else str(value)


def _flag(cell: Cell) -> str:
    """The `--config` that a cell starts from."""
    start = "--config="
    return next(word[len(start) :] for word in cell.argv if word.startswith(start))


def _lines(
    grid: Grid,
    cells: Sequence[Cell],
    estimates: Sequence[Estimate],
    machine: Machine,
    limit: int,
) -> list[str]:
    shown = len(cells) if limit == 0 else min(limit, len(cells))
    head = (
        "cell", "config", "total", "active", "FLOP/token", "tokens", "FLOP", "time", "memory",
        "disk",
    )  # fmt: skip
    rows = [
        (
            cell.name,
            _changes(cell),
            text.short(own.total_parameters),
            text.short(own.active_non_embedding),
            text.short(own.flops_per_token),
            text.short(own.tokens),
            text.short(own.flops),
            text.duration(own.seconds),
            f"{text.short(own.memory, 2)}B",
            f"{text.short(own.disk, 2)}B",
        )
        for cell, own in zip(cells[:shown], estimates, strict=False)
    ]
    seeds = len({cell.seed for cell in cells})
    seconds = math.fsum(own.seconds for own in estimates)
    lines = [
        f"{grid.name}: {text.count(len(cells), 'cell')} ({text.count(seeds, 'seed')})",
        "",
        *render(head, rows, left=2),
    ]
    if shown < len(cells):
        lines.append(f"... and {len(cells) - shown} more (--limit=0 prints all)")
    tokens = sum(own.tokens for own in estimates)
    flops = math.fsum(own.flops for own in estimates)
    lines += [
        "",
        f"all     {text.short(tokens)} tokens, {text.short(flops)} training FLOPs, "
        f"{text.short(math.fsum(own.disk for own in estimates))}B of disk "
        f"({text.short(machine.disk)}B free)",
        f"time    {text.duration(seconds)} on {machine.name}, one cell after the other",
        f"        from {machine.origin}",
        f"memory  {text.short(max(own.memory for own in estimates))}B for the largest cell, of "
        f"{text.short(machine.memory)}B",
        "active  parameters that a token uses, without embedding and head",
    ]
    return lines


def _changes(cell: Cell) -> str:
    """What the cell sets, as on its command line, the longest values cut."""
    start = ("--config=", "--config.")
    words = [word for word in cell.argv if word.startswith(start)]
    first = words[0].removeprefix("--config=").partition(":")[2]
    rest = [text.shorten(word.removeprefix("--config."), 60) for word in words[1:]]
    return text.clean(" ".join([first, *rest]).strip(), 160)
