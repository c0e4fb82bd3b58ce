"""Figures of fine-tunings: forests, curves, granularity, experts, spectra, table, and odd files."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from run_factory import edit_json, write_json
from tuned_factory import make_base, make_tuned

from moejax.analysis.charts.spec import Rule
from moejax.analysis.evidence import Evidence
from moejax.analysis.figures.tuned import curves, experts, outcomes, spectrum
from moejax.analysis.finetuning.experts import read_use
from moejax.analysis.finetuning.section import rows, table_section
from moejax.analysis.report import write_report
from moejax.analysis.runs import find_runs, load_runs
from moejax.analysis.view import views
from moejax.config import ConfigError
from moejax.finetune.concentration import concentration, curve, overlap
from moejax.finetune.grouping import COSINE, grouping
from moejax.finetune.selection import select

BUILDERS = (
    outcomes.build, curves.by_share, curves.by_granularity, experts.build, spectrum.build,
)  # fmt: skip


def evidence(root):
    return Evidence(views(load_runs(find_runs([root]))[0]), [root])


def esft(chosen):
    return {"name": "esft", "experts": {"0": chosen, "1": chosen}}


def write_use(run, task, table, seed=0):
    """An analysis of the scores `{layer: {expert: score}}`, as `tools.esft score` makes it."""
    size = len(next(iter(table.values())))
    cosine_EE = np.random.default_rng(seed).random((size, size))
    affinity = {COSINE: dict.fromkeys(table, cosine_EE + cosine_EE.T)}
    record = {
        "format_version": 1,
        "task": task,
        "step": 100,
        "tokens": 4096,
        "concentration": {name: concentration(table) for name in ("gate", "token")},
        "curve": {name: curve(table) for name in ("gate", "token")},
        "selected": {"gate": {"p": 0.1, "stability": 0.9}, "token": {"p": 0.2, "stability": None}},
        "grouping": grouping(table, affinity, 0.3),
    }
    path = run / "esft" / task / "analysis.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
    return path


FEW = {0: {0: 0.5, 1: 0.1, 2: 0.1, 3: 0.1}, 1: {0: 0.1, 1: 0.5, 2: 0.1, 3: 0.1}}
EVEN = {0: dict.fromkeys(range(4), 0.2), 1: dict.fromkeys(range(4), 0.2)}


def write_spectrum(run, decay):
    values = decay ** np.arange(6, dtype=float)
    values /= np.linalg.norm(values)
    matrices = [
        {
            "path": f"segments/{layer}/attention/q",
            "layer": layer,
            "expert": None,
            "rank": 6,
            "singular_values": values.tolist(),
            "share_top1": float(values[0] ** 2),
            "share_top4": float(np.square(values[:4]).sum()),
            "effective_rank": 3.0,
        }
        for layer in (0, 1)
    ]
    (run / "adapter").mkdir(exist_ok=True)
    write_json(run / "adapter" / "spectrum.json", {"format_version": 1, "matrices": matrices})


@pytest.fixture
def root(tmp_path):
    """Two bases, two tasks, ESFT at two p, LoRA and full; one seed but for ESFT."""
    runs = tmp_path / "runs"
    for active in (2.0, 8.0):
        base = make_base(runs, f"m{active:g}", active, ("law", "code"))
        for task in ("law", "code"):
            at = {"task": task, "active": active}
            for p, chosen in ((0.1, [1, 2]), (0.3, [0, 1, 2])):
                for seed in (0, 1):
                    own = f"{base.name}-p{p}-{task}-seed{seed}"
                    change = -p - 0.01 * active - 0.02 * seed
                    make_tuned(
                        runs, base, seed=seed, change=change, name=own, kind=esft(chosen),
                        p=p, **at,
                    )  # fmt: skip
            make_tuned(runs, base, "lora", change=-0.2, trainable=1100, **at)
            make_tuned(runs, base, "full", change=-0.4, forgotten=0.3, trainable=20_000, **at)
        write_use(base, "law", FEW)
        write_use(base, "code", EVEN)
    return runs


def test_without_fine_tunings_the_commands_are_named(tmp_path):
    make_base(tmp_path, tasks=())
    found = evidence(tmp_path)
    empty = [build(found).empty for build in BUILDERS]
    assert all("python -m" in why for why in empty)
    assert table_section(found.finetuning) is None


def test_the_forest_has_means_intervals_and_seeds(root):
    figure = outcomes.build(evidence(root))
    tabs = dict(figure.tabs)
    assert list(tabs) == ["Task", "General text", "Both", "Parameters"]
    assert len(tabs["Task"]) == 4 and len(tabs["Both"]) == 2
    forest = next(chart for chart in tabs["Task"] if chart.title == "law, m2")
    labels = [label for _, label in forest.y.ticks]
    assert set(labels) == {"full", "lora", "esft_gate (p=0.1)", "esft_gate (p=0.3)"}
    place = float(labels.index("esft_gate (p=0.3)"))
    (mark,) = [one for one in forest.series if one.y_N.tolist() == [place]]
    np.testing.assert_allclose(mark.x_N, [-0.33])
    (seeds,) = [one for one in forest.series if place < one.y_N[0] < place + 1]
    assert sorted(seeds.x_N.tolist()) == pytest.approx([-0.34, -0.32])
    assert "± " in mark.notes[0] and "over 2 seeds" in mark.notes[0]
    header, *rest = figure.rows
    assert len(rest) == 16 and all(len(row) == len(header) for row in rest)


def test_both_losses_and_what_is_trained(root):
    tabs = dict(outcomes.build(evidence(root)).tabs)
    both = {line.name: line for line in tabs["Both"][0].series}
    assert both["full"].x_N.tolist() == pytest.approx([0.3, 0.3])
    assert both["full"].y_N.tolist() == pytest.approx([-0.4, -0.4])
    costs = {line.name: line for line in tabs["Parameters"][0].series}
    assert costs["lora"].x_N.tolist() == [1100, 1100] and tabs["Parameters"][0].x.log is False


def test_curves_over_the_share_of_experts(root):
    tabs = dict(curves.by_share(evidence(root)).tabs)
    chart = next(chart for chart in tabs["Task"] if chart.title == "law, m8")
    (line,) = chart.series
    np.testing.assert_allclose(line.x_N, [2 / 4, 3 / 4])
    np.testing.assert_allclose(line.y_N, [-0.19, -0.39])
    assert {rule.label for rule in chart.rules} == {"base", "lora", "full"}


def test_granularity_is_over_experts_per_token(root):
    figure = curves.by_granularity(evidence(root))
    (law, code), _ = (charts for _, charts in figure.tabs)
    assert {law.title, code.title} == {"law", "code"}
    line = next(one for one in law.series if one.name == "esft_gate (p=0.1)")
    assert line.x_N.tolist() == [1.0, 3.0] and [t for _, t in law.x.ticks] == ["2", "8"]
    np.testing.assert_allclose(line.y_N, [-0.13, -0.19])


def test_one_granularity_is_no_figure(tmp_path):
    base = make_base(tmp_path)
    make_tuned(tmp_path, base)
    found = evidence(tmp_path)
    assert "equally many experts" in curves.by_granularity(found).empty
    assert "two sizes" in curves.by_share(found).empty


def test_concentration_selection_and_groups(root):
    tabs = dict(experts.build(evidence(root)).tabs)
    assert list(tabs) == ["Concentration", "Granularity", "Selected", "Groups"]
    lines = {line.name: line for line in tabs["Concentration"][0].series}
    assert lines["law"].y_N.tolist() == [0.25, 0.25] and lines["code"].y_N.tolist() == [0.5, 0.5]
    assert tabs["Concentration"][0].rules[0].value == 0.5
    (fine,) = tabs["Granularity"]
    assert {line.name: line.y_N.tolist() for line in fine.series}["law"] == [0.25, 0.25]
    groups = {line.name: line for line in tabs["Groups"][0].series}
    assert set(groups) == {COSINE, "random"}
    assert groups[COSINE].x_N.tolist() == [1, 2, 4] and groups[COSINE].y_N[0] == 1.0
    assert (groups["random"].y_N >= 1.0).all()


def test_overlap_is_a_map_with_chance(root):
    run = next(path for path in root.iterdir() if path.name == "m2")
    selections = {"law": select(FEW, 0.3), "code": select(EVEN, 0.3)}
    found = overlap(selections, {0: 4, 1: 4})
    write_json(run / "esft" / "overlap.json",
               {"format_version": 1, "score": "gate", "p": 0.3, **found})  # fmt: skip
    (maps,) = dict(experts.build(evidence(root)).tabs)["Overlap"]
    (grid,) = maps.grids
    expected = found["jaccard"][0][1]
    assert grid.value_RC[0, 1] == expected and math.isnan(grid.value_RC[0, 0])
    assert "chance" in grid.note


@pytest.mark.parametrize(
    "place, text",
    [
        ("esft/law/analysis.json", '{"format_version": 1}'),
        ("esft/law/analysis.json", "{"),
        ("esft/overlap.json", '{"format_version": 1, "tasks": ["a"], "jaccard": [[1, 2]]}'),
        ("adapter/spectrum.json", '{"format_version": 1, "matrices": [{}]}'),
        (
            "adapter/spectrum.json",
            '{"format_version": 1, "matrices": [{"singular_values": [3, 4]}]}',
        ),
    ],
)
def test_odd_files_are_notes(tmp_path, place, text):
    base = make_base(tmp_path)
    run = make_tuned(tmp_path, base)
    path = (run if place.startswith("adapter") else base) / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    found = evidence(tmp_path)
    assert experts.build(found).empty and spectrum.build(found).empty
    assert [n.where for v in found.runs for n in v.run.notes if n.where == place] == [place]


def test_an_analysis_with_layers_that_are_none_is_refused(tmp_path):
    path = write_use(make_base(tmp_path), "law", FEW)
    record = json.loads(path.read_text())
    record["concentration"]["gate"]["layers"]["x"] = {}
    write_json(path, record)
    with pytest.raises(ConfigError, match="no table of layers"):
        read_use(path)


def test_spectra_of_methods(root):
    for run in root.iterdir():
        if "lora" in run.name:
            write_spectrum(run, 0.5)
        elif "full" in run.name:
            write_spectrum(run, 0.9)
    figure = spectrum.build(evidence(root))
    shares, tops = (charts for _, charts in figure.tabs)
    lines = {line.name: line.y_N for line in shares[0].series}
    expected = np.cumsum(0.25 ** np.arange(6))
    np.testing.assert_allclose(lines["lora"], expected / expected[-1])
    assert (lines["full"][:-1] < lines["lora"][:-1]).all()
    assert tops[0].series[0].x_N.tolist() == [0, 1]
    assert len(figure.rows) == 1 + 2 * 2 * 2 * 2


def test_the_table_has_changes_with_intervals_and_costs(root):
    header, *body = rows(evidence(root).finetuning)
    assert len(body) == 16
    by = {(row[0], row[1], row[2]): dict(zip(header, row, strict=True)) for row in body}
    full = by["m2", "law", "full"]
    assert full["Task loss, change"] == "-0.4000" and full["General loss, change"] == "+0.3000"
    assert full["Trained"] == "20k" and full["Of all"] == "100.0\u202f%"
    assert full["Stored"] == "80\u202fkB" and full["Step time"] == "50\u202fms"


def test_the_table_has_ranks(tmp_path):
    base = make_base(tmp_path)
    make_tuned(tmp_path, base, "full")
    make_tuned(tmp_path, base, "lora", kind={"name": "lora", "rank": 8})
    make_tuned(tmp_path, base, "multilora", kind={"name": "multilora", "rank": 2, "modules": 3})
    header, *body = rows(evidence(tmp_path).finetuning)
    ranks = {row[header.index("Method")]: row[header.index("Rank")] for row in body}
    assert ranks == {"full": "–", "lora": "8", "multilora": "3×2"}
    assert "equal rank" not in spectrum.CAPTION and "modules times rank" in spectrum.CAPTION


def test_the_report_has_the_section_the_claims_and_the_notes(root, tmp_path):
    out = tmp_path / "report"
    odd = next(path for path in root.iterdir() if path.name.endswith("p0.3-law-seed1"))
    edit_json(odd / "tasks" / "law.json", step=7)
    write_report([root], out, pictures=False)
    page = (out / "report.html").read_text()
    assert 'id="finetuning-table"' in page and 'id="finetuning"' in page
    data = json.loads((out / "report.json").read_text())
    assert any(
        "esft_gate (p=0.1) has a lower task loss than lora" in c["claim"] for c in data["claims"]
    )
    assert [n for n in data["notes"] if n["severity"] == "excluded" and "step 7" in n["what"]]
    assert any("step 7" in sentence for sentence in data["caveats"])
    assert (out / "tables" / "finetuning.md").is_file()
    assert (out / "data" / "finetuning-experts.csv").is_file()


def test_rules_that_are_near_each_other_share_a_label():
    given = {"base": 0.0, "full": -1.7, "lora": -1.03, "multilora": -1.0, "partial": -1.45}
    found = curves.labels_apart([Rule(value, name) for name, value in given.items()])
    assert {rule.value for rule in found} == set(given.values())
    shown = {rule.value: rule.label for rule in found if rule.label}
    assert shown == {-1.7: "full", -1.45: "partial", -1.0: "multilora, lora", 0.0: "base"}
    assert [rule.label for rule in curves.labels_apart([Rule(0.0, "base")])] == ["base"]
