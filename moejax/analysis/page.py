"""The page: one HTML file, no network, readable without script, safe by `html.el`."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import math
from collections.abc import Sequence

from moejax.analysis import tables, text
from moejax.analysis.assets import SCRIPT, style_sheet
from moejax.analysis.figures.base import Figure
from moejax.analysis.html import Html, el, join, raw
from moejax.analysis.provenance import differences, origin
from moejax.analysis.runs import Note
from moejax.analysis.sections import PANELS_OPEN, caption, figure_section, fold, link, section
from moejax.analysis.seeds import SeedGroup, seeds_section
from moejax.analysis.view import View, ranking


@dataclasses.dataclass(frozen=True)
class Content:
    """Everything on the page; `data` goes into it as JSON, for whoever has only this file."""

    runs: Sequence[View]
    compared: str
    findings: Sequence[str]
    caveats: Sequence[str]
    seeds: Sequence[SeedGroup]
    figures: Sequence[Figure]
    notes: Sequence[Note]
    command: str
    versions: str
    data: object


def render(content: Content) -> str:
    """The whole document."""
    means = seeds_section(content.seeds)
    sections = [
        ("summary", "Summary", _summary(content)),
        ("runs", "Runs", _runs(content.runs)),
        *([("seeds", "Seeds", means)] if means is not None else []),
        *((f.key, f.title, figure_section(f)) for f in content.figures),
        ("notes", "Warnings", _notes(content.notes)),
        ("provenance", "Provenance", _provenance(content)),
    ]
    nav = el(
        "nav",
        *(el("a", name, href=f"#{key}") for key, name, _ in sections),
        aria_label="Sections",
    )
    brand = el("a", "moejax ", el("span", "report"), cls="brand", href="#summary")
    toggle = el("button", "Dark", id="theme", type="button", hidden=True)
    title = _title(content.runs)
    main = [el("h1", title), el("p", content.compared, cls="lead"), *(s for *_, s in sections)]
    body = [
        el("a", "Skip to the summary", cls="skip", href="#summary"),
        el("header", el("div", brand, nav, toggle), cls="top"),
        el("main", *main),
        _footer(content),
        el(
            "script",
            raw(text.script_json(content.data)),
            type="application/json",
            id="report-data",
        ),
        el("script", raw(SCRIPT)),
    ]
    document = el("html", _head(title), el("body", join(body, "\n")), lang="en")
    return f"<!DOCTYPE html>\n{document}\n"


def _head(title: str) -> Html:
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    # Only our own script may run, and nothing may be fetched: a second fence behind the escaping.
    rules = ["default-src 'none'", "style-src 'unsafe-inline'", "img-src data:"]
    policy = "; ".join([*rules, f"script-src 'sha256-{digest}'"])
    return el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name_="viewport", content="width=device-width,initial-scale=1"),
        el("title", f"{title} · moejax report"),
        el("style", raw(style_sheet())),
    )


def _footer(content: Content) -> Html:
    return el(
        "footer",
        "Written by ",
        el("code", content.command),
        f" from files alone ({content.versions}). The same runs give the same page, byte for byte. "
        "Beside it: ",
        el("code", "report.json"),
        ", the numbers in ",
        el("code", "data/*.csv"),
        " and the pictures in ",
        el("code", "figures/*.png"),
        ".",
    )


def _title(runs: Sequence[View]) -> str:
    names = [text.shorten(v.name, 28) for v in runs]
    if len(names) > 6:
        return f"Comparing {len(names)} runs"
    return names[0] if len(names) == 1 else f"Comparing {text.listing(names)}"


def _summary(content: Content) -> Html:
    nothing = "Nothing is measured yet: no run has a validation loss or a routing file."
    found = el("ul", *(el("li", s) for s in content.findings), cls="findings")
    care = content.caveats or ["Nothing unusual was found in these runs."]
    split = el(
        "div",
        el(
            "div",
            el("h2", "What the numbers say"),
            found if content.findings else el("p", nothing, cls="empty"),
            cls="card",
        ),
        el(
            "div",
            el("h2", "Read with care"),
            el("ul", *(el("li", s) for s in care)),
            cls="card care",
        ),
        cls="split",
    )
    tiles = el("dl", *_tiles(content), cls="tiles")
    return el("section", tiles, split, id="summary", aria_label="Summary")


def _tiles(content: Content) -> list[Html]:
    runs = content.runs
    best = next(iter(ranking(list(runs))), None)
    done = sum(v.summary.state == "done" for v in runs)
    tokens = [v.summary.tokens for v in runs if math.isfinite(v.summary.tokens)]
    active = [v.summary.active_experts for v in runs if math.isfinite(v.summary.active_experts)]
    problems = sum(note.severity != "note" for note in content.notes)
    tiles = [
        (
            "Lowest validation loss",
            text.fixed(best.summary.loss) if best else text.MISSING,
            text.shorten(best.name, 30) if best else "no finite loss yet",
        ),
        ("Runs", str(len(runs)), "all finished" if done == len(runs) else f"{done} finished"),
        ("Training tokens", _span([text.short(v) for v in sorted(tokens)]), "per run"),
        (
            "Experts per token",
            _span([text.fixed(v, 2) for v in sorted(active)]),
            "per MoE layer, measured" if active else "no MoE run",
        ),
        (
            "Warnings",
            str(problems),
            "listed below" if problems else "every file was whole",
        ),
    ]
    return [
        el("div", el("dt", name), el("dd", value, el("small", more))) for name, value, more in tiles
    ]


def _span(shown: Sequence[str]) -> str:
    if not shown:
        return text.MISSING
    return shown[0] if shown[0] == shown[-1] else f"{shown[0]}–{shown[-1]}"


def _runs(runs: Sequence[View]) -> Html:
    facts = [item for c in tables.COLUMNS for item in (el("dt", c.head), el("dd", c.help))]
    return section(
        "runs",
        "Runs",
        caption(
            "One row per run, final or newest values. Green marks the best of a column among runs "
            "on the same text. Measured means counted from the experts that tokens really used, "
            "not from the configuration."
        ),
        tables.runs_table(runs),
        el(
            "div",
            fold("What the columns mean", el("dl", *facts, cls="facts")),
            link("data/runs.csv", "CSV with all columns"),
            cls="more",
        ),
    )


def _notes(notes: Sequence[Note]) -> Html:
    title = "Warnings and exclusions"
    if not notes:
        whole = "Every file of every run was whole and read."
        return section("notes", title, caption(whole))
    rows = [
        (
            el("span", note.severity, cls=f"badge {note.severity}"),
            text.shorten(note.run, 60),
            el("code", note.where),
            note.what,
        )
        for note in notes
    ]
    intro = "What was left out or must be read with care. Nothing is dropped silently."
    table = tables.table(("Kind", "Run", "File", "What"), rows, "Warnings")
    csv = el("div", link("data/notes.csv", "CSV"), cls="more")
    return section("notes", title, caption(intro), el("div", table, cls="wrap"), csv)


def _provenance(content: Content) -> Html:
    origins = [_origin(view) for view in content.runs]
    more: Html | None = None
    if len(origins) > PANELS_OPEN:
        more = fold(f"{len(origins) - PANELS_OPEN} more runs", *origins[PANELS_OPEN:])
    return section("provenance", "Provenance", *_config(content.runs), *origins[:PANELS_OPEN], more)


def _config(views: Sequence[View]) -> list[Html]:
    if len(views) == 1:
        return [caption("One run: there is nothing to compare its configuration with.")]
    different = differences([v.run for v in views])
    if not different:
        return [caption("The saved configurations do not differ.")]
    header = ["key", *(text.shorten(v.name, 40) for v in views)]
    rows = [(el("code", key), *values) for key, values in different[:400]]
    knobs = text.count(len(different), "knob")
    intro = f"{knobs} that differ between the runs; all others are equal."
    table = el("div", tables.table(header, rows, "Configuration differences"), cls="wrap")
    csv = el("div", link("data/config-diff.csv", "CSV"), cls="more")
    return [caption(intro), table, csv]


def _origin(view: View) -> Html:
    facts = []
    for key, value in origin(view.run).items():
        if value:
            code = key in ("path", "command")
            facts += [el("dt", key), el("dd", el("code", value) if code else value)]
    return fold(view.name, el("dl", *facts, cls="facts"), cls="origin")
