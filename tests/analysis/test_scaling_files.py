"""Where data come from and go to: CSV of strangers, run directories, JSON, the command line."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from run_factory import edit_json
from scaling_planted import KINDS, SIZES, chinchilla, ladder_runs, mesh

from moejax.analysis.scaling import (
    Chinchilla,
    Options,
    Power,
    Question,
    csv_points,
    from_runs,
    make_points,
    page,
    parse_columns,
    read_csv,
    record,
    study,
)
from moejax.analysis.scaling.points import Dataset
from moejax.config.files import write_json as write_strict_json
from moejax.config.knobs import ConfigError

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def written(tmp_path, text, **options):
    path = tmp_path / "runs.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_csv(path, parse_columns(options.pop("columns", "")), "loss")


# ---- points


def test_cells_are_runs_with_equal_numbers_or_as_named():
    points = make_points(n=[1, 1, 2, 1], d=[5, 5, 5, 5], loss=[3, 4, 5, 6], group=list("aaab"))
    assert points.cell_index().tolist() == [0, 0, 1, 2]
    assert points.seed_I == ("0", "1", "0", "0")
    named = make_points(n=[1, 1.1, 2], loss=3, cell=list("xxy"))
    assert named.cell_index().tolist() == [0, 0, 1] and not named.has("d") and named.has("loss")
    with pytest.raises(TypeError, match="no column 'tokens'"):
        make_points(tokens=[1])


def test_the_hash_is_of_the_data_and_of_nothing_else():
    points = make_points(n=[1e6, 1e6, 2e6], d=[1e8, 1e8, 2e8], loss=[3.0, 3.1, 2.9])
    digest = points.digest()
    # As of format 1 on every platform.
    assert digest == "4d948b5656db4a4057202c8ab19689d6ddbf50b8661ec994c9b72a5d417a40a2"
    assert points.take(np.array([2, 0, 1])).digest() == digest
    renamed = make_points(
        n=points.n_I, d=points.d_I, loss=points.loss_I,
        run=list("xyz"), cell=["p", "p", "q"], seed=["0", "1", "0"],
    )  # fmt: skip
    assert renamed.digest() == digest
    for changed in (
        make_points(n=points.n_I, d=points.d_I, loss=[3.0, 3.1, np.nextafter(2.9, 3)]),
        make_points(n=points.n_I, d=points.d_I, loss=points.loss_I, cell=list("pqr")),
        make_points(n=points.n_I, d=points.d_I, loss=points.loss_I, group=list("aab")),
    ):
        assert changed.digest() != digest


# ---- CSV


def test_a_csv_is_read_by_the_names_given(tmp_path):
    text = "\ufeffparams, x ,tokens,loss,kind,s\n1e6,?,2e8,3.5,a,0\n+2E6,?,4.e8,.9,b,1\n"
    found = written(tmp_path, text, columns="n=params,d=tokens,loss=loss,group=kind,seed=s")
    points = found.points
    assert points.n_I.tolist() == [1e6, 2e6] and points.d_I.tolist() == [2e8, 4e8]
    assert points.loss_I.tolist() == [3.5, 0.9] and points.group_I == ("a", "b")
    np.testing.assert_allclose(points.c_I, 6 * points.n_I * points.d_I)
    assert found.c_is == "6 N D" and "C = 6 N D is taken" in found.notes[0]


def test_own_names_need_no_columns_and_missing_tokens_follow_from_flops(tmp_path):
    found = written(tmp_path, "n,c,loss\n1e6,6e14,3\n")
    assert found.points.d_I.tolist() == [1e8] and "D = C / (6 N)" in found.notes[0]
    both = written(tmp_path, "n,d,c,loss\n1e6,1e8,7e14,3\n")
    assert both.points.c_I.tolist() == [7e14] and both.notes == ()


def test_lines_without_usable_numbers_are_left_out_by_name(tmp_path):
    text = (
        "n,d,loss\n1e6,1e8,3\n1e6,,3\n1e6,1e8,nan\n1e6,1e8,-1\n1e6,0,2\n\n1e6,1e8,inf\n2e6,1e8,2\n"
    )
    found = written(tmp_path, text)
    assert found.points.run_I == ("line 2", "line 9")
    assert found.excluded == (
        ("line 3", "d is ''"),
        ("line 4", "loss is 'nan'"),
        ("line 5", "loss is '-1'"),
        ("line 6", "d is '0'"),
        ("line 8", "loss is 'inf'"),
    )


def test_rows_of_a_run_are_a_curve_and_its_end_a_point(tmp_path):
    text = "run,n,d,loss\na,1,30,2\na,1,10,4\nb,2,5,3\na,1,20,3\n"
    found = written(tmp_path, text)
    assert found.points.run_I == ("a", "b") and found.points.loss_I.tolist() == [2, 3]
    (curve,) = found.curves
    assert curve.run == "a" and curve.d_S.tolist() == [10, 20, 30]
    assert curve.loss_S.tolist() == [4, 3, 2] and curve.c_S.tolist() == [60, 120, 180]


HOSTILE = {
    "empty": (b"", "is empty"),
    "header only": (b"n,d,loss\n", "no row with usable numbers"),
    "no loss": (b"n,d\n1,2\n", "--columns=loss=NAME"),
    "twice": (b"n,n,loss\n1,2,3\n", "2 columns are called 'n'"),
    "text": (b"n,d,loss\n1,2,3\n1,two,3\n", "line 3: d='two' is not a number"),
    "formula": (b"n,d,loss\n1,2,=cmd|'/c calc'!A1\n", "is not a number"),
    "underscore": (b"n,d,loss\n1_000,2,3\n", "n='1_000' is not a number"),
    "other digits": ("n,d,loss\n١,2,3\n".encode(), "is not a number"),
    "hexadecimal": (b"n,d,loss\n0x10,2,3\n", "is not a number"),
    "huge exponent": (b"n,d,loss\n1e9999,2,3\n", "is not a number"),
    "short line": (b"n,d,loss\n1,2\n", "line 2 has 2 fields, the header 3"),
    "not UTF-8": (b"n,d,loss\n1,2,\xff\xfe\n", "is not UTF-8"),
    "nul": (b"n,d,loss\n1,2,\x00\n", "is not a number"),
    "quote": (b'n,d,loss\n1,2,"3\n', "is not CSV"),
    "many fields": (b",".join([b"n"] * 2000) + b"\n", "more than 1000 fields"),
    "long field": (b"n,d,loss\n1,2," + b"9" * 200_000 + b"\n", "is not CSV (field larger"),
    "escape": (b"n,d,loss\n1,2,\x1b[31m3\n", "'\\\\u001b[31m3' is not a number"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_csv_is_one_clean_line(case, tmp_path):
    content, why = HOSTILE[case]
    with pytest.raises(ConfigError) as error:
        written(tmp_path, content)
    message = str(error.value)
    assert why in message and message.isprintable() and len(message) < 400


def test_a_csv_too_large_or_not_there_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_points, "MAX_BYTES", 10)
    with pytest.raises(ConfigError, match="larger than 10 bytes"):
        written(tmp_path, "n,d,loss\n1,2,3\n")
    monkeypatch.undo()
    monkeypatch.setattr(csv_points, "MAX_ROWS", 2)
    with pytest.raises(ConfigError, match="more than 2 rows"):
        written(tmp_path, "n,d,loss\n" + "1,2,3\n" * 3)
    with pytest.raises(ConfigError, match="no such file"):
        read_csv(tmp_path / "absent.csv", {}, "loss")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_csv(tmp_path, {}, "loss")


def test_names_of_strangers_are_made_visible(tmp_path):
    text = "n,d,loss,group,run\n" + "".join(
        f"{n},{20 * n},{3 + 10 / n},\x1b[2J\u202e</script>,<img src=x>{n}\n" for n in (1, 2, 3, 9)
    )
    found = written(tmp_path, text)
    assert found.points.groups == ("\\u001b[2J\\u202e</script>",)
    answer = study(found, Question(Power(), Options(replicates=0)))
    assert all(line.isprintable() for line in page(answer).splitlines())
    assert "\x1b" not in json.dumps(record(answer), ensure_ascii=False)


@pytest.mark.parametrize(
    "argument, why",
    [
        ("n", "'n' is not X=NAME"),
        ("n=", "is not X=NAME"),
        ("tokens=d", "no column 'tokens'"),
        ("n=a,n=b", "n is given twice"),
        ("los=x", "did you mean 'loss'"),
    ],
)
def test_wrong_columns_are_told(argument, why):
    with pytest.raises(ConfigError) as error:
        parse_columns(argument)
    assert why in str(error.value)


def test_a_column_that_is_not_there_has_a_nearest_one(tmp_path):
    with pytest.raises(ConfigError, match="no column 'parms'; did you mean 'params'"):
        written(tmp_path, "params,loss\n1,2\n", columns="n=parms,loss=loss")


# ---- run directories


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
    return ladder_runs(tmp_path_factory.mktemp("ladder") / "runs")


def test_run_directories_give_what_was_measured(ladder):
    found = from_runs([ladder])
    points = found.points
    assert len(points) == 32 and len(points.cells) == 16 and len(found.curves) == 32
    assert set(points.groups) == {"dense", "top_k", "top_p", "top_p, 8 widths"}
    assert set(points.seed_I) == {"0", "1"} and set(points.e_I) == {1.0, 8.0}
    dense = points.in_group("dense")
    assert set(dense.n_I) == set(map(float, SIZES.values()))
    np.testing.assert_allclose(dense.d_I, 20 * dense.n_I)
    np.testing.assert_allclose(dense.c_I, dense.d_I * (6.6 * dense.n_I + 250_000))
    assert np.isnan(dense.g_I).all() and np.isnan(dense.a_I).all()
    mixture = points.in_group("top_k")
    assert (mixture.g_I == 2).all() and (mixture.a_I == 128 / 512).all()
    assert from_runs([ladder], "active").points.n_I.min() == SIZES["50k"] + 65_536
    assert from_runs([ladder], "total").points.in_group("dense").n_I.min() == 4 * SIZES["50k"]
    assert found.c_is == "training FLOPs as counted by the runs"


def test_groups_may_be_an_axis_of_the_grid(ladder):
    assert set(from_runs([ladder], by="moe").points.groups) == set(KINDS)
    assert set(from_runs([ladder], by="size").points.groups) == set(SIZES)
    with pytest.raises(ConfigError, match="did you mean 'moe'"):
        from_runs([ladder], by="mo")
    one = sorted(p for p in ladder.iterdir() if p.is_dir())[0]
    assert len(from_runs([one], by="moe").points) == 1
    with pytest.raises(ConfigError, match="total"):
        from_runs([ladder], "tota")


def called(cell):
    """A cell's name in reports: its directory without the hash."""
    return cell.name.rpartition("-")[0]


