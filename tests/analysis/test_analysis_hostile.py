"""Run names, tokens, config values and errors are text of strangers: none may become markup."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest
from run_factory import CLASSES, edit_json, make_run
from test_analysis_report import Page, page

from moejax.analysis import text
from moejax.analysis.page.html import el, join, raw
from moejax.analysis.report import write_report

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    "javascript:alert(1)",
    "</style><b>",
    "<!-- ",
    "]]>",
    "$\\frac{x}{0}$",
    "a\u202egnp.exe",
    "zero\u200bwidth",
    "\x1b[31mred\x07",
    "line\nbreak\u2028",
    "=cmd|' /C calc'!A0",
    "@SUM(1+1)",
    "&amp;&lt;",
    "漢字 ещё",
    "x" * 3000,
)
TAGS = {
    *("html", "head", "meta", "title", "style", "body", "a", "header", "div", "span", "nav"),
    *("button", "main", "h1", "h2", "h3", "p", "section", "dl", "dt", "dd", "small", "ul", "li"),
    *("ol", "table", "thead", "tbody", "tr", "th", "td", "i", "code", "details", "summary"),
    *("figure", "footer", "script", "svg", "g", "path", "defs", "use", "text", "tspan", "image"),
    *("clippath", "rect", "b"),
}


@pytest.fixture(scope="module")
def hostile(shared):
    return shared("hostile", _build)


def _build(root):
    names = [re.sub(r"[/\0]", "_", h)[:120] for h in HOSTILE]
    every = " ".join(HOSTILE)
    run = make_run(
        root / "runs",
        "hetero_top_p",
        name=names[0],
        layers=2,
        experts=4,
        steps=20,
        trace_tokens=400,
        classes=HOSTILE[:7],
        domains=HOSTILE[7:12],
        config={f"key {h}"[:200]: h for h in HOSTILE}
        | {"api_key": "SECRET1", "url": "https://u:SECRET2@h"},
        env={
            "argv": ["train.py", *HOSTILE, "--wandb.api_key=SECRET3"],
            "git": {"sha": HOSTILE[0], "dirty": HOSTILE[1]},
            "packages": {"jax": HOSTILE[1], HOSTILE[2]: "1"},
            "devices": list(HOSTILE),
            "platform": every,
        },
        state="failed",
        reason=every,
    )
    edit_json(run / "data.json", corpus=HOSTILE[1], tokenizer=HOSTILE[2], manifest_hash=HOSTILE[3])
    layers = json.loads((run / "model.json").read_text())["layers"]
    edit_json(run / "model.json", layers=[layer | {"router": HOSTILE[2]} for layer in layers])
    for name in names[1:4]:
        make_run(root / "runs", "dense", name=name, steps=10, trace_tokens=50)
    for name in names[4:]:
        (root / "runs" / name).mkdir()  # left out of the report, by name
    write_report([*sorted((root / "runs").iterdir())], root / "report", pictures=False)


def test_no_text_becomes_an_element_or_a_handler(hostile):
    got = Page(page(hostile))
    assert {tag for tag, _ in got.elements} <= TAGS
    running = [a for a in got.all("script") if a.get("type") != "application/json"]
    assert len(running) == 2 and not any(running)  # plotly.js and ours, by their hashes
    for _, attributes in got.elements:
        assert not [name for name in attributes if name.startswith("on")]
    for link in got.all("a"):
        assert re.fullmatch(r"#[a-z-]+|data/[a-z0-9-]+\.csv", link["href"])
    assert "alert(1)" in got.text  # shown, not run


def test_invisible_characters_are_made_visible(hostile):
    html = page(hostile)
    for char in "\u202e\u200b\x1b\x07\u2028":
        assert char not in html
    assert "\\u202e" in html


def test_secrets_stay_out(hostile):
    for path in (hostile / "report").rglob("*"):
        if path.is_file():
            assert b"SECRET" not in path.read_bytes(), path


def test_the_data_block_is_json_and_cannot_be_left(hostile):
    html = page(hostile)
    start = r'<script type="application/json" id="([a-z-]+)">'
    blocks = dict(re.findall(start + "(.*?)</script>", html, re.S))
    assert len(blocks) > 5
    assert all("<" not in block and json.loads(block) for block in blocks.values())
    assert json.loads(blocks["report-data"])["format_version"] == 2


def test_no_cell_of_a_csv_is_a_formula(hostile):
    for path in (hostile / "report/data").glob("*.csv"):
        for row in csv.reader(io.StringIO(path.read_text())):
            for cell in row:
                assert not cell.startswith(("=", "@", "\t", "\r", "|"))
                assert not cell.startswith(("+", "-")) or float(cell) is not None


@pytest.mark.parametrize("value", HOSTILE)
def test_escapes_one_by_one(value):
    got = Page(el("p", value, title=value, data_x=value))
    assert [tag for tag, _ in got.elements] == ["p"]
    assert set(got.elements[0][1]) == {"title", "data-x"}
    assert got.text == text.clean(value, 4000)
    assert "<" not in text.script_json({value: value})
    assert json.loads(text.script_json([value])) == [value]
    assert csv.reader([text.csv_text([[value]])]).__next__()[0].lstrip("'") == text.clean(
        value, 4000
    ).lstrip("'")


def test_only_finished_markup_is_left_alone():
    assert join(["<b>", el("i", "x"), None, raw("<hr>")]) == "&lt;b&gt;<i>x</i><hr>"
    assert el("td", 0) == "<td>0</td>"


def test_redaction_knows_keys_but_not_tokens():
    assert text.redact("wandb.api_key", "x") == "[redacted]"
    assert text.redact("hf_access_token", "x") == "[redacted]"
    assert text.redact("data.tokenizer", "bytes") == "bytes"
    assert text.redact("train.tokens", 5) == 5
    assert text.redact_argument("--config.secret=a=b") == "--config.secret=[redacted]"
    assert text.redact_argument("gs://user:pw@host/x") == "gs://[redacted]@host/x"


def test_classes_in_the_fixture_are_as_many_as_the_hostile_ones():
    assert len(CLASSES) == 7  # the generator draws class ids below this


@pytest.mark.parametrize(
    "value, shown",
    [
        (0, "0"),
        (999, "999"),
        (999.7, "1k"),
        (1234567, "1.23M"),
        (2.5e-05, "2.5e-05"),
        (float("nan"), "–"),
        (-4.2e9, "-4.2G"),
    ],
)
def test_short_numbers(value, shown):
    assert text.short(value) == shown


@pytest.mark.parametrize(
    "seconds, shown",
    [(0.25, "0.2 s"), (42, "42 s"), (185, "3 min 05 s"), (7620, "2 h 07 min"), (-1, "–")],
)
def test_durations(seconds, shown):
    assert text.duration(seconds) == shown


def test_units_and_lists():
    assert [text.short(v, 2) for v in (896, 120_000, 1620, 0.123)] == [
        "896",
        "120k",
        "1.6k",
        "0.12",
    ]
    assert text.unit(2.32e6, "FLOP") == "2.32\u202fMFLOP"
    assert text.unit(12.0, "FLOP") == "12\u202fFLOP"
    assert text.listing(["a"]) == "a"
    assert text.listing(["a", "b", "c"]) == "a, b and c"
    assert text.listing(list("abcd"), 2) == "a, b and 2 more"
    assert text.listing(["x, y", "z"]) == "x, y and z"
    assert text.shorten("abcdefghij", 5) == "ab…ij"
