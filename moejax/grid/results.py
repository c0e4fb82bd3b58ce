"""Results: the metrics of a root's finished cells, and what had to be left out, with the reason."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moejax.analysis import text
from moejax.analysis.series import Metrics, read_metrics
from moejax.config import ConfigError, nearest, read_json
from moejax.grid.places import Places
from moejax.grid.record import RecordedCell
from moejax.grid.status import DONE, read_states


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished cell: `values` of the metrics asked for (of all but the first perhaps NaN: a dense
    model has no experts), tokens seen, and which text it read."""

    cell: RecordedCell
    values: dict[str, float]
    tokens: float
    text_id: str


@dataclasses.dataclass(frozen=True)
class Results:
    """What is there: results in the order of the cells, and (cell, reason) of what is not."""

    done: tuple[Result, ...]
    missing: tuple[tuple[RecordedCell, str], ...]


def read_results(root: Path, cells: Sequence[RecordedCell], metrics: Sequence[str]) -> Results:
    """Reads metrics of cells from their run directories.

    Args:
      metrics: names as in metrics.jsonl (`eval/loss`: its value at the end), or of final.json
        (`measured/flops_per_token`).

    Raises:
      ConfigError: cells are done, but none has a metric of that name.
    """
    places = Places(root)
    states = read_states(places, [cell.directory for cell in cells])
    done: list[Result] = []
    missing: list[tuple[RecordedCell, str]] = []
    seen: dict[str, None] = {}
    for cell in cells:
        state, run = states[cell.directory], places.workdir(cell.directory)
        if cell.vanished:
            missing.append((cell, "not in the grid any more"))
        elif state.state != DONE:
            missing.append((cell, f"{state.state}{': ' if state.reason else ''}{state.reason}"))
        else:
            found, problem = _result(cell, run, metrics, seen)
            if found is None:
                missing.append((cell, problem))
            else:
                done.append(found)
    for name in metrics:
        if seen and not any(math.isfinite(one.values.get(name, math.nan)) for one in done):
            if name in seen:
                continue  # there, but not finite: the reasons say so
            hint = nearest(name, seen) or f"; known: {text.listing(sorted(seen), 12)}"
            raise ConfigError(f"--by={name}: no finished cell has this metric{hint}")
    return Results(tuple(done), tuple(missing))


def _result(
    cell: RecordedCell, run: Path, names: Sequence[str], seen: dict[str, None]
) -> tuple[Result | None, str]:
    """The result of a finished run, or the reason why there is none."""
    try:
        final = read_json(run / "final.json")
        data = read_json(run / "data.json") if (run / "data.json").is_file() else {}
    except ConfigError as error:
        return None, str(error)
    flat = _flat(final)
    seen.update(dict.fromkeys(flat))
    history: Metrics | None = None
    values = {}
    for name in names:
        if name not in flat:
            history = history or read_metrics(run / "metrics.jsonl")
            for columns in (history.train, history.eval):
                seen.update(dict.fromkeys(columns.data))
                value = columns.last(name)
                if math.isfinite(value):
                    flat[name] = value
        values[name] = flat.get(name, math.nan)
    if not math.isfinite(values[names[0]]):
        return None, f"{names[0]} is {'not finite' if names[0] in seen else 'not there'}"
    if not isinstance(data, dict):
        data = {}
    who = f"{data.get('manifest_hash', '')} {data.get('tokenizer_hash', '')}".strip()
    return Result(cell, values, flat.get("tokens", math.nan), who), ""


def _flat(final: Any, prefix: str = "") -> dict[str, float]:
    """`{"eval": {"loss": 3}}` as `{"eval/loss": 3}`."""
    found: dict[str, float] = {}
    for key, value in final.items() if isinstance(final, Mapping) else ():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{prefix}{key}"] = float(value)
    return found


def caveats(results: Sequence[Result]) -> list[str]:
    """What makes the results hard to compare, a sentence each."""
    found = []
    tokens = [one.tokens for one in results if math.isfinite(one.tokens)]
    # Far below a percent it is short windows, which come earlier or later with the seed.
    if tokens and max(tokens) > 1.01 * min(tokens):
        low, high = text.short(min(tokens)), text.short(max(tokens))
        found.append(f"cells saw different numbers of tokens, {low} to {high}")
    if len({one.text_id for one in results}) > 1:
        found.append(
            "cells read different text or tokens: losses per token do not compare (bits per byte "
            "of the same text do)"
        )
    return found
