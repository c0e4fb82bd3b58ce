"""Points from a CSV of anyone's runs: bounded, and every line that is left out is named."""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from moejax.analysis import text
from moejax.analysis.scaling.points import COLUMNS, Curve, Dataset, Points, make_points
from moejax.config.knobs import ConfigError, nearest

MAX_BYTES = 64 << 20
MAX_ROWS = 200_000
MAX_POINTS = 20_000
MAX_FIELDS = 1000
NAMES = ("group", "cell", "seed", "run")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_NOTHING = {"", "nan", "na", "n/a", "none", "null", "inf", "+inf", "-inf", "infinity", "-infinity"}


def parse_columns(argument: str) -> dict[str, str]:
    """`n=params,d=tokens,loss=loss` as what -> name of the CSV's column.

    Raises:
      ConfigError: not of that form, or something that is no column of points.
    """
    known = (*COLUMNS, *NAMES)
    found: dict[str, str] = {}
    for part in filter(None, argument.split(",")):
        what, equals, name = part.partition("=")
        if not equals or not name:
            raise ConfigError(
                f"--columns={text.clean(argument)}: {text.clean(part)!r} is not X=NAME"
            )
        if what not in known:
            hint = nearest(what, known) or f"; there are {', '.join(known)}"
            raise ConfigError(f"--columns: no column {text.clean(what)!r}{hint}")
        if what in found:
            raise ConfigError(f"--columns: {what} is given twice")
        found[what] = name
    return found


def read_csv(path: str | os.PathLike[str], columns: Mapping[str, str], response: str) -> Dataset:
    """Reads points, and training curves where a column `run` names them.

    Args:
      path: UTF-8, a comma between fields, a header line.
      columns: what -> the CSV's column; without any, columns with the names of `COLUMNS`.
      response: "loss" or "leverage", what a law is fitted to.

    Rows of one run are its evaluations: the one of most tokens (else FLOPs) is its point. Missing
    C is taken as 6 N D, missing D as C / (6 N), both said in the notes. Lines with an empty, zero,
    negative or not finite number are left out and listed.

    Raises:
      ConfigError: unreadable, too large, a missing column, or text where a number should be.
    """
    where = text.clean(os.fspath(path), 200)
    rows = _rows(Path(path), where)
    header = next(rows, (0, []))[1]
    place = _places(header, columns, where)
    if response not in place:
        raise ConfigError(f"{where}: no column for {response}; name it: --columns={response}=NAME")
    numbers: dict[str, list[float]] = {what: [] for what in place if what in COLUMNS}
    names: dict[str, list[str]] = {what: [] for what in place if what in NAMES}
    kept: list[int] = []
    excluded: list[tuple[str, str]] = []
    for line, row in rows:
        if not row:
            continue
        if len(row) != len(header):
            raise ConfigError(
                f"{where}: line {line} has {len(row)} fields, the header {len(header)}"
            )
        if len(kept) >= MAX_ROWS:
            raise ConfigError(f"{where}: more than {MAX_ROWS:,} rows")
        values = {
            what: _number(row[place[what]], where, line, header[place[what]]) for what in numbers
        }
        bad = [what for what, value in values.items() if not value > 0]
        if bad:
            shown = text.clean(row[place[bad[0]]], 40)
            excluded.append((f"line {line}", f"{bad[0]} is {shown!r}"))
            continue
        kept.append(line)
        for what, value in values.items():
            numbers[what].append(value)
        for what in names:
            names[what].append(text.clean(row[place[what]], 120))
    if not kept:
        raise ConfigError(f"{where}: no row with usable numbers")
    return _dataset(numbers, names, kept, excluded)


def _rows(path: Path, where: str) -> Iterator[tuple[int, list[str]]]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{where}: larger than {MAX_BYTES:,} bytes")
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for row in reader:
                if len(row) > MAX_FIELDS:
                    raise ConfigError(f"{where}: more than {MAX_FIELDS} fields in a line")
                yield reader.line_num, row
    except FileNotFoundError:
        raise ConfigError(f"{where}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: is not UTF-8 text ({error.reason})") from error
    except csv.Error as error:
        raise ConfigError(f"{where}: is not CSV ({text.clean(error, 100)})") from error


