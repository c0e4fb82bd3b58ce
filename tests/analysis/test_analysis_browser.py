"""The page in a real browser: it draws, nothing hostile runs, nothing is refused or fails."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from chromium import chromium
from run_factory import make_run, save, write_json
from test_analysis_hostile import HOSTILE

from moejax.analysis.report import write_report

pytestmark = pytest.mark.all
# What the attacks would do, if they ran: the title is the page's own afterwards.
ATTACKS = (
    "<img src=x onerror=document.title='HIT'>",
    "</script><script>document.title='HIT'</script>",
    '"><svg onload=document.title=`HIT`>',
    "<a href=\"javascript:document.title='HIT'\">x</a>",
    "<a href='https://example.org'>x</a><b>bold</b>&lt;i&gt;",
)


# Charts in hidden tabs are drawn when their tab is shown.
UNDRAWN = """
[...document.querySelectorAll('.chart')].filter(c => c.offsetParent !== null)
  .filter(c => !c.querySelector('.js-plotly-plot .main-svg, .told')).map(c => c.dataset.chart)
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report of hostile runs, open in a window that is so high that all of it is in view."""
    root = tmp_path_factory.mktemp("browser")
    names = [re.sub(r"[/\0]", "_", text)[:120] for text in (*ATTACKS, *HOSTILE[:5])]
    options = {"layers": 3, "experts": 4, "steps": 40, "trace_tokens": 300}
    for i, name in enumerate(names):
        kind = ("hetero_top_p", "top_p", "top_k", "dense")[i % 4]
        run = make_run(
            root / "runs",
            kind,
            name=name,
            seed=i,
            classes=(*ATTACKS, *HOSTILE[:2]),
            domains=ATTACKS[:3],
            config={"note": " ".join(ATTACKS)},
            **options,
        )
        _corpus(run)
        _sweeps(run)
    write_report([root / "runs"], root / "report", pictures=False)
    with chromium(root / "profile") as found:
        found.visit(root / "report" / "report.html", 1200, 30000)
        found.wait(f"!({UNDRAWN}).length")
        yield found


def _corpus(run: Path) -> None:
    """A trace with hostile tokens, domains and languages, and the router's distribution."""
    (path,) = (run / "trace").iterdir()
    with np.load(path) as file:
        arrays = dict(file)
    layers, tokens = arrays["active_LT"].shape
    at = np.arange(tokens)
    arrays |= {
        "format_version": np.int32(2),
        "token_T": (at % 20).astype(np.int32),
        "language_T": (at * 3 // tokens).astype(np.uint8),
        "sequence_T": (at // 10).astype(np.int32),
        "position_T": (at % 10).astype(np.int32),
        "pos_T": (at % 3).astype(np.uint8),
        "difficulty_T": (at // 100).astype(np.float32),
    }
    spread = np.random.default_rng(0).random((layers, tokens)).astype(np.float16)
    arrays |= {"entropy_LT": spread, "top1_LT": spread, "margin_LT": spread}
    save(run / "trace" / "corpus" / path.name, arrays)
    labels = {"format_version": 1, "corpus": ATTACKS[0], "domains": list(ATTACKS)}
    labels |= {"languages": list(ATTACKS), "parts_of_speech": list(ATTACKS)}
    pieces = [*ATTACKS, *HOSTILE[:15]]
    write_json(run / "trace" / "corpus" / "labels.json", labels | {"pieces": pieces})


def _sweeps(run: Path) -> None:
    """Interventions on a hostile corpus, with hostile values among numbers."""
    loss = {"mean": 3.0, "low": 2.9, "high": 3.1}
    per_layer = {name: [1.0, 1.0] for name in ("active_L", "width_L", "shared_L")}
    values = ["0", "1", *ATTACKS]
    for what in ("disable_top", "shared_for_routed", "drop_one", ATTACKS[0]):
        layers = [1] if what == "drop_one" else [0, 1]
        rows = [{"value": v, "layers": layers, "loss": loss, "change": loss} for v in values]
        record = {"format_version": 1, "what": what, "acts_on": ATTACKS[1], "step": 1, "tokens": 5}
        record |= {"sequences": 2, "corpus": ATTACKS[2], "layers_L": [0, 1], "experts_L": [4, 4]}
        record["untouched"] = {"value": "", "layers": [], "loss": loss, "change": loss} | per_layer
        record["rows"] = [row | per_layer for row in rows]
        path = run / "interventions" / str(len(what)) / "x" / "1.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, record)


def test_every_chart_is_drawn_without_an_error_or_a_refusal(page):
    assert page.run("document.querySelectorAll('.chart').length") > 60
    assert page.run("document.querySelectorAll('[data-chart=load] .live').length") == 3
    assert page.messages == []


def test_nothing_hostile_becomes_markup_or_runs(page):
    assert page.run("document.title").startswith("Comparing 10 runs")
    assert page.run("document.body.innerText.includes(\"title='HIT'\")")  # shown as text
    bad = "img,iframe,object,embed,form,input,base,[onerror],[onload],[onmouseover]"
    assert page.run(f"document.querySelectorAll({bad!r}).length") == 0
    targets = "[...document.querySelectorAll('a')].map(a => a.getAttribute('href'))"
    assert all(re.match(r"#|data/[a-z0-9-]+\.csv$", href) for href in page.run(targets))
    assert page.run("document.querySelectorAll('svg a').length") == 0
    scripts = "[...document.scripts].filter(s => s.type !== 'application/json').length"
    assert page.run(scripts) == 2


def test_names_are_shown_as_they_are_where_plotly_draws_them(page):
    texts = (
        "[...document.querySelectorAll('[data-chart^=token-class] text')].map(t => t.textContent)"
    )
    found = page.run(texts)
    assert any(text.startswith("<img src") for text in found), found


def test_keys_walk_along_the_points_and_say_them(page):
    page.run("document.querySelector('[data-chart=layers-experts]').focus()")
    page.press("ArrowRight")
    page.press("ArrowRight")
    told = page.run("document.getElementById('live').textContent")
    assert told.endswith("(2 of 3)")
    page.run("document.querySelector('.words').focus()")
    page.press("ArrowRight")
    assert "experts, width" in page.run("document.getElementById('live').textContent")


def test_a_legend_hides_and_shows_a_run(page):
    button = "document.querySelector('#layers .legend button')"
    hidden = "document.querySelector('#layers .live').data.filter(t => t.visible === false).length"
    page.run(f"{button}.click()")
    page.wait(f"{hidden} === 1")
    assert page.run(f"{button}.getAttribute('aria-pressed')") == "false"
    page.run(f"{button}.click()")
    page.wait(f"{hidden} === 0")


def test_pickers_change_the_heat_maps(page):
    select = "document.querySelectorAll('[data-chart=load] select')[1]"
    titles = "[...document.querySelectorAll('[data-chart=load] .panels:not(details *) h3')].length"
    page.run(f"{select}.value = 0; {select}.dispatchEvent(new Event('change'))")
    page.wait(f"{titles} === 2")  # a run less itself is nothing to show


def test_a_phone_has_no_sideways_scroll_and_the_theme_can_be_changed(page):
    path = Path(page.run("decodeURIComponent(location.pathname)"))
    page.visit(path, 390, 30000, dark=True)
    page.wait(f"!({UNDRAWN}).length")
    assert page.run("document.documentElement.scrollWidth") <= 390
    wide = "[...document.querySelectorAll('.live')].filter(l => l.scrollWidth > 390).length"
    assert page.run(wide) == 0
    ink = "document.querySelector('.live').layout.font.color"
    dark = page.run(ink)
    page.run("document.getElementById('theme').click()")
    page.wait(f"{ink} !== {dark!r}")
    assert page.messages == []
