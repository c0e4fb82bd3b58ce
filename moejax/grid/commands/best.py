"""`best`: groups of cells by a metric, the best first, with intervals over seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from moejax.analysis import text
from moejax.analysis.intervals import Mean
from moejax.config import ConfigError
from moejax.grid import record
from moejax.grid.arguments import Arguments
from moejax.grid.groups import Group, Metric, group, parse_axes, parse_metrics
from moejax.grid.results import Results, caveats, read_results
from moejax.grid.selection import select
from moejax.grid.text_table import render


def main(arguments: Arguments) -> int:
    """Prints the ranking; 0 also where cells are missing, which it says.

    Raises:
      ConfigError: no grid there, an unknown metric, axis or aggregate.
    """
    groups, results, metrics = compare(arguments)
    if arguments.json:
        print(json.dumps(as_json(groups, results, metrics, arguments.agg), indent=2))
    else:
        print("\n".join(_lines(groups, results, metrics, arguments.agg)))
    return 0


def compare(arguments: Arguments) -> tuple[list[Group], Results, tuple[Metric, ...]]:
    """Groups, results and metrics that the flags ask for: of `best` and of `table`."""
    root = arguments.need_root()
    cells = select(record.load(root).cells, arguments.filter)
    metrics = parse_metrics(arguments.by)
    axes = parse_axes(arguments.group, cells)
    results = read_results(root, cells, [metric.name for metric in metrics])
    groups = group(cells, results, axes, metrics, arguments.agg)
    if not groups:
        raise ConfigError(f"--root={root}: the grid has none of these cells any more")
    return groups, results, metrics


def as_json(
    groups: Sequence[Group], results: Results, metrics: Sequence[Metric], aggregate: str
) -> dict[str, Any]:
    """The ranking for programs; null where a number does not exist."""
    return {
        "format_version": 1,
        "by": [{"metric": one.name, "better": "higher" if one.up else "lower"} for one in metrics],
        "aggregate": aggregate,
        "groups": [
            {
                "labels": one.labels,
                "cells": one.cells,
                "done": len(one.results),
                "also_over": list(one.over),
                "values": {name: _number(value) for name, value in one.values.items()},
                "means": {name: _mean(mean) for name, mean in one.means.items()},
                "difference_from_best": None if one.difference is None else _mean(one.difference),
                "verdict": one.verdict,
                "runs": {
                    result.cell.directory: {k: _number(v) for k, v in result.values.items()}
                    for result in one.results
                },
            }
            for one in groups
        ],
        "missing": [{"cell": cell.name, "reason": why} for cell, why in results.missing],
        "caveats": caveats(results.done),
    }


def _mean(mean: Mean) -> dict[str, Any]:
    return {
        "n": mean.n,
        "mean": _number(mean.mean),
        "sd": _number(mean.sd),
        "half_width_95": _number(mean.half_width),
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def shown(value: float) -> str:
    """A number with four digits behind the point, or with a prefix where it is large."""
    return text.fixed(value, 4) if abs(value) < 1000 else text.short(value, 4)


def spread(mean: Mean, aggregate: str) -> float:
    """What stands behind the ±; NaN for aggregates that have none."""
    return {"mean±ci": mean.half_width, "mean±sd": mean.sd}.get(aggregate, math.nan)


def notes(groups: Sequence[Group], results: Results, aggregate: str) -> list[str]:
    """What a reader must know beside the numbers, a line each."""
    found = [f"{cell.name}: left out, {why}" for cell, why in results.missing]
    found += caveats(results.done)
    over = dict.fromkeys(axis for one in groups for axis in one.over)
    if over:
        found.append(f"each group is also over {', '.join(over)}, not over seeds alone")
    if aggregate == "mean±ci" and any(len(one.results) == 1 for one in groups):
        found.append("one value has no interval; more seeds give one")
    return [text.clean(note) for note in found]


def _lines(
    groups: Sequence[Group], results: Results, metrics: Sequence[Metric], aggregate: str
) -> list[str]:
    axes = list(groups[0].labels)
    head = [*axes, "done", *(one.name for one in metrics)]
    head += [f"{metrics[0].name} - best", "verdict"]
    rows = []
    for one in groups:
        row = [*one.labels.values(), f"{len(one.results)}/{one.cells}"]
        row += [
            plus_minus(one.values[m.name], spread(one.means[m.name], aggregate)) for m in metrics
        ]
        if one.difference is None:
            row += ["", "best" if one.results else ""]
        else:
            row += [
                plus_minus(one.difference.mean, one.difference.half_width, "+"),
                one.verdict,
            ]
        rows.append(row)
    lines = render(head, rows, left=len(axes))
    ends = {
        "mean±ci": "±: half of the 95 % t interval over seeds",
        "mean±sd": "±: standard deviation over seeds",
    }
    foot = [ends[aggregate]] if aggregate in ends else []
    foot.append("differences are paired by seed; within noise: their 95 % t interval holds 0")
    return [*lines, "", *foot, *notes(groups, results, aggregate)]


def plus_minus(value: float, half: float, sign: str = "") -> str:
    """`3.1412 ± 0.0123`; without the second part where there is none."""
    number = shown(value)
    if sign and math.isfinite(value) and value >= 0:
        number = sign + number
    return f"{number} ± {shown(half)}" if math.isfinite(half) else number
