"""The file of a sweep: what goes in comes out, and nothing in it is trusted."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moejax.analysis import interventions, records
from moejax.analysis.interventions import Estimate, Measured, Sweep, line, read_sweep, write_sweep
from moejax.config import ConfigError


def measured(value: str, layers: tuple[int, ...], loss: float) -> Measured:
    return Measured(
        value,
        layers,
        Estimate(loss, loss - 0.1, loss + 0.1),
        Estimate(loss - 2, math.nan, math.nan),
        np.array([2.0, 1.5]),
        np.array([16.0, 20.5]),
        np.array([4.0, 0.0]),
    )


SWEEP = Sweep(
    what="disable_top",
    when="before",
    renormalise=True,
    acts_on="all",
    corpus="tale",
    spec="files:tale/*.jsonl",
    part="the set",
    step=40,
    tokens=900,
    sequences=12,
    tokens_sha256="ab" * 32,
    layers_L=np.array([1, 3], np.int32),
    experts_L=np.array([8, 6], np.int32),
    routers=("top_k", "top_p"),
    untouched=measured("untouched", (), 2.0),
    rows=(measured("0", (1, 3), 2.0), measured("1/16", (3,), 2.5)),
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_sweep(tmp_path / "40.json", SWEEP)
    return tmp_path / "40.json"


def test_what_goes_in_comes_out(file: Path) -> None:
    got = read_sweep(file)
    np.testing.assert_equal(dataclasses.asdict(got), dataclasses.asdict(SWEEP))
    assert "NaN" not in file.read_text()
    assert got.rows[1].active == 1.75 and got.rows[1].width == (20 + 20.5) / 2
    write_sweep(file.with_name("again.json"), got)
    assert file.with_name("again.json").read_bytes() == file.read_bytes()


def test_a_row_is_a_line(file: Path) -> None:
    assert len(line(SWEEP.untouched, 2)) == len(interventions.HEADER)
    assert line(SWEEP.untouched, 2).split()[:3] == ["untouched", "none", "2.0000"]
    assert line(SWEEP.rows[0], 2).split()[1] == "all"
    assert line(SWEEP.rows[0], 2).split()[5:] == ["+0.0000", "–", "–", "1.75", "20.2"]
    assert line(SWEEP.rows[1], 2).split()[:2] == ["1/16", "3"]


def change(record: dict[str, Any], place: str, value: Any) -> None:
    *path, last = place.split(".")
    for key in path:
        record = record[int(key) if key.isdigit() else key]
    record[last] = value


BROKEN = [
    ("format_version", 2, "format_version is 2"),
    ("format_version", "\x1b[31m", "\\u001b"),
    ("layers_L", [1, "3"], "layers_L is no list"),
    ("layers_L", [], "layers_L is no list"),
    ("layers_L", [1, 2**40], "layers_L is no list"),
    ("experts_L", [8], "experts_L has 1 layers"),
    ("step", -1, "step is no whole number"),
    ("tokens", True, "tokens is no whole number"),
    ("rows", {}, "rows is no list"),
    ("rows", [None] * 70_000, "rows is no list of at most"),
    ("rows", [3], "rows[0] is not an object"),
    ("rows.1.layers", [2], "rows[1].layers are not"),
    ("rows.1.layers", "3", "rows[1].layers are not"),
    ("untouched.width_L", [1.0], "untouched.width_L does not have 2"),
]


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case[2])
def test_another_form_is_one_line(file: Path, case: tuple[str, Any, str]) -> None:
    place, value, words = case
    record = json.loads(file.read_text())
    change(record, place, value)
    file.write_text(json.dumps(record))
    with pytest.raises(ConfigError) as caught:
        read_sweep(file)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_numbers_that_are_none_and_strings_that_bite(file: Path) -> None:
    record = json.loads(file.read_text())
    for place, value in (
        ("rows.0.loss.mean", "2"),
        ("rows.0.loss.low", 10**400),
        ("rows.0.change", None),
        ("rows.0.active_L", [True, 1e301]),
        ("rows.0.value", "\u202e<script>" + "x" * 999),
        ("routers", "top_k"),
        ("renormalise", "no"),
        ("corpus", 7),
    ):
        change(record, place, value)
    file.write_text(json.dumps(record))
    got = read_sweep(file)
    row = got.rows[0]
    assert np.isnan([row.loss.mean, row.loss.low, row.change.mean, *row.active_L]).all()
    assert row.value.startswith("\\u202e<script>") and len(row.value) <= 200
    assert got.routers == () and got.renormalise is False and got.corpus == ""


def test_files_that_are_no_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_BYTES", 1 << 20)
    for content in ("", "[1]", "{", "[" * 200_000, '{"step": ' + "9" * 5000 + "}", "x" * (2 << 20)):
        (tmp_path / "1.json").write_text(content)
        with pytest.raises(ConfigError) as caught:
            read_sweep(tmp_path / "1.json")
        assert "\n" not in str(caught.value) and "1.json" in str(caught.value)
    with pytest.raises(ConfigError, match="no such file"):
        read_sweep(tmp_path / "2.json")
