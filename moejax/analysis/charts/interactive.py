"""Charts as JSON for the page: traces and layout of plotly.js, and our own form for the rest.

Colours are written `var(--name)` or `var(--name,opacity)`: the page's script puts the theme's
values in their place, also when the theme changes. plotly.js reads some HTML in every text it
draws, so names are escaped here (`inert`); texts that the script itself sets are left as they are.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moejax.analysis import text
from moejax.analysis.charts import theme
from moejax.analysis.charts.scales import Scale
from moejax.analysis.charts.spec import Axis, Chart, Drawable, Flow, Grid, Maps, Series, Words

MAP_CELLS = 2_000_000  # of all heat maps of one figure in the page: 5.4 MB
WHOLE_TICKS = 14
_MISSING = 65535
_MARKERS = {
    "o": "circle",
    "s": "square",
    "^": "triangle-up",
    "D": "diamond",
    "v": "triangle-down",
    "P": "cross",
    "X": "x",
}


def encode(drawable: Drawable) -> dict[str, Any]:
    """What the page's script needs to draw it; the same for the same chart, to the byte."""
    if isinstance(drawable, Chart):
        return _chart(drawable)
    if isinstance(drawable, Maps):
        return _maps(drawable)
    return _flow(drawable) if isinstance(drawable, Flow) else _words(drawable)


def inert(value: str, limit: int = 80) -> str:
    """Text for plotly.js, which reads `<b>`, `<a>` and entities in it: shown, never markup."""
    shown = text.shorten(text.clean(value), limit)
    return shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def grids_kept(maps: Maps) -> int:
    """How many of the heat maps the page holds: as many as fit in `MAP_CELLS`, at least one."""
    total = 0
    for i, grid in enumerate(maps.grids):
        total += grid.value_RC.size
        if i and total > MAP_CELLS:
            return i
    return len(maps.grids)


def numbers(values: ArrayLike) -> list[float | None]:
    """Six significant digits, which no screen shows; null where not finite."""
    return [
        float(f"{v:.6g}") if math.isfinite(v) else None for v in np.asarray(values, float).tolist()
    ]


# ---- charts --------------------------------------------------------------------------------------


def _chart(chart: Chart) -> dict[str, Any]:
    traces: list[dict[str, Any]] = []
    for one in chart.series:
        traces += _traces(one, chart)
    shapes = [_rule_line(rule.value, rule.along) for rule in chart.rules]
    notes = [_rule_label(r.value, r.label, r.along, chart) for r in chart.rules]
    layout: dict[str, Any] = {
        "xaxis": _axis(chart.x, [one.x_N for one in chart.series]),
        "yaxis": _axis(chart.y, [one.y_N for one in chart.series]),
        "shapes": shapes,
        "annotations": notes,
    }
    if not chart.y.ticks:
        # Above the axis, readable without turning the head; no tilted title.
        del layout["yaxis"]["title"]
        layout["title"] = {"text": inert(chart.y.label), "x": 0, "xref": "paper", "xanchor": "left"}
    if any(one.kind == "bars" for one in chart.series):
        layout |= {"barmode": "group", "bargap": 0.16}
    return {"type": "chart", "data": traces, "layout": layout, "height": chart.height}