def test_runs_that_do_not_count_are_named_with_the_reason(tmp_path):
    root = ladder_runs(tmp_path / "runs", kinds=("dense",), seeds=(0,))
    runs = sorted(p for p in root.iterdir() if p.is_dir())
    edit_json(runs[0] / "status.json", state="running")
    edit_json(runs[1] / "final.json", eval={"loss": None})
    edit_json(runs[2] / "data.json", tokenizer_hash="other")
    (tmp_path / "runs" / "copy").mkdir()
    for name in ("config.json", "final.json", "model.json", "status.json", "data.json"):
        (root / "copy" / name).write_bytes((runs[3] / name).read_bytes())
    edit_json(
        root / "grid.json",
        cells=[{"directory": "size=x,seed=0-00", "axes": [], "vanished": False}],
    )
    found = from_runs([root])
    reasons = dict(found.excluded)
    assert reasons[called(runs[0])] == "is running, not done"
    assert reasons[called(runs[1])] == "final.json has no finite eval loss"
    assert "this cell has not run yet" in reasons.values()
    assert len(found.points) == 1
    assert any("has the configuration and seed of" in why for why in reasons.values())
    assert any("another text or tokenizer" in why for why in reasons.values())


def test_a_run_that_has_not_counted_its_flops_is_left_out(tmp_path):
    root = ladder_runs(tmp_path / "runs", kinds=("dense",), seeds=(0,))
    run = min(p for p in root.iterdir() if p.is_dir())
    edit_json(run / "final.json", compute={})
    found = from_runs([root])
    assert found.excluded == ((called(run), "has no C (training FLOPs)"),)
    assert len(found.points) == 3 and found.points.has("c")


