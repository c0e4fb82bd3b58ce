"""Tables for papers: the same numbers in three formats, and text that breaks none of them."""

from __future__ import annotations

import csv
import io
import json

import pytest
from grid_files import finish, sample_grid

from moejax.config import ConfigError
from moejax.grid.arguments import Arguments
from moejax.grid.commands import table
from moejax.grid.record import reconcile

SWEEP = "base=LM + ':quick,moe={moe}', treatments=axis('{moe}', ['top_k', 'top_p']), seeds=(0, 1)"
HOSTILE = ["=cmd|x", "a_b & c%", "<b>x</b>", "\x1b[31mred", "\\end{tabular}", "`**`", "x | y"]


def printed(root, capsys, **flags):
    assert table.main(Arguments(root=str(root), **flags)) == 0
    return capsys.readouterr()


@pytest.fixture
def root(tmp_path):
    losses = iter((2.0, 3.0, 2.2, 3.4))
    for cell in reconcile(tmp_path / "root", sample_grid(tmp_path, SWEEP)).cells:
        finish(tmp_path / "root", cell, next(losses))
    return tmp_path / "root"


def test_markdown(root, capsys):
    lines = printed(root, capsys).out.splitlines()
    # t(1) = 12.706: half of the interval is 12.706 * sd / sqrt(2), sd = 0.2 / sqrt(2).
    assert lines[:4] == [
        "| moe | eval/loss | Δ eval/loss | n |",
        "|---|---:|---:|---:|",
        "| top\\_k | **2.1000 ± 1.2706** |  | 2 |",
        "| top\\_p | 3.2000 ± 2.5412 | +1.1000 ± 1.2706 | 2 |".replace(
            "3.2000 ± 2.5412", "**3.2000 ± 2.5412**"  # within noise of the best
        ),
    ]  # fmt: skip
    assert lines[-1].startswith("- Mean over n cells. ±: half of the 95 % t interval.")


def test_latex(root, capsys):
    out = printed(root, capsys, format="latex", by="eval/loss,eval/bits_per_byte").out
    assert "\\begin{tabular}{lrrrr}" in out and out.count("\\\\\n") == 3
    assert "moe & eval/loss & eval/bits\\_per\\_byte & $\\Delta$ eval/loss & n \\\\" in out
    assert "top\\_k & \\textbf{2.1000 $\\pm$ 1.2706} & 1.0500 $\\pm$ 0.6353 &  & 2 \\\\" in out


def test_csv_has_full_precision_and_its_notes_elsewhere(root, capsys):
    said = printed(root, capsys, format="csv")
    rows = list(csv.DictReader(io.StringIO(said.out)))
    assert [row["moe"] for row in rows] == ["top_k", "top_p"]
    assert float(rows[0]["eval/loss half width 95%"]) == pytest.approx(1.27062047364, rel=1e-9)
    assert rows[1]["verdict"] == "within noise" and rows[0]["difference from best"] == ""


def test_json_is_that_of_best(root, capsys):
    found = json.loads(printed(root, capsys, json=True).out)
    assert found["groups"][0]["labels"] == {"moe": "top_k"}


def test_failed_cells_are_told_below_the_table(root, tmp_path, capsys):
    cell = sample_grid(tmp_path, SWEEP).cells[3]
    (root / cell.directory / "final.json").unlink()
    (root / cell.directory / "status.json").write_text(
        json.dumps({"format_version": 1, "state": "failed", "reason": "disk full", "step": 1})
    )
    said = printed(root, capsys).out
    assert "| 1/2 |" in said and "moe=top\\_p,seed=1: left out, failed: disk full" in said
    assert "disk full" in printed(root, capsys, format="latex").out
    assert "disk full" in printed(root, capsys, format="csv").err


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_hostile_labels_break_no_format(tmp_path, capsys, text):
    choices = {text: "x", "tame": "y"}
    root = tmp_path / "root"
    sweep = f"base=LM + ':quick', treatments=axis('data.separator', {choices!r}, name={text!r})"
    for cell in reconcile(root, sample_grid(tmp_path, sweep)).cells:
        finish(root, cell, 2.0)
    rows = printed(root, capsys).out.split("\n\n")[0].splitlines()
    bars = [row.replace("\\\\", "").replace("\\|", "").count("|") for row in rows]
    assert set(bars) == {5}
    latex = printed(root, capsys, format="latex").out
    assert latex.count("\\end{tabular}") == 1 and "\x1b" not in latex
    body = [line for line in latex.splitlines() if line.endswith("\\\\")]
    assert {line.replace("\\&", "").count("&") for line in body} == {3}
    cells = list(csv.reader(io.StringIO(printed(root, capsys, format="csv").out)))
    assert len({len(row) for row in cells}) == 1
    assert not any(cell.startswith(("=", "@", "|")) for row in cells for cell in row)


def test_a_row_that_begins_with_a_bracket_is_no_option_of_the_row_above(tmp_path, capsys):
    root = tmp_path / "root"
    sweep = "base=LM + ':quick', treatments=axis('optimizer.lr', {'a': 1, '[2em]': 2, '*': 3})"
    for cell in reconcile(root, sample_grid(tmp_path, sweep)).cells:
        finish(root, cell, 2.0)
    latex = printed(root, capsys, format="latex").out
    assert "\n{[}2em] & " in latex and "\n{*} & " in latex


def test_an_unknown_format_is_one_line(root):
    with pytest.raises(ConfigError, match="--format=latx: unknown format; did you mean 'latex'"):
        table.main(Arguments(root=str(root), format="latx"))


def test_the_table_depends_on_results_alone(root, tmp_path, capsys):
    """Not on when or how often cells ran."""
    first = printed(root, capsys).out
    for cell in sample_grid(tmp_path, SWEEP).cells:
        path = root / cell.directory / "final.json"
        final = json.loads(path.read_text())
        path.write_text(json.dumps(final | {"time": {"elapsed": 99.0}}))
    assert printed(root, capsys).out == first