def _places(header: list[str], columns: Mapping[str, str], where: str) -> dict[str, int]:
    if not header:
        raise ConfigError(f"{where}: is empty; expected a header line")
    shown = [text.clean(name, 60) for name in header]
    if not columns:
        columns = {what: what for what in (*COLUMNS, *NAMES) if what in header}
    place: dict[str, int] = {}
    for what, name in columns.items():
        count = header.count(name)
        if not count:
            hint = nearest(text.clean(name), shown) or f"; there are {text.listing(shown)}"
            raise ConfigError(f"{where}: no column {text.clean(name)!r}{hint}")
        if count > 1:
            raise ConfigError(f"{where}: {count} columns are called {text.clean(name)!r}")
        place[what] = header.index(name)
    return place


def _number(field: str, where: str, line: int, column: str) -> float:
    value = field.strip()
    if value.lower() in _NOTHING:
        return math.nan
    if not _NUMBER.fullmatch(value) or len(value) > 60:
        what = f"{text.clean(column, 60)}={text.clean(value, 40)!r}"
        raise ConfigError(f"{where}: line {line}: {what} is not a number")
    number = float(value)
    return number if math.isfinite(number) else math.nan


def _dataset(
    numbers: dict[str, list[float]],
    names: dict[str, list[str]],
    lines: list[int],
    excluded: list[tuple[str, str]],
) -> Dataset:
    array = {what: np.array(values) for what, values in numbers.items()}
    notes = []
    c_is = "training FLOPs of the file"
    if "n" in array and "d" not in array and "c" in array:
        array["d"] = array["c"] / (6 * array["n"])
        notes.append("the file has no D: D = C / (6 N) is taken")
    elif "n" in array and "d" in array and "c" not in array:
        array["c"] = 6 * array["n"] * array["d"]
        notes.append(
            "the file has no C: C = 6 N D is taken, which leaves out embeddings and attention"
        )
        c_is = "6 N D"
    runs = names.get("run") or [f"line {line}" for line in lines]
    points = make_points(
        run=runs, group=names.get("group"), cell=names.get("cell"), seed=names.get("seed"), **array
    )
    curves: tuple[Curve, ...] = ()
    if "run" in names:
        last, curves = _curves(points)
        points = points.take(last)
    if len(points) > MAX_POINTS:
        raise ConfigError(
            f"{len(points):,} runs, more than {MAX_POINTS:,}; if rows are evaluations of runs, "
            "name the runs: --columns=run=NAME"
        )
    return Dataset(points, curves, "parameters", c_is, tuple(notes), tuple(excluded))


def _curves(points: Points) -> tuple[np.ndarray, tuple[Curve, ...]]:
    """The last row of every run, and the runs with several rows as curves."""
    rows: dict[str, list[int]] = {}
    for i, run in enumerate(points.run_I):
        rows.setdefault(run, []).append(i)
    by = points.d_I if points.has("d") else points.c_I
    if not np.isfinite(by).all():
        raise ConfigError("--columns: run= needs d= or c=, which order a run's rows")
    curves, last = [], []
    # The cell of a run is that of its last row: rows before differ in their tokens.
    for run, own in rows.items():
        ordered = np.array(own)[np.argsort(by[own], kind="stable")]
        end = int(ordered[-1])
        last.append(end)
        if len(ordered) > 1 and points.has("c") and points.has("n"):
            curve = points.take(ordered)
            curves.append(
                Curve(
                    run,
                    points.group_I[end],
                    points.cell_I[end],
                    float(points.n_I[end]),
                    curve.c_I,
                    curve.d_I if points.has("d") else curve.c_I / (6 * curve.n_I),
                    curve.loss_I,
                )
            )
    return np.array(last), tuple(curves)
