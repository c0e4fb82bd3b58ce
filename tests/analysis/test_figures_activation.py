"""Activation maps and families of languages: the numbers in the CSV, and what is drawn."""

from __future__ import annotations

import numpy as np
import pytest
from run_factory import make_run, save, write_json

from moejax.analysis.evidence import Evidence
from moejax.analysis.figures.traced import activation, families
from moejax.analysis.runs import find_runs, load_runs
from moejax.analysis.view import views

NAMES = ("ko", "de", "en", "fr", "it")
LAYERS, EXPERTS, TOKENS = 2, 6, 400


def traced(run, names, probs=True):
    """A trace in which Germanic languages share an expert, Romance ones another; Korean has its
    own."""
    rng = np.random.default_rng(0)
    (path,) = (p for p in (run / "trace").iterdir() if p.is_file())
    with np.load(path) as file:
        arrays = dict(file)
    language = (np.arange(TOKENS) // 8 % len(names)).astype(np.uint8)
    own = np.array([2, 0, 0, 1, 1])[: len(names)][language]
    second = 3 + rng.integers(0, 3, (LAYERS, TOKENS))
    first = np.where(rng.random((LAYERS, TOKENS)) < 0.9, own, 0)
    expert = np.full((LAYERS, TOKENS, 6), 65535, np.uint16)
    expert[..., 0], expert[..., 1] = first, second
    arrays |= {
        "format_version": np.int32(2),
        "language_T": language,
        "sequence_T": (np.arange(TOKENS) // 8).astype(np.int32),
        "expert_LTK": expert,
        "active_LT": np.full((LAYERS, TOKENS), 2, np.uint16),
    }
    if probs:
        table = np.full((LAYERS, TOKENS, EXPERTS), 0.2, np.float16)
        np.put_along_axis(table, np.stack([first, second], -1), np.float16(0.46), -1)
        table[1] /= 5  # all below the least of the first layer
        arrays["probs_LTE"] = table
    save(run / "trace" / "languages" / path.name, arrays)
    labels = {"format_version": 1, "corpus": "languages", "languages": list(names)}
    write_json(run / "trace" / "languages" / "labels.json", labels)
    return expert, language


def evidence(root, names=NAMES, **options):
    run = make_run(root, "top_k", layers=LAYERS, experts=EXPERTS, steps=60, trace_tokens=TOKENS)
    made = traced(run, names, **options)
    return Evidence(views(load_runs(find_runs([root]))[0]), [root]), *made


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    return evidence(tmp_path_factory.mktemp("runs"))


def table(figure):
    header, *rows = figure.rows
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_every_frequency_is_in_the_csv(five):
    seen, expert, language = five
    figure = activation.build(seen)
    rows = table(figure)
    assert len(rows) == LAYERS * EXPERTS * len(NAMES)
    for row in rows:
        mine = language == NAMES.index(row["language"])
        uses = (expert[row["layer"]][mine] == row["expert"]).any(-1)
        assert row["frequency"] == pytest.approx(uses.mean())
        assert row["even"] == pytest.approx(2 / EXPERTS)
    of = {(row["layer"], row["expert"]): row for row in rows}
    assert of[0, 2]["kind"] == "specific" and of[0, 2]["languages_high"] == 1
    assert of[0, 1]["kind"] == "several" and of[0, 1]["languages_high"] == 2


def test_maps_stand_by_family_and_by_rank(five):
    figure = activation.build(five[0])
    assert [label for label, _ in figure.tabs] == ["maps", "experts", "over all layers"]
    (maps,) = figure.tabs[0][1]
    assert [g.name.rpartition(", ")[2] for g in maps.grids] == ["en", "de", "fr", "it", "ko"]
    total = np.mean([grid.value_RC for grid in maps.grids], axis=0)
    assert (np.diff(total, axis=1) <= 1e-12).all()  # one order for all languages of a run
    (chart,) = figure.tabs[2][1]
    layers = np.array([line.y_N for line in chart.series])
    np.testing.assert_allclose(layers.mean(1), 2.0)
    np.testing.assert_allclose(layers, [[4, 0]] * len(NAMES), atol=1e-12)


def test_relatives_are_more_alike(five):
    figure = families.build(five[0])
    (maps,) = figure.tabs[0][1]
    (grid,) = maps.grids
    assert grid.columns == ("en", "de", "fr", "it", "ko")
    assert grid.value_RC[0, 1] > 0.9 > 0 > grid.value_RC[0, 2]
    rows = {(row["measure"], row["layer"]): row for row in table(figure)}
    branch = rows["branch", "all"]
    assert branch["value"] > 1 and branch["pairs"] == 2 and branch["nearest_is_relative"] == 1
    assert branch["p_value"] == pytest.approx(1 / 15, abs=0.02)
    assert ("branch", 0) in rows and len(figure.tabs[1][1][0].series) == 3


def test_figures_say_why_they_are_empty(tmp_path):
    two, *_ = evidence(tmp_path / "two", NAMES[:2], probs=False)
    assert families.build(two).empty == "no trace is of three languages or more"
    assert [label for label, _ in activation.build(two).tabs] == ["maps", "experts"]
    make_run(tmp_path / "one", "top_k", layers=2, experts=4, steps=60, trace_tokens=100)
    alone = Evidence(views(load_runs(find_runs([tmp_path / "one"]))[0]))
    assert "two languages" in activation.build(alone).empty
