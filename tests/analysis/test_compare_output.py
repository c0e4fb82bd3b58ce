"""JSON, CSV, Markdown, the command; hostile names and numbers."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from compare_cases import DENSE, edit_rows, left_out, runs_in, write_pair, write_seeded
from run_factory import edit_json, make_curve
from test_analysis_hostile import HOSTILE

from moejax.analysis import text
from moejax.analysis.compare import (
    PowerLaw,
    as_json,
    compare,
    excluded_rows,
    markdown,
    reading_rows,
    table_rows,
)

REPOSITORY = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def pair(tmp_path):
    return write_pair(tmp_path)


@pytest.fixture
def seeded(tmp_path):
    return write_seeded(tmp_path)


# ---- what comes out


def test_json_and_csv_hold_the_same_numbers(seeded):
    found = compare(runs_in(seeded))
    plain = json.loads(json.dumps(as_json(found), allow_nan=False))
    assert plain["format_version"] == 1 and plain["rows"][0]["difference"] is None
    table = list(csv.DictReader(io.StringIO(text.csv_text(table_rows(found)))))
    assert [row["treatment"] for row in table] == ["dense", "moe"]
    assert float(table[1]["difference"]) == pytest.approx(
        plain["rows"][1]["difference"]["mean"]["mean"]
    )
    assert float(table[1]["compute_multiplier"]) == pytest.approx(
        plain["rows"][1]["equal_loss"]["compute"]["mean"]
    )
    assert table[0]["difference"] == "" and table[1]["verdict"] == "beyond noise"
    assert len({len(row) for row in table_rows(found)}) == 1
    readings = reading_rows(found)
    assert len(readings) == 1 + 7 and readings[1][:3] == ("dense", "dense-s0", "0")
    assert excluded_rows(found) == [("run", "cause", "reason")]


def test_the_order_and_the_bytes_do_not_depend_on_chance(seeded):
    runs = runs_in(seeded)
    assert markdown(compare(runs)) == markdown(compare(runs_in(seeded)))
    assert json.dumps(as_json(compare(runs))) == json.dumps(as_json(compare(runs_in(seeded))))


def test_hostile_names_and_values_are_inert(tmp_path):
    for i, name in enumerate(HOSTILE):
        directory = name.replace("/", "_").replace("\0", "_")[:120]
        make_curve(tmp_path, directory, DENSE, config={"x": i, "seed": name})
    edit_json(sorted(tmp_path.iterdir())[0] / "status.json", state="failed " + HOSTILE[0])
    runs = runs_in(tmp_path)
    shown = markdown(compare(runs)) + text.csv_text(table_rows(compare(runs)))
    for char in "\u202e\u200b\x1b\x07\u2028":
        assert char not in shown
    page = markdown(compare(runs))
    assert not re.search(r"(?<!\\)[<>*`$&]", page)
    table = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(table) > 10  # a header and the rows; no name opens a cell or a line of its own
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {12 + 1}
    assert "alert(1)" in page and "Left out:" in page  # shown, not run


@pytest.mark.parametrize("value", [1e308, -1e308, 1e200, "NaN", "1e9", None, True, [1], -5, 0])
@pytest.mark.parametrize("key", ["eval/loss", "tokens", "compute/flops", "perf/tokens_per_second"])
def test_absurd_numbers_break_nothing(pair, key, value):
    make_curve(pair, "odd", DENSE, kind="top_p")
    edit_rows(pair / "odd", lambda row: row | {key: value} if row["step"] == 30 else row)
    runs = runs_in(pair)
    for at in ("tokens", "flops", "time"):
        found = compare(runs, at=at, law=PowerLaw(1.6, 0.1) if at == "flops" else None)
        json.dumps(as_json(found), allow_nan=False)
        assert markdown(found) and table_rows(found)


@pytest.mark.parametrize("name", ["status", "config", "data", "env", "model", "final"])
def test_odd_files_break_nothing(pair, name):
    odd = make_curve(pair, "odd", DENSE, kind="top_p")
    for content in (
        "",
        "[]",
        '{"config": 3, "total_steps": -1}',
        '{"state": "done", "total_steps": 1e-300}',
        '{"layers": [3], "state": {}}',
    ):
        (odd / f"{name}.json").write_text(content)
        found = compare(runs_in(pair))
        assert {row.name for row in found.rows} | set(left_out(found)) >= {"dense", "moe", "odd"}
    (odd / "config.json").write_text('{"config": {"a":' + "[" * 900 + "]" * 900 + "}}")
    assert compare(runs_in(pair))


# ---- the command


def test_the_command_needs_no_jax(pair, tmp_path):
    program = """
import sys
for name in ("jax", "jaxlib", "flax"):
    sys.modules[name] = None
from absl import flags
import tools.compare
good = ["--at=tokens", "--json=" + sys.argv[2]]
for arguments in (good, ["--baseline=x", "--json="], ["--floor=1"]):
    flags.FLAGS.unparse_flags()
    try:
        tools.compare.main(flags.FLAGS(["compare", sys.argv[1], *arguments]))
    except SystemExit as end:
        print(end.code)
"""
    out = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, "-c", program, str(pair), str(out)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == markdown(compare(runs_in(pair))) + "2\n2\n"
    assert json.loads(out.read_text())["baseline"] == "dense"
    unknown, half = done.stderr.splitlines()
    assert unknown.startswith("error: baseline=x: no such run or configuration")
    assert half.startswith("error: ") and "both or neither" in half
