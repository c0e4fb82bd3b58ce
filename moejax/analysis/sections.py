"""Sections of the page: the common parts, and the section of a figure."""

from __future__ import annotations

from collections.abc import Sequence

from moejax.analysis import keys, tables, text
from moejax.analysis.figures.base import Figure, Panel
from moejax.analysis.html import Html, el, join, raw

PANELS_OPEN = 12
CELLS_SHOWN = 1200


def section(key: str, title: str, *children: object) -> Html:
    """A card with a heading."""
    return el("section", el("h2", title), *children, cls="card", id=key)


def fold(summary: str, *children: object, cls: str | None = None) -> Html:
    """A part that opens on demand, without script."""
    return el("details", el("summary", summary), *children, cls=cls)


def caption(sentence: str) -> Html:
    """The grey paragraph under a heading."""
    return el("p", sentence, cls="caption")


def link(path: str, label: str) -> Html:
    """A link to a file beside the page."""
    return el("a", label, href=path, download=True)


def figure_section(figure: Figure) -> Html:
    """A figure: caption, legend, pictures (in tabs if there are several), numbers."""
    legend: Html | None = None
    if figure.empty:
        body = el("p", figure.empty, cls="empty")
    else:
        if figure.legend == "runs":
            legend = keys.runs_legend(figure.drawn)
        elif figure.legend == "load":
            legend = keys.load_legend()
        body = _tabs(figure) if len(figure.tabs) > 1 else _panels(figure.tabs[0][1])
    return section(
        figure.key, figure.title, caption(figure.caption), legend, body, _numbers(figure)
    )


def _tabs(figure: Figure) -> Html:
    tabs = (
        el(
            "div",
            el("h3", f"Against {label}"),
            _panels(panels),
            cls="tab",
            id=f"{figure.key}-{i}",
            data_label=label,
        )
        for i, (label, panels) in enumerate(figure.tabs)
    )
    return el("div", *tabs, data_tabs=figure.title)


def _panels(panels: Sequence[Panel]) -> Html:
    drawn = [el("figure", el("h3", p.title), raw(p.svg)) for p in panels]
    shown = el("div", *drawn[:PANELS_OPEN], cls="panels")
    if len(drawn) <= PANELS_OPEN:
        return shown
    rest = el("div", *drawn[PANELS_OPEN:], cls="panels")
    return join([shown, fold(f"{len(drawn) - PANELS_OPEN} more", rest)])


def _numbers(figure: Figure) -> Html:
    header, rows = figure.rows[0], figure.rows[1:]
    csv = link(f"data/{figure.key}.csv", "CSV")
    if not rows:
        return el("div", csv, cls="more")
    shown = max(2, CELLS_SHOWN // len(header))
    some = text.count(len(rows), "row")
    if len(rows) > shown:
        some = f"first {shown:,} of {some}"
    table = tables.table(header, rows[:shown], f"Numbers behind {figure.title}")
    pictures = [
        link(f"figures/{p.key}.png", f"{tab}: {p.title}" if tab else p.title)
        for tab, panels in figure.tabs
        for p in panels[:PANELS_OPEN]
    ]
    return el(
        "div",
        fold(f"The numbers ({some})", table),
        csv,
        fold("Pictures (PNG)", el("p", join(pictures, " · "))) if pictures else None,
        cls="more",
    )
