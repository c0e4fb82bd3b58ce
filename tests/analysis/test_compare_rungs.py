"""A ladder taken apart by training length: each rung compares within itself."""

from __future__ import annotations

import csv

import pytest
from compare_cases import DENSE, MOE, runs_in
from run_factory import make_curve

from moejax.analysis.compare import rungs
from moejax.analysis.evidence import Evidence
from moejax.analysis.report import write_report
from moejax.analysis.view import views


def ladder(root, lengths=(3, 6, 24)):
    """Dense and top-k at each length, in evaluations of equally many tokens."""
    for size, length in enumerate(lengths):
        for kind, losses in (("dense", DENSE), ("top_k", MOE)):
            path = [losses[0] - size] * (length - 2) + [v - size for v in losses[1:]]
            make_curve(
                root,
                f"{size}-{kind}",
                path,
                kind=kind,
                config={"name": f"{size}-{kind}", "rung": size},
            )
    return root


def names(found):
    return [sorted(run.name for run in own) for own in found]


def test_each_length_is_a_rung_the_shortest_first(tmp_path):
    found = rungs(runs_in(ladder(tmp_path)))
    assert names(found) == [[f"{size}-dense", f"{size}-top_k"] for size in range(3)]


@pytest.mark.parametrize("second", [3, 4])
def test_lengths_that_are_near_are_one_list(tmp_path, second):
    """4/3 of the tokens is a matter of the budget."""
    assert names(rungs(runs_in(ladder(tmp_path, (3, second))))) == [
        ["0-dense", "0-top_k", "1-dense", "1-top_k"]
    ]


def test_a_length_with_one_treatment_splits_nothing(tmp_path):
    ladder(tmp_path, (3,))
    make_curve(tmp_path, "long", [*DENSE, *MOE], kind="top_k")
    make_curve(tmp_path, "long-s1", [*DENSE, *MOE], kind="top_k", seed=1)
    assert names(rungs(runs_in(tmp_path))) == [["0-dense", "0-top_k", "long", "long-s1"]]


def test_beside_two_rungs_a_lone_one_is_left_out(tmp_path):
    ladder(tmp_path, (3, 6))
    make_curve(tmp_path, "lone", [4.0] * 22 + DENSE[1:], kind="top_p")
    assert names(rungs(runs_in(tmp_path))) == [["0-dense", "0-top_k"], ["1-dense", "1-top_k"]]


def test_nothing_to_compare_stays_one_list(tmp_path):
    assert rungs([]) == [[]]


def test_the_report_has_a_baseline_per_rung(tmp_path):
    evidence = Evidence(views(runs_in(ladder(tmp_path / "runs"))))
    tokens = [one for one in evidence.comparisons if one.at == "tokens"]
    assert [one.baseline for one in tokens] == ["0-dense", "1-dense", "2-dense"]
    assert [one.budget for one in tokens] == [3000, 6000, 24000]
    write_report([tmp_path / "runs"], tmp_path / "report", pictures=False)
    with (tmp_path / "report/data/forest.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["at"] == "tokens"]
    assert [(row["baseline"], row["configuration"]) for row in rows] == [
        (f"{size}-dense", f"{size}-top_k") for size in range(3)
    ]
    tables = {path.name for path in (tmp_path / "report/tables").iterdir()}
    assert {f"comparison-tokens{n}.md" for n in ("", "-2", "-3")} <= tables
    assert "comparison-tokens-4.md" not in tables
    page = (tmp_path / "report/report.html").read_text()
    for chart in ("forest-tokens-3", "pareto-measured-flops-3"):
        assert chart in page
