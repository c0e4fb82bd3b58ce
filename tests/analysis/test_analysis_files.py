"""Readers of run directories: every kind of damage is told, none is a crash."""

from __future__ import annotations

import io
import json
import os
import zipfile

import numpy as np
import pytest
from run_factory import edit_json, make_run, save

from moejax.analysis.arrays import ArrayFileError, Field, newest, read_arrays
from moejax.analysis.runs import find_runs, load_runs
from moejax.analysis.series import read_metrics
from moejax.config.knobs import ConfigError


def _metrics(tmp_path, data: bytes):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(data)
    return read_metrics(path)


def test_metrics_are_split_by_kind_and_ordered(tmp_path):
    lines = [
        {"step": 1, "train/loss": 3.0, "tokens": 10},
        {"step": 2, "train/loss": 2.0, "tokens": 20},
        {"step": 2, "eval/loss": 2.5, "tokens": 20},
    ]
    got = _metrics(tmp_path, "".join(json.dumps(x) + "\n" for x in lines).encode())
    np.testing.assert_array_equal(got.train["train/loss"], [3, 2])
    np.testing.assert_array_equal(got.eval["eval/loss"], [2.5])
    assert np.isnan(got.eval["never/logged"]).all()
    assert got.problems == ()


def test_torn_tail_is_left_out_and_told(tmp_path):
    got = _metrics(tmp_path, b'{"step": 1, "train/loss": 3.0}\n{"step": 2, "train/lo')
    assert got.train.rows == 1
    assert "line 2 is torn" in got.problems[0]


def test_corrupt_lines_are_counted_with_their_place(tmp_path):
    bad = b'\xff\xfe\n[1]\n{"step": "x"}\n{"step": true}\n{"step": -1}\n' + b"[" * 100000 + b"\n"
    got = _metrics(tmp_path, b'{"step": 1, "train/loss": 3.0}\n' + bad)
    assert got.train.rows == 1
    assert "6 of 7 lines are corrupt (line 2, 3, 4 ...)" in got.problems[0]


def test_not_finite_losses_are_kept_as_nan_and_told(tmp_path):
    got = _metrics(
        tmp_path,
        b'{"step": 1, "train/loss": NaN}\n{"step": 2, "train/loss": null}\n'
        b'{"step": 3, "train/loss": 1e999}\n{"step": 4, "train/loss": 1.5, "note": "text"}\n',
    )
    assert np.isfinite(got.train["train/loss"]).tolist() == [False, False, False, True]
    assert got.train.last("train/loss") == 1.5
    assert "train/loss is not finite in 3 rows, first at step 1" in got.problems[0]


def test_steps_repeated_after_a_resume_keep_the_newest_values(tmp_path):
    rows = [(1, 5.0), (2, 4.0), (1, 5.5), (2, 4.5)]
    text = "".join(json.dumps({"step": s, "train/loss": v}) + "\n" for s, v in rows)
    got = _metrics(tmp_path, text.encode())
    np.testing.assert_array_equal(got.train["train/loss"], [5.5, 4.5])
    assert "goes backwards 1 times" in got.problems[0]


@pytest.mark.parametrize("data", [b"", b"\n\n"])
def test_empty_metrics_say_so(tmp_path, data):
    assert "holds no row" in _metrics(tmp_path, data).problems[0]


def test_missing_metrics_say_so(tmp_path):
    assert "no such file" in read_metrics(tmp_path / "metrics.jsonl").problems[0]


# ---- npz ---------------------------------------------------------------------------------------

FIELDS = {"a_L": Field("L"), "b_LE": Field("LE"), "c_L": Field("L", required=False)}


def _npz(tmp_path, **arrays):
    save(tmp_path / "x.npz", arrays)
    return tmp_path / "x.npz"


def test_arrays_come_back_checked(tmp_path):
    b = np.asfortranarray(np.arange(6).reshape(2, 3))
    got = read_arrays(_npz(tmp_path, a_L=np.ones(2), b_LE=b, other=np.zeros(9)), FIELDS)
    assert sorted(got) == ["a_L", "b_LE"]
    np.testing.assert_array_equal(got["b_LE"], b)


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"a_L": np.ones(2)}, "has no array 'b_LE'"),
        ({"a_L": np.ones(3), "b_LE": np.ones((2, 2))}, "axis L is 2 but 3 in 'a_L'"),
        ({"a_L": np.ones(2), "b_LE": np.ones(2)}, "expected axes [L, E]"),
        ({"a_L": np.array(["x", "y"]), "b_LE": np.ones((2, 2))}, "expected numbers"),
        ({"a_L": np.array([{}, {}]), "b_LE": np.ones((2, 2))}, "never loaded"),
    ],
)
def test_wrong_arrays_are_refused_by_name(tmp_path, arrays, message):
    with pytest.raises(ArrayFileError, match=r"x\.npz") as error:
        read_arrays(_npz(tmp_path, **arrays), FIELDS)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_header_that_claims_more_than_the_file_holds_is_refused_before_allocation(tmp_path):
    stream = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": (1 << 60,)}
    np.lib.format.write_array_header_1_0(stream, header)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a_L.npy", stream.getvalue())
    with pytest.raises(ArrayFileError, match="the data is shorter"):
        read_arrays(tmp_path / "x.npz", FIELDS)


