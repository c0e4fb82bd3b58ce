"""Run directories in, `report.html` + `report.json` + CSVs + PNGs out. Same input, same bytes."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np

from moejax.analysis import caveats, findings, page, tables, text, theme
from moejax.analysis.figures import FIGURES
from moejax.analysis.figures.base import Figure
from moejax.analysis.figures.loss import baselines
from moejax.analysis.grids import grid_notes
from moejax.analysis.provenance import differences, origin
from moejax.analysis.runs import Note, find_runs, load_runs
from moejax.analysis.seeds import SeedGroup, seed_groups, seeds_rows
from moejax.analysis.view import View, views
from moejax.config.files import read_json, write_bytes_atomic, write_json
from moejax.config.knobs import ConfigError

FORMAT_VERSION = 1
_OURS = re.compile(r"(data/[a-z0-9-]+\.csv|figures/[a-z0-9-]+\.png)")


def write_report(
    paths: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    progress: Callable[[str], None] = lambda _: None,
) -> Path:
    """Compares run directories and writes the report; returns the path of `report.html`.

    Args:
      paths: run directories, or directories that hold some.
      out: where report.html, report.json, data/*.csv and figures/*.png go; made if absent.
      progress: told in one line what is being done.

    Raises:
      ConfigError: no such directory, nothing that is a run, or `out` cannot be written.
    """
    found = find_runs(paths)
    progress(f"reading {text.count(len(found), 'run')}")
    runs, excluded = load_runs(found)
    if not runs:
        raise ConfigError(f"{excluded[0].where}: {excluded[0].what}")
    seen = views(runs)
    _make(Path(out))
    figures = []
    with theme.drawing():
        for build in FIGURES:
            figures.append(build(seen))
            progress(f"drew {figures[-1].title.lower()}")
    notes = [
        *excluded,
        *grid_notes(paths),
        *(note for run in runs for note in run.notes),
        *caveats.comparison_notes(seen),
    ]
    notes.sort(key=lambda n: {"excluded": 0, "warning": 1}.get(n.severity, 2))
    seeds = seed_groups(seen)
    data = _data(seen, seeds, figures, notes)
    content = page.Content(
        runs=seen,
        compared=findings.compared(seen),
        findings=data["findings"],
        caveats=data["caveats"],
        seeds=seeds,
        figures=figures,
        notes=notes,
        command=_command(paths, out),
        versions=f"matplotlib {matplotlib.__version__}, numpy {np.__version__}",
        data=data,
    )
    try:
        return _write(Path(out), content, data)
    except OSError as error:
        raise _unwritable(out, error) from error


def _make(out: Path) -> None:
    """Before the work, not after it: a report that cannot be written is a wrong argument."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(out, error) from error


def _unwritable(out: str | os.PathLike[str], error: OSError) -> ConfigError:
    return ConfigError(f"--out={os.fspath(out)}: cannot be written ({error.strerror})")


def _write(out: Path, content: page.Content, data: dict) -> Path:
    files: dict[str, bytes] = {
        "data/runs.csv": text.csv_text(tables.summary_rows(content.runs)).encode(),
        "data/seeds.csv": text.csv_text(seeds_rows(content.seeds)).encode(),
        "data/config-diff.csv": text.csv_text(_diff_rows(content.runs)).encode(),
        "data/notes.csv": text.csv_text(
            [
                ("severity", "run", "file", "what"),
                *((n.severity, n.run, n.where, n.what) for n in content.notes),
            ]
        ).encode(),
    }
    for figure in content.figures:
        files[f"data/{figure.key}.csv"] = text.csv_text(figure.rows).encode()
        for _, panels in figure.tabs:
            files.update((f"figures/{panel.key}.png", panel.png) for panel in panels)
    _remove_stale(out, files)
    for name, body in files.items():
        write_bytes_atomic(out / name, body, durable=False)
    write_json(out / "report.json", data | {"files": sorted(files)})
    write_bytes_atomic(out / "report.html", page.render(content).encode())
    return out / "report.html"


def _remove_stale(out: Path, files: dict[str, bytes]) -> None:
    """Deletes what an earlier report in the same place wrote and this one does not."""
    if not (out / "report.json").is_file():
        return
    try:
        earlier = read_json(out / "report.json")
    except ConfigError:
        return  # not a report of ours, so nothing of ours to delete
    names = earlier.get("files") if isinstance(earlier, dict) else None
    for name in names if isinstance(names, list) else []:
        if isinstance(name, str) and _OURS.fullmatch(name) and name not in files:
            (out / name).unlink(missing_ok=True)


def _data(
    runs: Sequence[View],
    seeds: Sequence[SeedGroup],
    figures: Sequence[Figure],
    notes: Sequence[Note],
) -> dict:
    """report.json: the page's statements and the table of runs, NaN as null."""
    return {
        "format_version": FORMAT_VERSION,
        "findings": findings.findings(runs),
        "caveats": caveats.caveats(runs),
        "baselines": dict(baselines(runs)),
        "notes": [dataclasses.asdict(note) for note in notes],
        "runs": [
            {
                "name": view.name,
                "comparable": view.comparable,
                "provenance": origin(view.run),
                "summary": {k: _plain(v) for k, v in dataclasses.asdict(view.summary).items()},
            }
            for view in runs
        ],
        "seeds": [
            {
                "name": group.name,
                "runs": [view.name for view in group.runs],
                "loss": {k: _plain(v) for k, v in dataclasses.asdict(group.loss).items()},
                "bits_per_byte": {k: _plain(v) for k, v in dataclasses.asdict(group.bits).items()},
            }
            for group in seeds
        ],
        "figures": [
            {
                "key": figure.key,
                "title": figure.title,
                "caption": figure.caption,
                "empty": figure.empty,
                "csv": f"data/{figure.key}.csv",
                "png": [f"figures/{p.key}.png" for _, panels in figure.tabs for p in panels],
            }
            for figure in figures
        ],
    }


def _diff_rows(runs: Sequence[View]) -> list[Sequence[object]]:
    rows = [[key, *values] for key, values in differences([v.run for v in runs])]
    return [["key", *(v.name for v in runs)], *rows]


def _plain(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _command(paths: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> str:
    words = [os.fspath(path) for path in paths]
    shown = words if len(words) <= 8 else [*words[:8], "..."]
    return shlex.join(["python", "-m", "tools.evaluate", *shown, f"--out={os.fspath(out)}"])
