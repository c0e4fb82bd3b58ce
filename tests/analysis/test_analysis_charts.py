"""Charts: stated once, drawn twice; packed numbers come back; files are equal for equal charts."""

from __future__ import annotations

import base64
import json
import math

import numpy as np
import pytest
from run_factory import make_run

from moejax.analysis.charts import scales, static
from moejax.analysis.charts.interactive import MAP_CELLS, encode, grids_kept, inert, pack
from moejax.analysis.charts.spec import (
    Axis,
    Chart,
    Flow,
    Grid,
    Maps,
    Node,
    Rule,
    Shade,
    Words,
    legend,
    series,
    thinned,
)
from moejax.analysis.report import write_report

NAME = "<b>a</b> & $x$"


def _chart(**changes) -> Chart:
    base = {
        "key": "c",
        "title": "Chart",
        "alt": "A chart of two series.",
        "x": Axis("x"),
        "y": Axis("y"),
        "series": (
            series(NAME, 0, [1, 2, 3], [3.0, math.nan, 5.0], low=[2, 2, 2], high=[4, 4, 6]),
            series("points", 1, [1, 2], [1, 2], "points", notes=["<i>one", "two"]),
        ),
        "rules": (Rule(2.0, "chance"),),
    }
    return Chart(**base | changes)


def _maps(grids=2) -> Maps:
    value = np.array([[0.0, 1.0, np.nan], [2.0, 0.5, 4.2]])
    one = tuple(
        Grid(f"{NAME} {i}", value + 0.1 * i, ("0", "1"), ("a", "b", "c"), "A map.")
        for i in range(grids)
    )
    return Maps("m", "Maps", "Maps of load.", "x", "y", "u", scales.LOAD, one, scales.difference())


def _flow() -> Flow:
    nodes = (Node(0, NAME, 0), Node(0, "b", 1), Node(1, "c", 2))
    return Flow("f", "Flow", "A flow.", ("l0", "l1"), nodes, ((0, 2, 0.4), (1, 2, 0.6)))


def _words() -> Words:
    shade = Shade("run: loss", np.array([0.0, 3.0, np.nan]), scales.sequential(0, 3), ("n",) * 3)
    return Words("w", "", "Words.", (NAME, "↵", "c"), (shade,))


@pytest.mark.parametrize("make", [_chart, _maps, _flow, _words])
def test_both_renderers_draw_every_kind_and_repeat_themselves(make):
    first, second = static.draw(make(), "Heading"), static.draw(make(), "Heading")
    assert first == second and len(first) == (2 if make is _maps else 1)
    for _, _, one in first:
        assert one.png[:8] == b"\x89PNG\r\n\x1a\n" and one.pdf[:5] == b"%PDF-"
        assert one.svg.startswith('<svg class="plot"') and "<b>" not in one.svg
        assert 'role="img"' in one.svg and "fill:#" not in one.svg
    assert json.dumps(encode(make()), allow_nan=False) == json.dumps(encode(make()))


def test_a_series_loses_points_without_a_place_and_its_interval_with_them():
    line = _chart().series[0]
    assert line.x_N.tolist() == [1, 3] and line.low_N.tolist() == [2, 2]
    with pytest.raises(ValueError, match=r"lengths \[2, 3\]"):
        series("a", 0, [1, 2], [1, 2, 3])


def test_names_are_inert_where_plotly_would_read_markup():
    shown = inert("<img src=x onerror=alert(1)> &lt;")
    assert "<" not in shown and shown.startswith("&lt;img") and shown.endswith("&amp;lt;")
    traces = encode(_chart())["data"]
    assert [t.get("name") for t in traces].count("&lt;b&gt;a&lt;/b&gt; &amp; $x$") == 3
    assert traces[0]["legendgroup"] == NAME  # compared with the legend's, never drawn
    assert traces[-1]["customdata"] == ["&lt;i&gt;one", "two"]


