"""The report of a grid's root: seeds taken together, and cells that are not there named."""

from __future__ import annotations

import csv
import json
import math

import pytest
from run_factory import edit_json, make_run, write_json

from moejax.analysis.grids import grid_notes
from moejax.analysis.report import write_report
from moejax.analysis.runs import find_runs, load_runs
from moejax.analysis.seeds import seed_groups, seeds_rows
from moejax.analysis.view import views

TINY = {"layers": 2, "experts": 4, "steps": 20, "trace_tokens": 200}
CELLS = [
    ("top_k", 0, "moe=top_k,seed=0-0123456789"),
    ("top_p", 0, "moe=top_p,seed=0-1123456789"),
    ("top_k", 1, "moe=top_k,seed=1-2123456789"),
    ("top_p", 1, "moe=top_p,seed=1-3123456789"),
]


@pytest.fixture
def root(tmp_path):
    """top_k twice done, top_p once failed and once not begun, a cell that vanished."""
    made = tmp_path / "root"
    for (kind, seed, name), loss in zip(CELLS[:3], (2.0, 3.0, 2.5), strict=True):
        state = "failed" if kind == "top_p" else "done"
        run = make_run(made, kind, name=name, seed=seed, state=state, **TINY)
        if state == "done":
            edit_json(run / "final.json", eval={"loss": loss, "bits_per_byte": loss})
    gone = "moe=dense,seed=0-4123456789"
    make_run(made, "dense", name=gone, **TINY)
    (made / "driver" / "logs").mkdir(parents=True)
    cells = [{"directory": name, "vanished": False} for *_, name in CELLS]
    cells.append({"directory": gone, "vanished": True})
    write_json(made / "grid.json", {"format_version": 1, "grid": "g", "cells": cells})
    return made


def test_a_root_stands_for_its_cells_and_tells_what_is_missing(root, tmp_path):
    write_report([root], tmp_path / "report", pictures=False)
    found = json.loads((tmp_path / "report" / "report.json").read_text())
    assert len(found["runs"]) == 4  # the driver's own directory is no run
    told = [note for note in found["notes"] if note["where"] == "grid.json"]
    notes = {(note["run"], note["severity"], note["what"]) for note in told}
    assert notes == {
        (CELLS[3][2], "excluded", "this cell has not run yet"),
        ("moe=dense,seed=0-4123456789", "warning", "the grid no longer has this cell"),
    }
    page = (tmp_path / "report" / "report.html").read_text()
    assert 'id="seeds"' in page and "this cell has not run yet" in page


def test_seeds_are_one_row_with_a_t_interval(root, tmp_path):
    write_report([root], tmp_path / "report", pictures=False)
    (best, *_) = json.loads((tmp_path / "report" / "report.json").read_text())["seeds"]
    assert best["name"] == "moe=top_k" and best["runs"] == ["moe=top_k,seed=0", "moe=top_k,seed=1"]
    # t(1) = 12.7062; sd of 2.0 and 2.5 is 0.25 * sqrt(2).
    assert best["loss"] == {
        "n": 2, "mean": 2.25, "sd": pytest.approx(0.25 * math.sqrt(2)),
        "half_width": pytest.approx(12.7062047 * 0.25),
    }  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "report" / "data" / "seeds.csv").open()))
    assert rows[0]["configuration"] == "moe=top_k" and rows[0]["seeds"] == "2"


def test_unfinished_runs_count_in_no_mean(root):
    groups = seed_groups(views(load_runs(find_runs([root]))[0]))
    names = [view.name for group in groups for view in group.runs]
    assert sorted(names) == ["moe=dense,seed=0", "moe=top_k,seed=0", "moe=top_k,seed=1"]


def test_without_several_seeds_there_is_no_such_section(tmp_path):
    make_run(tmp_path / "runs", "top_k", **TINY)
    write_report([tmp_path / "runs"], tmp_path / "report", pictures=False)
    assert 'id="seeds"' not in (tmp_path / "report" / "report.html").read_text()


@pytest.mark.parametrize(
    "names, expected",
    [
        (("top_k_seed0", "top_k_seed1"), "top_k"),
        (("a,seed=0-0123456789", "a,seed=12-9876543210"), "a"),
        (("run-s1", "run-s2"), "run"),
        (("x", "y"), "x and 1 more"),
    ],
)
def test_names_of_groups(tmp_path, names, expected):
    for seed, name in enumerate(names):
        make_run(tmp_path, "dense", name=name, seed=seed, **TINY)
    (group,) = seed_groups(views(load_runs(find_runs([tmp_path]))[0]))
    assert group.name == expected and seeds_rows([group])[1][1] == 2


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"cells": 3}', '{"cells": [3, {}, {"directory": "../../etc"}]}']
)
def test_a_hostile_record_breaks_nothing(root, content):
    (root / "grid.json").write_text(content)
    notes = grid_notes([root])
    assert all(".." not in note.run and note.severity == "warning" for note in notes)
    assert len(find_runs([root])) == 4