def test_no_usable_run_is_an_error_with_reasons(tmp_path):
    root = ladder_runs(tmp_path / "runs", kinds=("dense",), seeds=(0,), sizes={"50k": 49_152})
    (run,) = (p for p in root.iterdir() if p.is_dir())
    edit_json(run / "status.json", state="failed")
    with pytest.raises(ConfigError, match=r"no finished run to fit: .*is failed, not done"):
        from_runs([root])
    with pytest.raises(ConfigError, match="no such run directory"):
        from_runs([tmp_path / "absent"])


def test_damaged_runs_give_no_crash(tmp_path):
    root = ladder_runs(tmp_path / "runs", kinds=("top_k",), seeds=(0,))
    runs = sorted(p for p in root.iterdir() if p.is_dir())
    (runs[0] / "model.json").write_text("[" * 50_000)
    (runs[1] / "metrics.jsonl").write_bytes(b"\x00\xff{")
    edit_json(runs[2] / "model.json", layers=[{"kind": "moe", "widths": ["x", -1, 1e300]}])
    (root / "grid.json").write_text('{"cells": [1, {"directory": 3}]}')
    found = from_runs([root])
    assert len(found.points) == 4
    answer = study(found, Question(Power(), Options(replicates=0)))
    assert not answer.refused


# ---- JSON


