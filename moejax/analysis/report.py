"""Run directories in; page, JSON, CSVs, tables and pictures out. Same input, same bytes."""

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

from moejax.analysis import caveats, exports, findings, text
from moejax.analysis.charts import static
from moejax.analysis.charts.spec import Drawable, Maps
from moejax.analysis.charts.svg import Drawing
from moejax.analysis.evidence import Evidence
from moejax.analysis.figures import FIGURES
from moejax.analysis.figures.base import Figure
from moejax.analysis.figures.loss import baselines
from moejax.analysis.finetuning import claims as finetuned
from moejax.analysis.grids import grid_notes
from moejax.analysis.page import assets, document, tables
from moejax.analysis.paper_tables import paper_tables
from moejax.analysis.provenance import differences, origin
from moejax.analysis.runs import Note, find_runs, load_runs
from moejax.analysis.seeds import SeedGroup, seed_groups, seeds_rows
from moejax.analysis.verdicts import claims
from moejax.analysis.view import View, views
from moejax.config.files import read_json, write_bytes_atomic, write_json
from moejax.config.knobs import ConfigError

FORMAT_VERSION = 2
_OURS = re.compile(
    r"(data/[a-z0-9-]+\.csv|figures/[a-z0-9-]+\.(png|pdf)|tables/[a-z0-9-]+\.(md|tex))"
)
MAPS_DRAWN = 24  # heat maps of one figure that become files


def write_report(
    paths: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    progress: Callable[[str], None] = lambda _: None,
    *,
    pictures: bool = True,
) -> Path:
    """Compares run directories and writes the report; returns the path of `report.html`.

    Args:
      paths: run directories, or directories that hold some.
      out: where report.html, report.json, data/, tables/ and figures/ go; made if absent.
      progress: told in one line what is being done.
      pictures: also draw every chart as SVG (for the page without scripts), PNG and PDF, which is
        most of the time.

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
    assets.library()  # before the work, not after it
    evidence = Evidence(seen, paths)
    figures, drawings = [], {}
    for build in FIGURES:
        figure = build(evidence)
        figures.append(figure)
        for _, chart in figure.charts:
            drawings[chart.key] = _draw(chart, figure.title) if pictures else []
        progress(
            f"drew {figure.title.lower()}" if not figure.empty else f"no {figure.title.lower()}"
        )
    notes = [
        *excluded,
        *grid_notes(paths),
        *(note for run in runs for note in run.notes),
        *evidence.finetuning.notes,
        *caveats.comparison_notes(seen),
    ]
    notes.sort(key=lambda n: {"excluded": 0, "warning": 1}.get(n.severity, 2))
    seeds = seed_groups(seen)
    judged = [*claims(evidence), *finetuned.claims(evidence.finetuning)]
    data = _data(seen, seeds, figures, notes)
    data["findings"] += finetuned.findings(evidence.finetuning)
    data["caveats"] += finetuned.caveats(evidence.finetuning)
    data["claims"] = [dataclasses.asdict(claim) for claim in judged]
    content = document.Content(
        runs=seen,
        compared=findings.compared(seen),
        findings=data["findings"],
        claims=judged,
        caveats=data["caveats"],
        seeds=seeds,
        finetuning=evidence.finetuning,
        figures=figures,
        drawings={
            key: [(name, title, one.svg) for name, title, one in found]
            for key, found in drawings.items()
        },
        notes=notes,
        command=_command(paths, out),
        versions=", ".join(
            [
                f"matplotlib {matplotlib.__version__}",
                f"numpy {np.__version__}",
                f"plotly {assets.library_version()}",
            ]
        ),
        data=data,
    )
    files = _files(content, evidence)
    for pictured in drawings.values():
        for name, _, one in pictured:
            files |= {f"figures/{name}.png": one.png, f"figures/{name}.pdf": one.pdf}
    try:
        return _write(Path(out), content, data, files)
    except OSError as error:
        raise _unwritable(out, error) from error


def _draw(chart: Drawable, heading: str) -> list[tuple[str, str, Drawing]]:
    if isinstance(chart, Maps) and len(chart.grids) > MAPS_DRAWN:
        chart = dataclasses.replace(chart, grids=chart.grids[:MAPS_DRAWN])
    return static.draw(chart, heading)


def _make(out: Path) -> None:
    """Before the work, not after it: a report that cannot be written is a wrong argument."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(out, error) from error


def _unwritable(out: str | os.PathLike[str], error: OSError) -> ConfigError:
    return ConfigError(f"--out={os.fspath(out)}: cannot be written ({error.strerror})")


def _files(content: document.Content, evidence: Evidence) -> dict[str, bytes]:
    """Every CSV and every table for papers, by its path."""
    notes = [(n.severity, n.run, n.where, n.what) for n in content.notes]
    rows: dict[str, Sequence[Sequence[object]]] = {
        "runs": tables.summary_rows(content.runs),
        "seeds": seeds_rows(content.seeds),
        "config-diff": _diff_rows(content.runs),
        "notes": [("severity", "run", "file", "what"), *notes],
    }
    rows |= {figure.key: figure.rows for figure in content.figures if not figure.empty}
    files = {f"data/{key}.csv": text.csv_text(found).encode() for key, found in rows.items()}
    for key, (caption, found) in paper_tables(evidence, content.seeds).items():
        files[f"tables/{key}.md"] = exports.markdown(found).encode()
        files[f"tables/{key}.tex"] = exports.latex(found, caption, key).encode()
    return files


def _write(out: Path, content: document.Content, data: dict, files: dict[str, bytes]) -> Path:
    _remove_stale(out, files)
    for name, body in files.items():
        write_bytes_atomic(out / name, body, durable=False)
    write_json(out / "report.json", data | {"files": sorted(files)})
    write_bytes_atomic(out / "report.html", document.render(content).encode())
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
                "csv": "" if figure.empty else f"data/{figure.key}.csv",
                "charts": [chart.key for _, chart in figure.charts],
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