def test_bands_rules_and_axes_reach_the_page():
    axes = {"x": Axis("x", log=True, low=1.0), "y": Axis("g", ticks=((0.0, "<a"),), reverse=True)}
    made = encode(_chart(**axes))
    assert made["layout"]["xaxis"]["type"] == "log"
    assert made["layout"]["xaxis"]["range"] == [0.0, None]
    assert made["layout"]["yaxis"]["ticktext"] == ["&lt;a"]
    assert made["layout"]["yaxis"]["autorange"] == "reversed"
    low, high, line = made["data"][:3]
    assert high["fill"] == "tonexty" and (low["y"], high["y"]) == ([2.0, 2.0], [4.0, 6.0])
    assert line["y"] == [3.0, 5.0]
    assert made["layout"]["shapes"][0]["y0"] == 2.0


@pytest.mark.parametrize("low", [0.0, -3.0])
def test_packed_numbers_come_back(low):
    rng = np.random.default_rng(1)
    value = rng.uniform(low, 7, (5, 9))
    value[0, 0], value[1, 1], value[2, 2] = 0.0, np.nan, 1e-9
    body, start, step = pack(value)
    codes = np.frombuffer(base64.b64decode(body), "<u2").reshape(value.shape)
    back = np.where(codes == 65535, np.nan, start + codes * step)
    np.testing.assert_allclose(back, value, atol=step)
    assert np.isnan(back[1, 1]) and abs(back[0, 0]) < 1e-9
    if low == 0:
        assert back[0, 0] == 0 and back[2, 2] > 0  # few is not none


def test_levels_of_a_scale():
    level = scales.LOAD.level([0.0, 0.1, 1.0, 5.0, np.nan])
    assert level.tolist() == [9, 0, 4, 8, scales.BLANK]
    assert scales.difference().level([-2, 0, 2]).tolist() == [0, 4, 8]
    for scale in (scales.LOAD, scales.difference(), scales.of_values([1, 1]), scales.of_values([])):
        assert len(scale.colors) == len(scale.labels) == len(scale.edges) + 1 + scale.zero


def test_many_maps_are_cut_and_the_page_says_so(tmp_path, monkeypatch):
    assert grids_kept(_maps(5)) == 5
    big = Grid("big", np.zeros((1000, MAP_CELLS // 1500)), ("0",), ("a",), "")
    maps = Maps("m", "", "", "x", "y", "u", scales.LOAD, (big, big, big))
    assert grids_kept(maps) == 1 and len(encode(maps)["grids"]) == 1
    for i in range(3):
        make_run(tmp_path / "runs", "top_k", name=f"r{i}", layers=2, experts=4, steps=20)
    monkeypatch.setattr("moejax.analysis.charts.interactive.MAP_CELLS", 16)
    write_report([tmp_path / "runs"], tmp_path / "report", pictures=False)
    html = (tmp_path / "report/report.html").read_text()
    assert "The picker has the first 2 of 3; the CSV has all." in html


def test_a_legend_is_shared_where_names_keep_their_look():
    assert legend([_chart(), _maps()]) == [(NAME, 0), ("points", 1)]
    other = _chart(series=(series("points", 4, [1], [1]),))
    assert legend([_chart(), other]) is None


def test_thinning_keeps_both_ends():
    x = np.arange(1000)
    thin, _ = thinned(x, x, 10)
    assert thin.size == 10 and thin[0] == 0 and thin[-1] == 999


def test_pictures_stand_in_the_page_and_beside_it(tmp_path, monkeypatch):
    from moejax.analysis.figures import layers, load

    monkeypatch.setattr("moejax.analysis.report.FIGURES", (layers.build, load.build))
    make_run(tmp_path / "runs", "hetero_top_p", layers=2, experts=4, steps=20, trace_tokens=50)
    write_report([tmp_path / "runs"], tmp_path / "report")
    names = sorted(path.name for path in (tmp_path / "report/figures").iterdir())
    stems = ("layers-experts", "layers-width", "load-0")
    assert names == sorted(f"{stem}.{kind}" for stem in stems for kind in ("pdf", "png"))
    html = (tmp_path / "report/report.html").read_text()
    assert html.count('<svg class="plot"') == 3
    for name in names:
        assert f'href="figures/{name}"' in html