def test_any_truncation_of_an_npz_is_one_line(tmp_path):
    path = _npz(tmp_path, a_L=np.arange(50.0), b_LE=np.ones((50, 3)))
    whole = path.read_bytes()
    for size in range(0, len(whole), 37):
        path.write_bytes(whole[:size])
        with pytest.raises(ArrayFileError, match=r"x\.npz"):
            read_arrays(path, FIELDS)


def test_any_flipped_byte_of_an_npz_is_data_or_one_line(tmp_path):
    path = _npz(tmp_path, a_L=np.arange(50.0), b_LE=np.ones((50, 3)))
    whole = bytearray(path.read_bytes())
    refused = 0
    for place in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            read_arrays(path, FIELDS)
        except ArrayFileError:
            refused += 1
    assert refused > 100  # the checksums of zip see nearly all; the rest is in unused fields


def test_newest_sorts_by_step_not_by_name(tmp_path):
    for name in ("9.npz", "00000010.npz", "x.npz", "11.tmp"):
        (tmp_path / name).touch()
    assert [p.name for p in newest(tmp_path)] == ["00000010.npz", "9.npz"]
    assert newest(tmp_path / "none") == []


# ---- run directories ---------------------------------------------------------------------------


def test_a_parent_stands_for_its_runs_in_natural_order(tmp_path):
    for seed in (10, 2):
        make_run(tmp_path, "dense", name=f"seed{seed}", steps=10, trace_tokens=50)
    (tmp_path / "figures").mkdir()
    found = find_runs([tmp_path, tmp_path / "seed2"])
    assert [os.path.basename(path) for path in found] == ["seed2", "seed10"]


def test_unknown_directory_names_the_nearest_run(tmp_path):
    make_run(tmp_path, "hetero_top_p", steps=10, trace_tokens=50)
    with pytest.raises(ConfigError, match="no such run directory; did you mean 'hetero_top_p'"):
        find_runs([tmp_path / "hetero_topp"])
    with pytest.raises(ConfigError, match="there are: hetero_top_p"):
        find_runs([tmp_path / "zzz"])
    with pytest.raises(ConfigError, match="no run directory given"):
        find_runs([])


def test_equal_names_are_told_apart_by_their_parents(tmp_path):
    paths = [str(make_run(tmp_path / d, "dense", steps=10, trace_tokens=50)) for d in "ab"]
    runs, _ = load_runs(paths)
    assert [run.name for run in runs] == ["a/dense", "b/dense"]


def test_damaged_json_is_a_note_and_the_rest_is_read(tmp_path):
    run = make_run(tmp_path, "top_k", steps=10, trace_tokens=50)
    (run / "model.json").write_text('{"format_version": 1, "total_par')
    (run / "env.json").write_text("[1, 2]")
    (run / "data.json").unlink()
    edit_json(run / "status.json", format_version=2)
    (run / "config.json").write_text('{"a":' * 100000)
    (loaded,), excluded = load_runs([str(run)])
    assert excluded == []
    told = {note.where: note.what for note in loaded.notes}
    assert "cut short" in told["model.json"]
    assert "not a JSON object" in told["env.json"]
    assert "no such file" in told["data.json"]
    assert "format_version is 2" in told["status.json"]
    assert "config.json" in told
    assert loaded.state == "done"
    assert loaded.metrics.train.rows == 2
    assert loaded.routing is not None


def test_an_older_routing_file_stands_in_for_a_damaged_one(tmp_path):
    run = make_run(tmp_path, "top_k", steps=10, trace_tokens=50)
    (run / "routing" / "00000099.npz").write_bytes(b"PK\x03\x04 torn")
    (loaded,), _ = load_runs([str(run)])
    assert loaded.routing is not None and loaded.routing.step == 10
    assert any(note.where == "routing/00000099.npz" for note in loaded.notes)


def test_wrong_types_inside_json_read_as_unknown(tmp_path):
    run = make_run(tmp_path, "top_k", steps=10, trace_tokens=50)
    edit_json(run / "final.json", eval="good", measured=[1], tokens="many", time={"elapsed": True})
    edit_json(run / "model.json", layers={"0": 1}, total_parameters=10**400)
    (loaded,), _ = load_runs([str(run)])
    assert np.isnan(loaded.final.number("eval", "loss"))
    assert np.isnan(loaded.final.number("time", "elapsed"))
    assert np.isnan(loaded.model.number("total_parameters"))
    assert loaded.model.records("layers") == []
