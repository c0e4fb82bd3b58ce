"""Sections of the page: the common parts, and the section of a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moejax.analysis import text
from moejax.analysis.charts.interactive import encode, grids_kept
from moejax.analysis.charts.scales import BLANK
from moejax.analysis.charts.spec import Drawable, Maps, Words, legend
from moejax.analysis.figures.base import Figure
from moejax.analysis.page import keys, tables
from moejax.analysis.page.html import Html, el, join, raw

CELLS_SHOWN = 1200  # of the numbers under a figure; the CSV has all
MAPS_OPEN = 12  # heat maps that stand in the page as pictures; all are files
STRONG = 5  # levels above this need light text

Drawings = Mapping[str, Sequence[tuple[str, str, str]]]


def section(key: str, title: str, *children: object) -> Html:
    """A card with a heading."""
    return el("section", el("h2", title), *children, cls="card", id=key)


def fold(summary: str, *children: object, cls: str | None = None, opened: bool = False) -> Html:
    """A part that opens on demand, without script."""
    return el("details", el("summary", summary), *children, cls=cls, open=opened)


def caption(sentence: str) -> Html:
    """The grey paragraph under a heading."""
    return el("p", sentence, cls="caption")


def link(path: str, label: str) -> Html:
    """A link to a file beside the page."""
    return el("a", label, href=path, download=True)


def figure_section(figure: Figure, drawings: Drawings) -> Html:
    """A figure: caption, legend, charts (in tabs if there are several), numbers.

    `drawings` has, per chart, (key of the files, title, SVG) of each of its pictures.
    """
    whole = legend([chart for _, chart in figure.charts])
    if len(figure.tabs) > 1:
        body = _tabs(figure, drawings, whole is None)
    else:
        body = _charts(figure, figure.tabs[0][1], drawings, whole is None)
    shown = keys.series_legend(whole) if whole else None
    numbers = _numbers(figure, drawings)
    return section(figure.key, figure.title, caption(figure.caption), shown, body, numbers)


def figure_data(figure: Figure) -> Html:
    """The charts of a figure as JSON, read by the script when the figure comes into view."""
    data = {chart.key: encode(chart) for _, chart in figure.charts}
    body = raw(text.script_json(data))
    return el("script", body, type="application/json", id=f"data-{figure.key}")


def not_drawn(figures: Sequence[Figure]) -> Html | None:
    """One line per figure whose data these runs do not have; None if there is none."""
    lines = [el("li", el("b", f.title), f": {f.empty}.") for f in figures if f.empty]
    if not lines:
        return None
    intro = "These figures need data that the given runs do not have."
    return section("not-drawn", "Not drawn, because", caption(intro), el("ul", *lines, cls="plain"))


def _tabs(figure: Figure, drawings: Drawings, own_legends: bool) -> Html:
    tabs = (
        el(
            "div",
            el("h3", label),
            _charts(figure, charts, drawings, own_legends),
            cls="tab",
            id=f"{figure.key}-tab-{i}",
            data_label=label,
        )
        for i, (label, charts) in enumerate(figure.tabs)
    )
    return el("div", *tabs, data_tabs=figure.title)


def _charts(
    figure: Figure, charts: Sequence[Drawable], drawings: Drawings, own_legends: bool
) -> Html:
    drawn = (_chart(figure, chart, drawings[chart.key], own_legends) for chart in charts)
    alone = "panels wide" if isinstance(charts[0], Maps | Words) else "panels single"
    return el("div", *drawn, cls=alone if len(charts) == 1 else "panels")


def _chart(
    figure: Figure, chart: Drawable, pictures: Sequence[tuple[str, str, str]], own_legend: bool
) -> Html:
    svgs = [(title, raw(svg)) for _, title, svg in pictures if svg]
    parts: list[Html | None] = []
    label: str | None = chart.alt
    if isinstance(chart, Maps):
        name = f"Colours: {chart.quantity}"
        parts.append(keys.scale_legend(chart.scale, name))
        maps = [el("figure", el("h3", title), svg) for title, svg in svgs[:MAPS_OPEN]]
        shown = el("div", *maps, cls="panels")
        parts.append(fold("Pictures side by side", shown, opened=True) if maps else None)
        kept = grids_kept(chart)
        if kept < len(chart.grids):
            cut = f"The picker has the first {kept} of {len(chart.grids)}; the CSV has all."
            parts.append(caption(cut))
    elif isinstance(chart, Words):
        parts.append(keys.scale_legend(chart.shades[0].scale, "Colours"))
        parts.append(_words(chart))
    else:
        entries = legend([chart]) if own_legend else None
        parts.append(keys.series_legend(entries) if entries and len(entries) > 1 else None)
        parts.append(svgs[0][1] if svgs else None)
    interactive = el(
        "div",
        *parts,
        cls="chart",
        data_figure=figure.key,
        data_chart=chart.key,
        role="group",
        aria_label=label,
        tabindex=None if isinstance(chart, Maps | Words) else 0,
    )
    return el("figure", el("h3", chart.title) if chart.title else None, interactive)


def _words(words: Words) -> Html:
    """The tokens in the first shade; the colour of each is a variable of the theme."""
    shade = words.shades[0]
    levels = shade.scale.level(shade.value_T).tolist()
    notes = shade.notes or ("",) * len(words.pieces)
    spans = []
    for piece, level, note in zip(words.pieces, levels, notes, strict=True):
        style = None if level == BLANK else f"background:var(--{shade.scale.colors[level]})"
        strong = "strong" if level > STRONG else None
        spans.append(el("span", text.clean(piece, 60), style=style, cls=strong, title=note or None))
    return el("p", *spans, cls="words")


def _numbers(figure: Figure, drawings: Drawings) -> Html:
    header, rows = figure.rows[0], figure.rows[1:]
    csv = link(f"data/{figure.key}.csv", "CSV")
    shown = max(2, CELLS_SHOWN // len(header))
    some = text.count(len(rows), "row")
    if len(rows) > shown:
        some = f"first {shown:,} of {some}"
    table = tables.table(header, rows[:shown], f"Numbers behind {figure.title}")
    pictures = []
    for tab, chart in figure.charts:
        for key, title, svg in drawings[chart.key][:MAPS_OPEN]:
            if svg:
                name = " ".join(word for word in (f"{tab}:" if tab else "", title) if word)
                pictures.append(join([f"{name or figure.title} ", _files(key)]))
    return el(
        "div",
        fold(f"The numbers ({some})", table),
        csv,
        fold("Pictures (PNG, PDF)", el("p", join(pictures, " · "))) if pictures else None,
        cls="more",
    )


def _files(key: str) -> Html:
    kinds = (link(f"figures/{key}.{kind}", kind.upper()) for kind in ("png", "pdf"))
    return join(kinds, " ")