def _traces(one: Series, chart: Chart) -> list[dict[str, Any]]:
    style = theme.style(one.look)
    color = f"var(--s{one.look % len(theme.SERIES)})"
    soft = f"{color[:-1]},.16)"
    base: dict[str, Any] = {
        "type": "scatter",
        "name": inert(one.name),
        "legendgroup": one.name,
        "x": numbers(one.x_N),
        "y": numbers(one.y_N),
    }
    told = _told(one, chart)
    base |= {"customdata": told} if told else {}
    where = "%{customdata}" if told else _spot(chart)
    base["hovertemplate"] = f"{where}<extra>%{{fullData.name}}</extra>"
    marker = {
        "symbol": _MARKERS[style.marker],
        "color": color,
        "size": 8,
        "line": {"color": "var(--halo)", "width": 1},
    }
    interval = one.low_N is not None and one.high_N is not None
    if one.kind == "thin":
        line = {"color": f"{color[:-1]},.6)", "width": 1}
        return [base | {"mode": "lines", "line": line, "hoverinfo": "skip", "hovertemplate": None}]
    if one.kind == "line":
        line = {"color": color, "width": 2, "dash": style.dash_css.replace(" ", "px,") + "px"}
        line |= {"dash": "solid"} if not style.dash_css else {}
        main = base | {"mode": "lines+markers", "line": line, "marker": marker}
        main["marker"] = marker | {"maxdisplayed": 14}
        if not interval:
            return [main]
        edge = {**base, "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
        del edge["hovertemplate"]
        low = edge | {"y": numbers(one.low_N)}  # type: ignore[arg-type]
        high = edge | {"y": numbers(one.high_N), "fill": "tonexty", "fillcolor": soft}  # type: ignore[arg-type]
        return [low, high, main]
    if one.kind == "bars":
        main = base | {"type": "bar", "marker": {"color": color}}
    else:
        main = base | {"mode": "markers+text" if one.written else "markers", "marker": marker}
        if one.written:
            main |= {"text": [inert(n, 28) for n in one.notes], "textposition": "top right"}
    if interval:
        main["error_x" if one.sideways else "error_y"] = _error(one, color)
    return [main]


def _error(one: Series, color: str) -> dict[str, Any]:
    middle = one.x_N if one.sideways else one.y_N
    assert one.low_N is not None and one.high_N is not None
    return {
        "type": "data",
        "symmetric": False,
        "array": numbers(np.nan_to_num(one.high_N - middle).clip(0)),
        "arrayminus": numbers(np.nan_to_num(middle - one.low_N).clip(0)),
        "color": "var(--fg,.7)" if one.kind == "bars" else color,
        "thickness": 1.5,
        "width": 0,
    }


def _told(one: Series, chart: Chart) -> list[str]:
    """Under the pointer: the note of each point, or the category that a place stands for."""
    if one.notes:
        return [inert(note, 200) for note in one.notes]
    ticks = chart.x.ticks or chart.y.ticks
    if not ticks or (one.kind == "line" and len(ticks) != one.x_N.size):
        return []
    along, value = (one.x_N, one.y_N) if chart.x.ticks else (one.y_N, one.x_N)
    places = np.array([place for place, _ in ticks])
    near = np.abs(along[:, None] - places).argmin(1)
    shown = [f"{ticks[i][1]}: {v:.4g}" for i, v in zip(near, value, strict=True)]
    if one.low_N is not None and one.high_N is not None:
        ends = zip(shown, one.low_N, one.high_N, strict=True)
        shown = [f"{s} ({a:.4g} to {b:.4g})" if math.isfinite(a) else s for s, a, b in ends]
    return [inert(s, 200) for s in shown]


def _spot(chart: Chart) -> str:
    return f"{inert(chart.x.label, 40)} %{{x:.4~s}}<br>{inert(chart.y.label, 40)} %{{y:.4~g}}"


def _axis(axis: Axis, values: Sequence[NDArray]) -> dict[str, Any]:
    label = axis.label + (" (log scale)" if axis.log else "")
    shown: dict[str, Any] = {"title": {"text": inert(label, 90)}}
    low, high = _ends(axis, values)
    if axis.log:
        # 1, 2, 5, 10 over a few decades, powers of 10 over many.
        shown |= {"type": "log", "dtick": "D2" if low > 0 and high / low < 300 else 1}
    ends = [_scaled(v, axis.log) for v in (axis.low, axis.high)]
    if any(end is not None for end in ends):
        # plotly.js finds an end that is null.
        shown["range"] = ends[::-1] if axis.reverse else ends
    elif axis.reverse:
        shown["autorange"] = "reversed"
    if axis.ticks:
        shown |= {
            "tickmode": "array",
            "tickvals": [place for place, _ in axis.ticks],
            "ticktext": [inert(label, 26) for _, label in axis.ticks],
        }
    elif axis.whole:
        shown |= {"tickformat": "d", **({"dtick": 1} if high - low <= WHOLE_TICKS else {})}
    return shown


def _ends(axis: Axis, values: Sequence[NDArray]) -> tuple[float, float]:
    """What the axis spans: its limits, else those of the values."""
    found = np.concatenate([np.zeros(0), *values])
    low = axis.low if math.isfinite(axis.low) else float(found.min(initial=math.inf))
    high = axis.high if math.isfinite(axis.high) else float(found.max(initial=-math.inf))
    return low, high


def _scaled(value: float, log: bool) -> float | None:
    if not math.isfinite(value) or (log and value <= 0):
        return None
    return float(f"{math.log10(value) if log else value:.6g}")


def _rule_line(value: float, along: str) -> dict[str, Any]:
    line = {"color": "var(--base)", "width": 1.2, "dash": "dot"}
    own, other = ("x", "y") if along == "x" else ("y", "x")
    place = {f"{own}0": value, f"{own}1": value, f"{other}0": 0, f"{other}1": 1}
    return {"type": "line", f"{other}ref": "paper", "line": line, "layer": "below", **place}


def _rule_label(value: float, label: str, along: str, chart: Chart) -> dict[str, Any]:
    log = chart.x.log if along == "x" else chart.y.log
    at = math.log10(value) if log else value
    place: dict[str, Any] = {"x": 1, "xref": "paper", "y": at, "xanchor": "right"}
    if along == "x":
        place = {"x": at, "y": 1, "yref": "paper", "xanchor": "left"}
    font = {"color": "var(--muted)", "size": 11}
    return {"text": inert(label), "showarrow": False, "yanchor": "bottom", "font": font, **place}


# ---- heat maps, flows, words ---------------------------------------------------------------------


def _maps(maps: Maps) -> dict[str, Any]:
    kept = maps.grids[: grids_kept(maps)]
    labels: dict[tuple[str, ...], int] = {}
    return {
        "type": "maps",
        "x": inert(maps.x),
        "y": inert(maps.y),
        "quantity": inert(maps.quantity),
        "scale": _scale(maps.scale),
        "difference": _scale(maps.difference) if maps.difference else None,
        "grids": [_grid(grid, labels) for grid in kept],
        "labels": [[inert(v, 26) for v in one] for one in labels],
    }


def _grid(grid: Grid, labels: dict[tuple[str, ...], int]) -> dict[str, Any]:
    """The values as 16-bit steps between 0 and the largest: 1/65534 of it is the error."""
    value, low, step = pack(grid.value_RC)
    return {
        "name": grid.name,
        "note": grid.note,
        "alt": grid.alt,
        "shape": list(grid.value_RC.shape),
        "low": low,
        "step": step,
        "values": value,
        "rows": labels.setdefault(grid.rows, len(labels)),
        "columns": labels.setdefault(grid.columns, len(labels)),
    }


def pack(values: NDArray) -> tuple[str, float, float]:
    """(base64 of little-endian uint16 codes, low, step): value = low + code·step, 65535 is NaN.

    Zero stays exactly 0, so that "no token" is not mistaken for few.
    """
    array = np.asarray(values, np.float64)
    finite = array[np.isfinite(array)]
    low = min(float(finite.min(initial=0.0)), 0.0)
    high = float(finite.max(initial=0.0))
    step = (high - low) / (_MISSING - 2) or 1.0
    if low < 0:  # a whole number of steps below 0
        low = -math.ceil(-low / step) * step
    codes = np.round((np.where(np.isfinite(array), array, low) - low) / step)
    few = (array > 0) & (codes == 0) & (low == 0)
    codes = np.where(np.isfinite(array), np.where(few, 1, codes), _MISSING)
    body = base64.b64encode(codes.astype("<u2").tobytes()).decode()
    return body, low, step


def _scale(scale: Scale) -> dict[str, Any]:
    return {
        "edges": list(scale.edges),
        "colors": [f"var(--{name})" for name in scale.colors],
        "labels": list(scale.labels),
        "zero": scale.zero,
    }


def _flow(flow: Flow) -> dict[str, Any]:
    columns = max(1, len(flow.columns) - 1)
    color = [f"var(--s{node.look % len(theme.SERIES)})" for node in flow.nodes]
    source, target, weight = zip(*flow.links, strict=True) if flow.links else ((), (), ())
    trace = {
        "type": "sankey",
        "arrangement": "snap",
        "node": {
            "label": [inert(node.name, 24) for node in flow.nodes],
            "x": [min(0.999, max(0.001, node.column / columns)) for node in flow.nodes],
            "color": color,
            "line": {"width": 0},
            "pad": 8,
            "thickness": 14,
            "hovertemplate": "%{label}: %{value:.4~g}<extra></extra>",
        },
        "link": {
            "source": list(source),
            "target": list(target),
            "value": numbers(weight),
            "color": [f"{color[i][:-1]},.35)" for i in source],
            "hovertemplate": "%{source.label} → %{target.label}: %{value:.4~g}<extra></extra>",
        },
    }
    return {"type": "chart", "data": [trace], "layout": {}, "height": flow.height}


def _words(words: Words) -> dict[str, Any]:
    """The first shade is in the page as markup; here are all, by level and note."""
    return {
        "type": "words",
        "shades": [
            {
                "name": shade.name,
                "levels": shade.scale.level(shade.value_T).tolist(),
                "scale": _scale(shade.scale),
                "notes": [text.clean(note) for note in shade.notes],
            }
            for shade in words.shades
        ],
    }


def legend_scale(scale: Scale) -> Sequence[tuple[str, str]]:
    """(CSS colour, label) of each level, for a legend in HTML."""
    return [(f"var(--{n})", label) for n, label in zip(scale.colors, scale.labels, strict=True)]
