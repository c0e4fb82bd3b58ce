"""Pruning and learned masks in the report: curves, bands, languages, classes, and odd files."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from run_factory import make_run

from moejax.analysis.evidence import Evidence
from moejax.analysis.figures import masks, pruning
from moejax.analysis.intervals import t_quantile
from moejax.analysis.pruning import ALL, Cut, Study, write_study
from moejax.analysis.records import Estimate
from moejax.analysis.runs import find_runs, load_runs
from moejax.analysis.view import views

SHAPE = {"layers": 2, "experts": 4, "steps": 10, "trace_tokens": 40}
LANGUAGES = ("english", "spanish")


def cut(score="frequency", loss=3.2, rate=0.5, of=ALL, spread="uniform", seed=-1):
    """A loss that is known to ± 0.1; Spanish costs 1 more."""
    found = {
        language: Estimate(value, value - 0.1, value + 0.1)
        for language, value in ((ALL, loss), ("english", loss), ("spanish", loss + 1))
    }
    change = {
        language: Estimate(at.mean - 3.0, at.low - 3.0, at.high - 3.0)
        for language, at in found.items()
    }
    return Cut(score, of, spread, rate, seed, np.array([2, 2], np.int32), 900, 1e3, math.nan, found,
               change)  # fmt: skip


def study(rows, router="remove"):
    return Study(
        router=router,
        corpus="validation",
        spec="",
        part="",
        step=10,
        calibrated_on="half",
        calibration_tokens=500,
        tokens=600,
        sequences=30,
        tokens_sha256="aa",
        languages=LANGUAGES,
        layers_L=np.array([0, 1], np.int32),
        experts_L=np.array([4, 4], np.int32),
        whole=cut("", 3.0, 0.0),
        rows=tuple(rows),
    )


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "runs", "top_k", name="a", **SHAPE)


def evidence(run):
    return Evidence(views(load_runs(find_runs([run]))[0]), [run])


def keep(run, made):
    path = run / "pruning" / made.router / made.corpus / f"{made.step}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_study(path, made)
    return path


def test_without_a_study_the_commands_are_named(run):
    assert "python -m tools.prune --run=RUN" in pruning.build(evidence(run)).empty
    assert "python -m tools.convert mask" in masks.build(evidence(run)).empty


def test_curves_of_perplexity_with_bands(run):
    draws = [cut("random", loss, seed=seed) for seed, loss in enumerate((3.3, 3.5, 3.7))]
    keep(run, study([cut(rate=0.5), cut(loss=3.1, rate=0.1), *draws]))
    figure = pruning.build(evidence(run))
    ((label, (perplexity, by_language)),) = figure.tabs
    assert label == "a, validation"
    lines = {line.name: line for line in perplexity.series}
    frequency, random = lines["frequency, uniform"], lines["random, uniform"]
    assert frequency.x_N.tolist() == [0.1, 0.5]
    np.testing.assert_allclose(frequency.y_N, np.exp([3.1, 3.2]))
    np.testing.assert_allclose(frequency.high_N, np.exp([3.2, 3.3]))
    half = t_quantile(2) * 0.2 / math.sqrt(3)
    np.testing.assert_allclose(random.y_N, np.exp([3.5]))
    np.testing.assert_allclose(random.low_N, np.exp([3.5 - half]))
    assert perplexity.rules[0].value == pytest.approx(math.exp(3.0))
    spanish = {line.name: line for line in by_language.series}["spanish"]
    np.testing.assert_allclose(spanish.y_N, [1.1, 1.2])
    header, *rows = figure.rows
    assert len(rows) == 6 * 3 and all(len(row) == len(header) for row in rows)


def test_own_frequencies_are_each_languages_own(run):
    own = [cut(of=language, loss=3.05) for language in LANGUAGES]
    keep(run, study([cut(), *own], router="keep"))
    ((label, charts),) = pruning.build(evidence(run)).tabs
    assert label == "a, validation, routers kept"
    lines = {line.name: line.y_N.tolist() for line in charts[2].series}
    assert lines["english"] == pytest.approx([0.05]) and lines["spanish"] == pytest.approx([1.05])


def test_a_broken_study_is_a_note(run):
    keep(run, study([cut()])).write_text('{"format_version": 1}')
    found = evidence(run)
    assert pruning.build(found).empty
    (note,) = (n for n in found.runs[0].run.notes if n.where.startswith("pruning/"))
    assert note.where == "pruning/remove/validation/10.json" and "layers_L" in note.what


# ---- masks


def test_loss_against_the_active_share(run):
    model = json.loads((run / "model.json").read_text())
    for layer in model["layers"]:
        layer |= {"router": "learned_masks", "widths": [8] * 4, "shared_width": 8}
    (run / "model.json").write_text(json.dumps(model))
    rows = [
        {"step": step, "tokens": 100 * step, "eval/loss": loss, "eval/routing/active_width": width}
        for step, loss, width in ((0, 3.0, 32.0), (5, 3.1, 12.0), (10, 3.2, 8.0))
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    figure = masks.build(evidence(run))
    ((_, (loss, share)),) = figure.tabs
    assert loss.series[0].x_N.tolist() == [1.0, 0.5, 0.4]
    assert loss.series[0].y_N.tolist() == [3.0, 3.1, 3.2] and loss.rules[0].value == 3.0
    assert share.series[0].y_N.tolist() == [1.0, 0.5, 0.4]


def test_classes_by_layer(run):
    layers = [
        {"layer": 1, "shared": [0], "specific": [1, 2], "inactive": [3]},
        {"layer": 0, "shared": [0, 1], "specific": [2, 3], "inactive": []},
    ]
    surgery = {"format_version": 1, "kind": "harden", "layers": layers}
    (run / "surgery.json").write_text(json.dumps(surgery))
    ((_, (chart,)),) = masks.build(evidence(run)).tabs
    lines = {line.name: line.y_N.tolist() for line in chart.series}
    assert lines == {"shared": [0.5, 0.25], "specific": [0.5, 0.5], "inactive": [0, 0.25]}


@pytest.mark.parametrize("text", ["{", '{"format_version": 7}', "[1]"])
def test_an_odd_surgery_file_is_a_note(run, text):
    (run / "surgery.json").write_text(text)
    found = evidence(run)
    assert masks.build(found).empty
    assert [n for n in found.runs[0].run.notes if n.where == "surgery.json"]
