"""The page: one HTML file, no network, readable without script, safe by `html.el`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from moejax.analysis import text
from moejax.analysis.figures.base import Figure
from moejax.analysis.figures.loss import baselines
from moejax.analysis.finetuning.section import KEY as TABLE
from moejax.analysis.finetuning.section import table_section
from moejax.analysis.finetuning.study import Study
from moejax.analysis.page import assets, tables
from moejax.analysis.page.html import Html, el, join, raw
from moejax.analysis.page.sections import (
    Drawings,
    caption,
    figure_data,
    figure_section,
    fold,
    link,
    not_drawn,
    section,
)
from moejax.analysis.provenance import differences, origin
from moejax.analysis.runs import Note
from moejax.analysis.seeds import SeedGroup, seeds_section
from moejax.analysis.verdicts import CANNOT_TELL, DOES_NOT, HOLDS, Claim
from moejax.analysis.view import View, ranking

ORIGINS_OPEN = 12
NOTES_SHOWN = 400  # rows of the table of warnings; the CSV has all


@dataclasses.dataclass(frozen=True)
class Content:
    """Everything on the page; `data` goes into it as JSON, for whoever has only this file."""

    runs: Sequence[View]
    compared: str
    findings: Sequence[str]
    claims: Sequence[Claim]
    caveats: Sequence[str]
    seeds: Sequence[SeedGroup]
    finetuning: Study
    figures: Sequence[Figure]
    drawings: Drawings
    notes: Sequence[Note]
    command: str
    versions: str
    data: object


def render(content: Content) -> str:
    """The whole document."""
    means = seeds_section(content.seeds)
    finetuned = table_section(content.finetuning)
    lacking = not_drawn(content.figures)
    drawn = [figure for figure in content.figures if not figure.empty]
    sections = [
        ("summary", "Summary", _summary(content)),
        ("runs", "Runs", _runs(content.runs)),
        *([("seeds", "Seeds", means)] if means is not None else []),
        *([(TABLE, "Fine-tuned models", finetuned)] if finetuned is not None else []),
        *((f.key, f.title, figure_section(f, content.drawings)) for f in drawn),
        *([("not-drawn", "Not drawn", lacking)] if lacking is not None else []),
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
        el("div", raw(""), id="live", cls="unseen", aria_live="polite"),
    ]
    whole = raw(text.script_json(content.data))
    blocks = [
        el("script", whole, type="application/json", id="report-data"),
        *(figure_data(figure) for figure in drawn),
    ]
    library, script = assets.library(), assets.script()
    return assets.fill(
        {
            "policy": text.esc(assets.policy(library, script)),
            "title": text.esc(f"{title} · moejax report"),
            "style": assets.style_sheet(),
            "body": join(body, "\n"),
            "data": join(blocks, "\n"),
            "library": library,
            "script": script,
        }
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
        ", the pictures in ",
        el("code", "figures/*.png"),
        " and ",
        el("code", "*.pdf"),
        ", tables for papers in ",
        el("code", "tables/*.md"),
        " and ",
        el("code", "*.tex"),
        ". Charts: plotly.js (MIT licence), embedded.",
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
    return el("section", tiles, split, _claims(content.claims), id="summary", aria_label="Summary")


def _claims(claims: Sequence[Claim]) -> Html | None:
    if not claims:
        return None
    badges = {HOLDS: "✓", DOES_NOT: "✗", CANNOT_TELL: "?"}
    names = {HOLDS: "done", DOES_NOT: "failed", CANNOT_TELL: "unknown"}
    items = (
        el(
            "li",
            el("b", one.claim),
            f" {one.because}. ",
            el(
                "span",
                el("i", badges[one.verdict], aria_hidden="true"),
                " ",
                one.verdict,
                cls=f"badge {names[one.verdict]}",
            ),
        )
        for one in claims
    )
    intro = "Each claim is judged by the numbers alone: it holds, it does not, or they cannot tell."
    return el(
        "div",
        el("h2", "What these runs can tell"),
        caption(intro),
        el("ul", *items, cls="plain claims"),
        cls="card",
    )


def _tiles(content: Content) -> list[Html]:
    runs = content.runs
    best = next(iter(ranking(list(runs))), None)
    done = sum(v.summary.state == "done" for v in runs)
    tokens = [v.summary.tokens for v in runs if math.isfinite(v.summary.tokens)]
    active = [v.summary.active_experts for v in runs if math.isfinite(v.summary.active_experts)]
    seconds = [v.summary.elapsed for v in runs if math.isfinite(v.summary.elapsed)]
    machines = sorted({place for v in runs if (place := origin(v.run)["platform"])})
    machine_note = text.listing([text.shorten(m, 70) for m in machines], 2) or "none is recorded"
    lines = baselines(runs)
    problems = sum(note.severity != "note" for note in content.notes)
    tiles = [
        (
            "Lowest validation loss",
            text.fixed(best.summary.loss) if best else text.MISSING,
            text.shorten(best.name, 30) if best else "no finite loss yet",
        ),
        ("Runs", str(len(runs)), "all finished" if done == len(runs) else f"{done} finished"),
        ("Training tokens", _span([text.short(v) for v in sorted(tokens)]), "per run"),
        ("Wall time", _span([text.duration(v) for v in sorted(seconds)]), "training, per run"),
        ("Machines", str(len(machines)), machine_note),
        (
            "Baselines",
            " / ".join(text.fixed(value, 2) for _, value in lines) or text.MISSING,
            " / ".join(name for name, _ in lines) + " loss" if lines else "none is recorded",
        ),
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
        for note in notes[:NOTES_SHOWN]
    ]
    intro = "What was left out or must be read with care. Nothing is dropped silently."
    if len(notes) > NOTES_SHOWN:
        intro += f" The first {NOTES_SHOWN} of {len(notes):,}; the CSV has all."
    table = tables.table(("Kind", "Run", "File", "What"), rows, "Warnings")
    csv = el("div", link("data/notes.csv", "CSV"), cls="more")
    return section("notes", title, caption(intro), el("div", table, cls="wrap"), csv)


def _provenance(content: Content) -> Html:
    origins = [_origin(view) for view in content.runs]
    more: Html | None = None
    if len(origins) > ORIGINS_OPEN:
        more = fold(f"{len(origins) - ORIGINS_OPEN} more runs", *origins[ORIGINS_OPEN:])
    return section(
        "provenance", "Provenance", *_config(content.runs), *origins[:ORIGINS_OPEN], more
    )


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