def planted(rng):
    n, d = mesh(np.geomspace(1e7, 1e9, 3), np.geomspace(1e8, 1e10, 3))
    loss = chinchilla(n, d) * (1 + 0.002 * rng.standard_normal(9))
    return Dataset(make_points(n=n, d=d, c=6 * n * d, loss=loss))


def test_json_has_constants_hash_and_versions_and_is_the_same_again(tmp_path, rng):
    dataset = planted(rng)
    question = Question(Chinchilla(), Options(replicates=10))
    texts = []
    for name in ("one.json", "two.json"):
        write_strict_json(tmp_path / name, record(study(dataset, question)))
        texts.append((tmp_path / name).read_bytes())
    assert texts[0] == texts[1]
    found = json.loads(texts[0])
    assert found["data"]["sha256"] == dataset.points.digest()
    assert found["law"] == {
        "name": "chinchilla", "version": 1, "formula": Chinchilla.formula, "pinned": None,
    }  # fmt: skip
    assert found["options"]["method"] == "vp" and set(found["versions"]) == {"moejax", "numpy"}
    alpha = found["fit"]["constants"]["alpha"]
    assert alpha["low"] < alpha["value"] < alpha["high"]
    assert len(found["fit"]["residuals"]) == 9 and found["refused"] == ""
    assert set(found["approaches"]) == {"1", "2", "3"}
    assert found["approaches"]["3"]["method"] == "huber"
    assert len(found["allocation"]["optima"]) == 4


def test_json_of_shuffled_rows_has_the_same_constants(rng):
    dataset = planted(rng)
    shuffled = Dataset(dataset.points.take(rng.permutation(9)))
    question = Question(Power(), Options(replicates=0))
    one, two = (record(study(data, question)) for data in (dataset, shuffled))
    assert one["data"]["sha256"] == two["data"]["sha256"]
    for name, value in one["fit"]["constants"].items():
        assert two["fit"]["constants"][name]["value"] == pytest.approx(value["value"], rel=1e-8)


def test_a_refusal_is_json_too(tmp_path):
    n = np.geomspace(1e7, 1e9, 6)
    points = make_points(n=n, d=20 * n, c=120 * n**2, loss=chinchilla(n, 20 * n))
    answer = study(Dataset(points), Question(Chinchilla(), Options(replicates=0)))
    write_strict_json(tmp_path / "x.json", record(answer))
    found = json.loads((tmp_path / "x.json").read_text())
    assert "one ray" in found["refused"] and "fit" not in found and found["remarks"]


# ---- the command line

_DRIVER = """
import contextlib, io, json, sys
sys.modules["jax"] = sys.modules["jaxlib"] = sys.modules["flax"] = None
from absl import app
import tools.scaling as tool
results = []
for argv in json.load(sys.stdin):
    tool.flags.FLAGS.unparse_flags()
    for name in tool.flags.FLAGS.flag_values_dict():
        tool.flags.FLAGS[name].unparse()
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            tool.main(tool._parse(["scaling", *argv]))
        except SystemExit as end:
            code = end.code
    results.append([code, out.getvalue(), err.getvalue()])
json.dump(results, sys.stdout)
"""


