"""Sweeps of interventions in the report: the CSV, curves, bars and heat maps, and odd files."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from run_factory import make_run

from moejax.analysis.charts import static
from moejax.analysis.charts.spec import Chart, Maps
from moejax.analysis.evidence import Evidence
from moejax.analysis.figures import interventions
from moejax.analysis.interventions import Estimate, Measured, Sweep, write_sweep
from moejax.analysis.report import write_report
from moejax.analysis.runs import find_runs, load_runs
from moejax.analysis.view import views

SHAPE = {"layers": 2, "experts": 4, "steps": 10, "trace_tokens": 40}
LAYERS = (0, 2)


def measured(value, loss, layers=LAYERS, active=2.0):
    """A row whose loss is known to ± 0.1 and its change to ± 0.01."""
    change = loss - 3.0
    return Measured(
        value=value,
        layers=layers,
        loss=Estimate(loss, loss - 0.1, loss + 0.1),
        change=Estimate(change, change - 0.01, change + 0.01),
        active_L=np.full(2, active),
        width_L=np.full(2, 32.0 * active),
        shared_L=np.zeros(2),
    )


def made(what, rows, **fields):
    common = {
        "what": what,
        "when": "before",
        "renormalise": True,
        "acts_on": "all",
        "corpus": "validation",
        "spec": "",
        "part": "validation",
        "step": 10,
        "tokens": 900,
        "sequences": 30,
        "tokens_sha256": "aa",
        "layers_L": np.array(LAYERS, np.int32),
        "experts_L": np.array([4, 4], np.int32),
        "routers": ("top_k", "top_k"),
        "untouched": measured("", 3.0, ()),
        "rows": tuple(rows),
    }
    return Sweep(**common | fields)


def keep(run, sweep, folder=None, step=10):
    path = run / "interventions" / (folder or sweep.what) / "validation" / f"{step}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_sweep(path, sweep)


@pytest.fixture
def runs(tmp_path):
    return [make_run(tmp_path / "runs", "top_k", name=name, **SHAPE) for name in ("a", "b")]


def evidence(runs):
    return Evidence(views(load_runs(find_runs(runs))[0]), runs)


def drawn(runs):
    figure = interventions.build(evidence(runs))
    assert not figure.empty
    return figure, dict(figure.tabs)


def test_without_sweeps_the_command_is_named(runs):
    figure = interventions.build(evidence(runs))
    assert "python -m tools.intervene --run=RUN" in figure.empty and not figure.charts


def test_curves_have_losses_intervals_and_the_untouched_model(runs):
    # Written out of order, and once as a share of the 4 experts.
    keep(runs[0], made("disable_top", [measured("1/2", 3.4), measured("0", 3.0)]))
    keep(runs[1], made("disable_top", [measured("0", 3.1), measured("1", 3.2)]))
    figure, tabs = drawn(runs)
    loss, change = tabs["Experts disabled"]
    lines = {line.name: line for line in loss.series}
    assert lines["a"].x_N.tolist() == [0, 2] and lines["a"].y_N.tolist() == [3.0, 3.4]
    np.testing.assert_allclose(lines["a"].high_N - lines["a"].y_N, 0.1)
    assert lines["a, untouched"].y_N.tolist() == [3.0, 3.0]
    np.testing.assert_allclose({s.name: s for s in change.series}["b"].y_N, [0.1, 0.2])
    assert lines["b"].look != lines["a"].look
    head, *rows = figure.rows
    assert len(rows) == 2 * 3  # each with the untouched model
    (row,) = (dict(zip(head, r, strict=True)) for r in rows if r[7] == "1/2")
    assert (row["run"], row["layers"], row["loss"], row["width"]) == ("a", "0 2", 3.4, 64.0)
    assert "measured on validation, 900 tokens" in figure.caption


def test_other_tokens_are_left_out_by_name(runs):
    third = make_run(runs[0].parent, "top_k", name="other", **SHAPE)
    for run in runs:
        keep(run, made("k", [measured("1", 3.3)]))
    keep(third, made("k", [measured("1", 1.0)], tokens_sha256="bb"))
    figure, tabs = drawn([*runs, third])
    assert {s.name for s in tabs["Experts per token"][1].series} == {"a", "b"}
    assert "on other tokens, so left out: other" in figure.caption
    assert {row[0] for row in figure.rows[1:]} == {"a", "b", "other"}


def test_the_shared_expert_is_told_in_bars(runs):
    rows = [measured("0", 3.5), measured("1", 3.4)]
    keep(runs[0], made("shared_for_routed", rows))
    keep(runs[1], made("shared_for_routed", rows[1:]))
    _, tabs = drawn(runs)
    (chart,) = tabs["Shared for routed"]
    assert [label for _, label in chart.x.ticks] == [
        "untouched",
        "without, +0 routed",
        "without, +1 routed",
    ]
    a, b = chart.series
    assert a.kind == "bars" and a.y_N.tolist() == [3.0, 3.5, 3.4]
    assert (b.x_N.tolist(), b.y_N.tolist()) == ([0, 2], [3.0, 3.4])


def test_dropped_experts_are_cells_of_a_map(runs):
    rng = np.random.default_rng(0)
    loss = 3.0 + rng.normal(size=(2, 12))
    cells = [(i, e) for i in range(2) for e in range(12) if (i, e) != (1, 7)]
    rows = [measured(str(e), loss[i, e], (LAYERS[i],)) for i, e in cells]
    keep(runs[0], made("drop_one", rows, acts_on="each", experts_L=np.array([12, 12], np.int32)))
    _, tabs = drawn(runs)
    (maps,) = tabs["One expert dropped"]
    assert isinstance(maps, Maps)
    (grid,) = maps.grids
    assert grid.columns == tuple(map(str, range(12))) and grid.rows == ("0", "2")
    for i in range(2):
        for e in range(12):
            if (i, e) in cells:
                assert grid.value_RC[i, e] == pytest.approx(loss[i, e] - 3.0)
    assert math.isnan(grid.value_RC[1, 7])


def test_conventions_and_single_layers_stand_apart(runs):
    rows = [measured("1", 3.2, (layer,)) for layer in LAYERS]
    raw = made("disable_top", [measured("1", 3.3)], when="after", renormalise=False)
    keep(runs[0], made("disable_top", [measured("1", 3.1)]))
    keep(runs[0], raw, "disable_top-after-raw")
    keep(runs[0], made("k", rows, acts_on="each"), "k-layers_each")
    _, tabs = drawn(runs)
    assert list(tabs) == [
        "Experts disabled",
        "Experts disabled, after the choice, not renormalised",
        "Experts per token, each layer",
    ]
    (maps,) = tabs["Experts per token, each layer"]
    np.testing.assert_allclose(maps.grids[0].value_RC, [[0.2], [0.2]])


def test_the_newest_readable_sweep_counts_and_the_others_are_noted(runs):
    keep(runs[0], made("p", [measured("0.5", 3.2)], step=5), step=5)
    keep(runs[0], made("p", [measured("0.5", 3.1)]), step=8)
    (runs[0] / "interventions/p/validation/10.json").write_text('{"format_version": 1}')
    found = evidence(runs)
    figure = interventions.build(found)
    assert [row[9] for row in figure.rows[1:]] == [3.0, 3.1]
    (note,) = (n for n in found.runs[0].run.notes if n.where.startswith("interventions/"))
    assert note.where == "interventions/p/validation/10.json" and "layers_L" in note.what


def test_odd_sweeps_stay_bounded(runs, tmp_path):
    """Many values, values that are no numbers, unknown kinds, unknown intervals."""
    nan = Estimate(3.2, math.nan, math.nan)
    rows = [measured(f"{i}", 3.1) for i in range(500)]
    rows[3] = dataclasses.replace(measured("<b>odd", 3.2), loss=nan)
    rows[4] = dataclasses.replace(measured("4", 3.2), loss=nan)
    keep(runs[0], made("k", rows))
    keep(runs[0], made("shared_for_routed", rows))
    keep(runs[0], made("</script>", rows[:2]), "x")
    each = [measured(f"{i}", 3.1, (LAYERS[i % 2],)) for i in range(1000)]
    keep(runs[0], made("drop_one", each, acts_on="each"))
    figure, tabs = drawn(runs)
    assert set(tabs) == {"Experts per token", "Shared for routed", "One expert dropped"}
    loss = tabs["Experts per token"][0]
    assert isinstance(loss, Chart)
    (line,) = (s for s in loss.series if s.name == "a")
    assert line.x_N.size == 199 and line.low_N[3] == line.y_N[3] == 3.2
    assert len(tabs["Shared for routed"][0].x.ticks) == 1 + interventions.MOST_BARS
    assert len(figure.rows) == 1 + 2 * 501 + 1001
    assert not any("<b>odd" in label for _, label in tabs["Shared for routed"][0].x.ticks)
    write_report(runs, tmp_path / "report", pictures=False)
    page = (tmp_path / "report/report.html").read_text()
    assert 'id="interventions"' in page and "<b>odd" not in page
    for _, chart in figure.charts:
        assert all(len(picture.png) > 1000 for *_, picture in static.draw(chart, "Odd"))
