"""Legends as HTML: they wrap on a phone and follow the theme."""

from __future__ import annotations

from collections.abc import Sequence

from moejax.analysis import text
from moejax.analysis.charts import theme
from moejax.analysis.charts.interactive import legend_scale
from moejax.analysis.charts.scales import Scale
from moejax.analysis.page.html import Html, el, raw

_SHAPES = {
    "o": "M11.4 7a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0-7.2 0z",
    "s": "M11.8 3.8h6.4v6.4h-6.4z",
    "^": "M15 2.8l4.2 7.4h-8.4z",
    "D": "M15 2.6l4.4 4.4-4.4 4.4-4.4-4.4z",
    "v": "M15 11.2l4.2-7.4h-8.4z",
    "P": "M13.6 3h2.8v2.6h2.6v2.8h-2.6V11h-2.8V8.4H11V5.6h2.6z",
    "X": "M12.4 3L15 5.4 17.6 3 19 4.4 16.6 7 19 9.6 17.6 11 15 8.6 12.4 11 11 9.6 13.4 7 11 4.4z",
}


def run_key(index: int) -> Html:
    """The line sample of a look: colour, dash and marker."""
    look = theme.style(index)
    return el(
        "svg",
        el("path", d="M1 7h28", style=f"stroke:{look.css}", stroke_dasharray=look.dash_css or None),
        el("path", cls="mark", d=_SHAPES[look.marker], style=f"fill:{look.css}"),
        cls="key",
        viewBox="0 0 30 14",
        aria_hidden="true",
    )


def series_legend(entries: Sequence[tuple[str, int]]) -> Html:
    """Which line is which; the page's script makes each entry a switch."""
    items = (
        el("li", run_key(look), el("span", text.shorten(name, 40)), title=name, data_name=name)
        for name, look in entries
    )
    return el("ul", *items, cls="legend", aria_label="Legend")


def scale_legend(scale: Scale, label: str) -> Html:
    """The colour scale of a heat map, with its numbers."""
    items = (
        el("li", el("span", raw(""), style=f"background:{color}"), shown)
        for color, shown in legend_scale(scale)
    )
    return el("ol", *items, cls="scale", aria_label=label)