def run_tool(cases):
    """[exit code, stdout, stderr] of each argument list, in one process where jax is missing."""
    done = subprocess.run(
        [sys.executable, "-c", _DRIVER],
        input=json.dumps(cases), capture_output=True, text=True, cwd=REPOSITORY,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_command_line_answers_refuses_and_explains(tmp_path):
    ladder = ladder_runs(tmp_path / "ladder", kinds=("dense", "top_p"), seeds=(0,))
    n, d = mesh(np.geomspace(1e7, 1e9, 3), np.geomspace(1e8, 1e10, 3))
    file = tmp_path / "runs.csv"
    rows = zip(n, d, chinchilla(n, d), strict=True)
    file.write_text("p,t,l\n" + "".join(f"{a},{b},{c}\n" for a, b, c in rows))
    columns = "--columns=n=p,d=t,loss=l"
    out = tmp_path / "out.json"
    root, csv = str(ladder), f"--csv={file}"
    quick = "--replicates=5"
    cases = [
        (0, "one floor for all", [root, "--law=power", "--by=moe", quick, f"--json={out}"]),
        (0, "0.28", [csv, columns, "--replicates=0", "--budgets=1e20"]),
        (5, "nearest valid: --law=power, the loss along C", [root]),
        (2, "nothing to fit", []),
        (2, "not both", [root, csv]),
        (2, "is for --csv", [root, columns]),
        (2, "did you mean 'chinchilla'", [root, "--law=chinchila"]),
        (2, "no column 'q'", [csv, "--columns=n=p,d=t,loss=q"]),
        (2, "a CSV's groups", [csv, columns, "--by=moe"]),
        (2, "the data name no groups", [csv, columns, "--by=group"]),
        (2, "must be numbers", [csv, columns, "--budgets=x"]),
        (2, "must be above 0", [csv, columns, "--budgets=-1"]),
        (2, "Unknown command line flag 'lwa'", [root, "--lwa=power"]),
        (2, "cannot be written", [csv, columns, "--replicates=0", f"--json={file}/x.json"]),
        (2, "no such run directory", [str(tmp_path / "absent")]),
    ]
    found = run_tool([argv for _, _, argv in cases])
    for (code, words, argv), (was, stdout, stderr) in zip(cases, found, strict=True):
        assert was == code, (argv, stdout, stderr)
        if code == 2:
            assert stderr.startswith("error: ") and stderr.count("\n") == 1 and not stdout
            assert words in stderr
        else:
            assert words in stdout and not stderr
    assert json.loads(out.read_text())["data"]["runs"] == 8


@pytest.mark.slow
def test_the_worked_example_prints_what_the_document_says(tmp_path, monkeypatch):
    text = (REPOSITORY / "docs" / "scaling.md").read_text()
    program = re.search(r"^```python\n(# planted\.py\n.*?)^```$", text, re.M | re.S)
    names: dict = {}
    exec(program[1], names)
    monkeypatch.chdir(tmp_path)
    names["write"]()
    blocks = re.findall(
        r"^```text\n\$ python -m tools\.scaling (.*?[^\\])\n(.*?)^```$", text, re.M | re.S
    )
    assert len(blocks) == 3
    cases = [
        [word.replace("--csv=", f"--csv={tmp_path}/") for word in shlex.split(command)]
        for command, _ in ((c.replace("\\\n", " "), said) for c, said in blocks)
    ]
    number = re.compile(r"[-+]?\d+\.?\d*(?:e[-+]\d+)?")
    for (_, said), (_, printed, stderr) in zip(blocks, run_tool(cases), strict=True):
        assert not stderr
        assert number.sub("#", printed).split() == number.sub("#", said).split()
        values, expected = (list(map(float, number.findall(t.replace("sha256 ", "x"))))
                            for t in (printed, said))  # fmt: skip
        # Least squares is not the same to the last digit in every linear algebra library.
        assert values == pytest.approx(expected, rel=0.05, abs=2e-3)
