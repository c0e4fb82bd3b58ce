"""The report as a whole: what is in it, what is said; same input, same bytes."""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from run_factory import edit_json, make_run

from moejax.analysis.caveats import caveats
from moejax.analysis.page import assets
from moejax.analysis.report import write_report
from moejax.analysis.runs import find_runs, load_runs
from moejax.analysis.view import views
from moejax.config.knobs import ConfigError

ROOT = Path(__file__).parents[2]
SECTIONS = (
    *("summary", "runs", "loss", "layers", "load", "token-class", "frequency", "domain"),
    *("not-drawn", "notes", "provenance"),
)
TINY = {"layers": 2, "experts": 4, "steps": 20, "trace_tokens": 200}


class Page(HTMLParser):
    """Collects elements, and checks that every element that is opened is closed in its place."""

    VOID = ("meta", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


def report(root: Path) -> dict:
    return json.loads((root / "report" / "report.json").read_text())


def page(root: Path) -> str:
    """The page without plotly.js, which is most of its bytes and not ours to look at."""
    html = (root / "report" / "report.html").read_text()
    assert html.count(assets.library()) == 1
    return html.replace(assets.library(), "")


def data(root: Path, figure: str) -> dict:
    """What the page's script is given for a figure."""
    start = f'<script type="application/json" id="data-{figure}">'
    return json.loads(page(root).partition(start)[2].partition("</script>")[0])


# ---- contents ----------------------------------------------------------------------------------


def test_every_section_is_there_and_every_link_leads_somewhere(quartet):
    got = Page(page(quartet))
    ids = [attrs["id"] for _, attrs in got.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert set(SECTIONS) <= set(ids)
    for link in got.all("a"):
        target = link["href"]
        assert target[1:] in ids if target[0] == "#" else (quartet / "report" / target).is_file()


def test_report_needs_no_network(quartet):
    html = page(quartet)
    assert not re.findall(r"https?://[^\"' <)]+", html)
    got = Page(html)
    assert not [e for e in got.elements if "src" in e[1] or e[0] in ("link", "iframe", "img")]
    assert "default-src 'none'" in got.all("meta")[1]["content"]


def test_every_figure_has_charts_numbers_and_a_caption(quartet):
    out = quartet / "report"
    charts = {a["data-chart"]: a for _, a in Page(page(quartet)).elements if "data-chart" in a}
    drawn = [figure for figure in report(quartet)["figures"] if not figure["empty"]]
    assert len(drawn) > 12
    for figure in drawn:
        assert figure["caption"] and figure["charts"]
        for chart in figure["charts"]:
            attributes = charts.pop(chart)
            assert attributes["data-figure"] == figure["key"]
            assert len(attributes["aria-label"]) > 20
        rows = list(csv.reader((out / figure["csv"]).read_text().splitlines()))
        assert len(rows) > 1
        assert {len(row) for row in rows} == {len(rows[0])}
    assert not charts


def test_a_figure_without_data_is_one_line_and_nothing_else(quartet):
    empty = [figure for figure in report(quartet)["figures"] if figure["empty"]]
    html = page(quartet)
    shown = Page(html).text
    for figure in empty:
        assert f"{figure['title']}: {figure['empty']}." in shown
        assert f'id="{figure["key"]}"' not in html
    assert {"seed-bands", "words", "difficulty"} <= {figure["key"] for figure in empty}


def test_heading_order_and_labels_serve_a_screen_reader(quartet):
    got = Page(page(quartet))
    levels = [int(tag[1]) for tag, _ in got.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert got.all("html")[0]["lang"] == "en"
    scrolls = [a for _, a in got.elements if a.get("class") == "scroll"]
    assert scrolls and all(a["tabindex"] == "0" and a["aria-label"] for a in scrolls)


def test_headline_is_computed_from_the_runs(quartet):
    got = report(quartet)
    losses = {run["name"]: run["summary"]["loss"] for run in got["runs"]}
    best, second = sorted(losses, key=losses.get)[:2]
    first = got["findings"][0]
    assert first.startswith(f"{best} has the lowest validation loss: {losses[best]:.3f} nats")
    assert f"{losses[second] - losses[best]:.3f}" in first and f"below {second}" in first
    assert any("unigram line (3.312)" in s for s in got["findings"])
    assert any("one seed" in s for s in got["caveats"])
    assert got["baselines"] == {"unigram": 3.312, "bigram": 2.496}
    assert "unigram 3.31" in page(quartet) and "bigram 2.50" in page(quartet)
    tiles = page(quartet).partition('class="tiles"')[2].partition("</dl>")[0]
    for told in ("Training tokens", "Wall time", "cpu 1 x cpu 2 cores", "3.31 / 2.50"):
        assert told in tiles


def test_numbers_of_the_table_are_those_of_the_files(quartet):
    runs = {run["name"]: run["summary"] for run in report(quartet)["runs"]}
    final = json.loads((quartet / "runs" / "top_p" / "final.json").read_text())
    got = runs["top_p"]
    assert got["loss"] == final["eval"]["loss"]
    assert got["measured_active"] == final["measured"]["active_parameters"]
    assert got["flops_per_token"] == final["measured"]["flops_per_token"]
    with np.load(quartet / "runs" / "top_p" / "routing" / "00000060.npz") as arrays:
        count, dropped = arrays["count_LE"], arrays["dropped_k_max_L"].sum()
        requested = arrays["requested_L"].sum()
    assert got["load_worst"] == pytest.approx((count.max(1) / count.mean(1)).max())
    assert got["drop_fraction"] == pytest.approx(dropped / requested)
    assert got["drop_causes"] == f"k_max {dropped}"
    assert (runs["hetero_top_p"]["dead_experts"], runs["hetero_top_p"]["experts"]) == (1, 8)
    assert runs["dense"]["kind"] == "dense" and runs["hetero_top_p"]["kind"] == "top_p, 4 widths"


def test_class_csv_agrees_with_the_trace(quartet):
    rows = csv.DictReader((quartet / "report/data/token-class.csv").read_text().splitlines())
    with np.load(quartet / "runs/top_p/trace/00000060.npz") as arrays:
        active, of_class = arrays["active_LT"], arrays["class_T"] == 1
    (row,) = (
        r
        for r in rows
        if (r["run"], r["quantity"], r["token_class"]) == ("top_p", "active", "continuation")
    )
    assert int(row["n"]) == of_class.sum()
    assert float(row["mean"]) == pytest.approx(active.mean(0)[of_class].mean())


def test_experts_of_unequal_layers_are_labelled_by_width(quartet):
    (maps,) = data(quartet, "load").values()
    hetero, top_k, _ = (maps["labels"][grid["columns"]] for grid in maps["grids"])
    assert hetero == ["0 (32)", "1 (96)", "2 (160)", "3 (224)"] and top_k == ["0", "1", "2", "3"]


def test_config_differences_and_provenance(quartet):
    rows = list(csv.reader((quartet / "report/data/config-diff.csv").read_text().splitlines()))
    assert rows[0] == ["key", "dense", "hetero_top_p", "top_k", "top_p"]
    by_key = {row[0]: row[1:] for row in rows[1:]}
    assert by_key["model.moe.router.p"] == ["–", "0.4", "–", "0.4"]
    assert by_key["model.moe"] == ["none", "set", "set", "set"]
    assert "optimizer.lr" not in by_key  # equal in all
    assert "model.moe.router.renormalise" not in by_key  # equal in all that have a router
    origin = report(quartet)["runs"][0]["provenance"]
    assert origin["git"] == "5d41402abc4b"
    assert "jax 0.10.2" in origin["versions"]
    assert origin["command"].startswith("experiments/train.py --config=configs/lm.py")


def test_the_figure_of_the_documentation_works(quartet, tmp_path, monkeypatch):
    (example,) = re.findall("```python\n(.*?)```", (ROOT / "docs/report.md").read_text(), re.S)
    namespace: dict = {}
    exec(compile(example, "docs/report.md", "exec"), namespace)
    monkeypatch.setattr("moejax.analysis.report.FIGURES", (namespace["build"],))
    write_report([quartet / "runs"], tmp_path / "report")
    assert [f["charts"] for f in report(tmp_path)["figures"]] == [["cv-layers"]]
    assert (tmp_path / "report/figures/cv-layers.pdf").read_bytes()[:5] == b"%PDF-"
    rows = list(csv.DictReader((tmp_path / "report/data/cv.csv").read_text().splitlines()))
    assert {row["run"] for row in rows} == {"top_k", "top_p", "hetero_top_p"}
    assert 'id="cv"' in page(tmp_path)


# ---- faults ------------------------------------------------------------------------------------


def test_every_fault_is_listed_and_nothing_is_dropped_silently(zoo):
    notes = report(zoo)["notes"]
    told = {(n["run"], n["severity"]): n["what"] for n in notes}
    assert "not a run directory" in told["just-made", "excluded"]
    assert "still running" in told["running", "warning"]
    assert "non-finite at step 36" in told["failed", "warning"]
    assert "UTC" in told["running", "warning"]
    words = {name: " ".join(n["what"] for n in notes if n["run"] == name) for name, _ in told}
    assert "eval/loss is not finite" in words["nan"] and "not ranked" in words["nan"]
    assert "lines are corrupt" in words["corrupt"] and "torn" in words["corrupt"]
    assert "tokenizer differs" in words["other-tokenizer"]
    assert "no readable trace" in words["no-trace"]
    assert "saw 154k tokens, the longest run 307k" in words["no-trace"]
    assert "no such file" in words["bare"] and "no finite validation loss" in words["bare"]
    names = {run["name"] for run in report(zoo)["runs"]} | {"just-made"}
    assert names == {path.name for path in (zoo / "runs").iterdir()}


def test_runs_on_other_text_are_not_ranked(zoo):
    got = report(zoo)
    assert not next(r for r in got["runs"] if r["name"] == "other-tokenizer")["comparable"]
    assert "other-tokenizer" not in got["findings"][0]
    assert any("other-tokenizer" in c for c in got["caveats"])
    assert any("different numbers of tokens" in c and "At " in c for c in got["caveats"])
    assert any("Not finished" in c and "running" in c for c in got["caveats"])
    assert any("one seed" in c for c in got["caveats"])  # unfinished twins are no repetition
    assert any(s.startswith("In bits per byte") for s in got["findings"])


def test_faulty_runs_make_a_whole_page(zoo):
    assert set(SECTIONS) <= {a.get("id") for _, a in Page(page(zoo)).elements}


def _only(tmp_path, *kinds, **options) -> dict:
    for kind in kinds:
        make_run(tmp_path / "runs", kind, **TINY | options)
    write_report([tmp_path / "runs"], tmp_path / "report", pictures=False)
    Page(page(tmp_path))
    return report(tmp_path)


def test_one_run_that_is_still_running(tmp_path):
    got = _only(tmp_path, "top_p", state="running", steps=60)
    assert got["findings"][0].startswith("top_p has a validation loss of")
    assert "Not finished" in got["caveats"][0] and "top_p (running at step 35)" in got["caveats"][0]
    assert "This run has one seed" in " ".join(got["caveats"])
    assert "nothing to compare its configuration with" in page(tmp_path)
    assert "0 finished" in page(tmp_path)


def test_dense_only_says_why_figures_are_empty(tmp_path):
    figures = {f["key"]: f["empty"] for f in _only(tmp_path, "dense")["figures"]}
    assert "no MoE run has written its routing" in figures["load"]
    assert "no MoE run has an evaluation trace" in figures["token-class"]
    assert figures["loss"] == figures["layers"] == ""


def test_nothing_measured_yet(tmp_path):
    run = tmp_path / "runs" / "new"
    run.mkdir(parents=True)
    (run / "config.json").write_text('{"format_version": 1, "hash": "", "config": {}}')
    write_report([run], tmp_path / "report", pictures=False)
    assert report(tmp_path)["findings"] == []
    assert "Nothing is measured yet" in page(tmp_path)
    Page(page(tmp_path))


def test_runs_that_differ_by_seed_only_give_a_noise_floor(tmp_path):
    for seed in range(2):
        run = make_run(tmp_path, "dense", name=f"s{seed}", seed=seed, **TINY)
        edit_json(run / "final.json", eval={"loss": 2.0 + 0.25 * seed})
    seen = views(load_runs(find_runs([tmp_path]))[0])
    assert any("only in their seed differ by up to 0.250" in c for c in caveats(seen))


# ---- behaviour ---------------------------------------------------------------------------------


def test_same_input_gives_the_same_bytes_also_without_jax(quartet, tmp_path):
    """In another process, with another hash seed, time zone and working directory."""
    arguments = ["evaluate", str(quartet / "runs"), f"--out={tmp_path}", "--pictures=false"]
    code = (
        "import sys, runpy\n"
        "for name in ('jax', 'jaxlib', 'flax', 'optax', 'orbax', 'tensorflow', 'torch',\n"
        "             'plotly.io', 'plotly.graph_objects'):\n"
        "    sys.modules[name] = None\n"
        f"sys.argv = {arguments!r}\n"
        "runpy.run_module('tools.evaluate', run_name='__main__')\n"
    )
    environment = {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "PYTHONPATH": str(ROOT)}
    done = _python("-c", code, cwd=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "report.html")
    first, second = _bytes(quartet / "report"), _bytes(tmp_path)
    # The page names the command that wrote it, and with it the directory.
    out = str(quartet / "report").encode()
    second["report.html"] = second["report.html"].replace(str(tmp_path).encode(), out)
    assert second == first


def test_a_second_report_leaves_nothing_of_the_first(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").touch()
    write_report([run], tmp_path / "report")
    stale = ["figures/load-9.png", "figures/x.pdf", "data/gone.csv", "tables/gone.tex"]
    foreign = ["figures/mine.txt", "../keep.csv", "figures/../../keep.csv"]
    (tmp_path / "report/figures").mkdir(exist_ok=True)
    for name in [*stale, *foreign]:
        (tmp_path / "report" / name).write_text("x")
    edit_json(tmp_path / "report/report.json", files=[*stale, *foreign, 7])
    write_report([run], tmp_path / "report")
    assert not any((tmp_path / "report" / name).exists() for name in stale)
    assert all((tmp_path / "report" / name).exists() for name in foreign)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["runs/quartett", "--out=o"], "runs/quartett: no such run directory"),
        (["."], "--out is missing"),
    ],
)
def test_wrong_arguments_are_one_line(tmp_path, arguments, message):
    done = _python("-m", "tools.evaluate", *arguments, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert lines[-1].startswith("error: ") and message in lines[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    "paths, message", [([], "no run directory given"), (["."], "not a run directory")]
)
def test_nothing_to_report_on_is_a_wrong_argument(tmp_path, monkeypatch, paths, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        write_report(paths, "o")
    assert not (tmp_path / "o").exists()


def test_out_that_cannot_be_written_is_one_line(tmp_path):
    run = make_run(tmp_path, "dense", **TINY)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--out=.*file/report: cannot be written"):
        write_report([run], tmp_path / "file" / "report")


def _python(*arguments, cwd=ROOT, **environment) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def _bytes(out: Path) -> dict[str, bytes]:
    found = sorted(path for path in out.rglob("*") if path.is_file())
    return {str(path.relative_to(out)): path.read_bytes() for path in found}


@pytest.mark.all
def test_a_hundred_large_runs_give_a_bounded_report(tmp_path):
    for i in range(100):
        kind = ("dense", "top_k", "top_p", "hetero_top_k", "hetero_top_p")[i % 5]
        make_run(
            tmp_path / "runs",
            kind,
            name=f"{kind}-{i}",
            seed=i,
            layers=60,
            experts=256,
            trace_tokens=200,
            unit=8,
        )
    write_report([tmp_path / "runs"], tmp_path / "report")
    assert (tmp_path / "report/report.html").stat().st_size < 25e6
    assert sum(len(body) for body in _bytes(tmp_path / "report").values()) < 60e6
    assert len(report(tmp_path)["runs"]) == 100
    Page(page(tmp_path))
