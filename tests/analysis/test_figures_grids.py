"""Cells of grids in the report: their names, and parallel coordinates of their settings."""

from __future__ import annotations

import csv
import itertools

import pytest
from run_factory import edit_json, make_curve, make_run, write_json

from moejax.analysis.compare.treatments import common_name
from moejax.analysis.evidence import Evidence
from moejax.analysis.figures import parallel
from moejax.analysis.report import write_report
from moejax.analysis.runs import find_runs, load_runs
from moejax.analysis.view import views

HASH = "92d73fe68b"


def names(*paths):
    return [run.name for run in load_runs([str(path) for path in paths])[0]]


def grid(root, cells):
    """A root whose `cells` are (directory, {axis: label})."""
    root.mkdir(parents=True, exist_ok=True)
    found = [{"directory": d, "axes": [list(pair) for pair in a.items()]} for d, a in cells]
    write_json(root / "grid.json", {"format_version": 1, "cells": found})
    return root


def cell(root, name, loss, axes_hash=HASH, **options):
    run = make_curve(root, f"{name}-{axes_hash}", [5.0, loss], **options)
    write_json(run / "final.json", {"format_version": 1, "eval": {"loss": loss}})
    return run


def test_cells_go_without_their_hash_where_that_is_clear(tmp_path):
    root = grid(tmp_path / "g", [])
    one, two = cell(root, "p=1,seed=0", 3.0), cell(root, "p=2,seed=0", 3.0)
    assert names(one, two) == ["p=1,seed=0", "p=2,seed=0"]
    # The same cell of an earlier config beside it: both keep what tells them apart.
    twin = cell(root, "p=1,seed=0", 3.0, "0123456789")
    assert names(one, two, twin) == [one.name, "p=2,seed=0", twin.name]
    plain = make_curve(root, "p=2,seed=0", [3.0])
    assert names(two, plain) == [two.name, "p=2,seed=0"]
    # Equal cells of two grids are told apart by their roots, as other runs are.
    other = cell(grid(tmp_path / "h", []), "p=1,seed=0", 3.0, "abcdefabcd")
    assert names(one, other) == ["g/p=1,seed=0", "h/p=1,seed=0"]


def test_other_directories_keep_their_names(tmp_path):
    run = make_curve(tmp_path, f"run-{HASH}", [3.0])
    assert names(run) == [run.name]  # no grid here
    root = grid(tmp_path / "g", [])
    short = make_curve(root, "run-92d73fe68", [3.0])
    assert names(short) == ["run-92d73fe68"]


@pytest.mark.parametrize("tail", ["", f"-{HASH}"])
def test_seeds_of_a_cell_are_named_by_its_axes(tail):
    assert common_name([f"p=0.4,size=2,seed={s}{tail}" for s in (0, 10)]) == "p=0.4,size=2"


def test_the_hash_stays_in_csv_and_json(tmp_path):
    root = grid(tmp_path / "g", [])
    run = make_run(root, "dense", name=f"p=1,seed=0-{HASH}", layers=1, experts=2, steps=10)
    write_report([root], tmp_path / "report", pictures=False)
    with (tmp_path / "report/data/runs.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["run"], row["directory"]) == ("p=1,seed=0", run.name)
    assert run.name in (tmp_path / "report/report.json").read_text()


SIZES, KINDS = ("110k", "50k", "1M"), ("dense", "top_k")
ORDERED = ("50k", "110k", "1M")


@pytest.fixture
def cells(tmp_path):
    """3 sizes by 2 kinds; the loss grows with the place in the product."""
    found = [
        (f"size={size},moe={kind}-{i:010x}", {"size": size, "moe": kind, "same": "1"}, 3 + 0.1 * i)
        for i, (size, kind) in enumerate(itertools.product(SIZES, KINDS))
    ]
    root = grid(tmp_path / "ladder", [(name, axes) for name, axes, _ in found])
    for name, _, loss in found:
        cell(root, name[:-11], loss, name[-10:], seed=0)
    return root


def built(root):
    return parallel.build(Evidence(views(load_runs(find_runs([root]))[0]), [root]))


def test_each_run_is_a_line_through_its_settings(cells):
    figure = built(cells)
    ((_, chart),) = figure.charts
    assert [label for _, label in chart.x.ticks] == ["size", "moe", "final loss"]  # not `same`
    lines = {s.notes[0].partition(":")[0]: s for s in chart.series if s.kind == "line"}
    for i, (size, kind) in enumerate(itertools.product(SIZES, KINDS)):
        line = lines[f"size={size},moe={kind}"]
        want = [ORDERED.index(size) / 2, KINDS.index(kind), i / 5]
        assert line.y_N[:2].tolist() == pytest.approx(want[:2], abs=parallel.SPREAD / 2 + 1e-9)
        assert line.y_N[2] == pytest.approx(want[2])
        assert line.notes[2].endswith(f"loss {3 + 0.1 * i:.4f}")
        assert line.name == parallel.QUARTERS[4 * i // 6]
    at_50k = [line.y_N[0] for name, line in lines.items() if "=50k," in name]
    assert len(set(at_50k)) == 2  # beside each other
    shown = [s.name for s in chart.series if not s.hidden]
    assert sorted(shown) == sorted(parallel.QUARTERS)
    (values,) = (s for s in chart.series if s.written)
    assert set(values.notes) == {*SIZES, *KINDS, "3.0000", "3.5000"}
    rows = [dict(zip(figure.rows[0], row, strict=True)) for row in figure.rows[1:]]
    assert len(rows) == 6 * 3 and rows[0]["grid"] == "ladder"
    assert {r["value"] for r in rows if r["axis"] == "size"} == set(SIZES)


def test_unfinished_runs_and_single_axes_are_not_drawn(cells):
    for run in cells.iterdir():
        if "size=50k" in run.name:
            edit_json(run / "status.json", state="running")
    figure = built(cells)
    assert len(figure.rows) == 1 + 4 * 3
    for run in cells.iterdir():
        if "moe=dense" in run.name:
            edit_json(run / "status.json", state="failed")
    assert "two finished, comparable runs" in built(cells).empty


def test_a_grid_file_that_cannot_be_read_is_no_grid(cells):
    (cells / "grid.json").write_text("[1, {")
    assert built(cells).empty


def test_values_are_ordered_by_number_where_they_are_numbers():
    assert parallel.ordered(["1e-3", "0.5", "-2", "10"]) == ["-2", "1e-3", "0.5", "10"]
    assert parallel.ordered(["2", "10", "x"]) == ["10", "2", "x"]
