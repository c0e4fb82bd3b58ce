"""matplotlib figure -> a small, deterministic, themable SVG for the page, a PNG and a PDF."""

from __future__ import annotations

import dataclasses
import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from html import escape

import matplotlib
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as MplFigure

from moejax.analysis.charts import theme

DPI = 144
_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_DROP = {"metadata", "style", "title", "desc"}
_KEEP_STYLE = {
    "fill",
    "fill-opacity",
    "stroke",
    "stroke-width",
    "stroke-opacity",
    "stroke-dasharray",
    "stroke-linecap",
    "stroke-linejoin",
    "opacity",
    "font-size",
    "font-weight",
    "text-anchor",
    "image-rendering",
}
# An artist with this gid is drawn only in that theme of the page; files have the light one.
DARK_ONLY, LIGHT_ONLY = "dark-only", "light-only"


@dataclasses.dataclass(frozen=True)
class Drawing:
    """One picture in its three forms; the PNG and the PDF also have the title and the legend."""

    svg: str
    png: bytes
    pdf: bytes


def render(
    figure: MplFigure,
    key: str,
    alt: str,
    *,
    title: str = "",
    legend: Sequence[tuple[Artist, str]] = (),
) -> Drawing:
    """Draws. `key` makes ids unique in the page and seeds the hashes of matplotlib.

    `title` and `legend` are added to PNG and PDF only: the page has both outside of the picture.
    """
    # The canvases are called directly: `savefig` lays out and draws everything twice.
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": f"moejax-{key}"}):
        FigureCanvasSVG(figure).print_svg(stream, metadata={"Date": None, "Creator": None})
    svg = _clean(stream.getvalue(), key, alt)
    for artist in figure.findobj(lambda a: a.get_gid() == DARK_ONLY):
        artist.set_visible(False)
    figure.set_layout_engine("none")  # laid out by now, and the others keep the places
    _frame(figure, title, legend)
    figure.set_facecolor("white")
    document, picture = io.BytesIO(), io.BytesIO()
    undated = {"CreationDate": None, "Creator": None, "Producer": None}
    FigureCanvasPdf(figure).print_pdf(document, metadata=undated)
    figure.set_dpi(DPI)
    FigureCanvasAgg(figure).print_png(picture, metadata={"Software": None})
    return Drawing(svg, picture.getvalue(), document.getvalue())


def _frame(figure: MplFigure, title: str, legend: Sequence[tuple[Artist, str]]) -> None:
    """Makes room above for the title and below for the legend, around the axes as they are."""
    longest = max((len(label) for _, label in legend), default=1)
    columns = max(1, min(len(legend), 72 // (longest + 6)))
    above = 0.32 if title else 0.0
    below = 0.08 + 0.21 * -(-len(legend) // columns) if legend else 0.0
    width, height = figure.get_size_inches()
    whole = height + above + below
    places = [axes.get_position() for axes in figure.axes]
    figure.set_size_inches(width, whole)
    for axes, place in zip(figure.axes, places, strict=True):
        bottom = (place.y0 * height + below) / whole
        axes.set_position((place.x0, bottom, place.width, place.height * height / whole))
    if title:
        top = 1 - 0.09 / whole
        figure.text(0.02, top, title, fontsize=12, fontweight="bold", ha="left", va="top")
    if legend:
        handles, labels = zip(*legend, strict=True)
        figure.legend(handles, labels, loc="lower left", ncols=columns, fontsize=9)


def _clean(source: str, key: str, alt: str) -> str:
    """Keeps what draws, colours by variable, and leaves ids only where something points at them."""
    root = ET.fromstring(source)
    used: dict[str, str] = {}
    for node in root.iter():
        for name, value in node.attrib.items():
            for target in re.findall(r"url\(#([^)]+)\)", value) or (
                [value[1:]] if _local(name) == "href" and value.startswith("#") else []
            ):
                used.setdefault(target, f"{key}-{len(used)}")
    view = root.get("viewBox", "0 0 1 1")
    out = [
        f'<svg class="plot" viewBox="{escape(view)}" role="img" aria-label="{escape(alt)}" '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    ]
    colors = theme.sentinels()
    for child in root:
        _write(child, out, used, colors)
    return "".join([*out, "</svg>"])


def _write(
    node: ET.Element,
    out: list[str],
    used: Mapping[str, str],
    colors: Mapping[str, str],
) -> None:
    tag = _local(node.tag)
    if tag in _DROP:
        return
    attributes = {}
    for full, value in node.attrib.items():
        name = _local(full)
        if name == "id":
            if value in used:
                attributes["id"] = used[value]
            elif value in (DARK_ONLY, LIGHT_ONLY):
                attributes["class"] = value
        elif name == "style":
            if style := _style(value, colors):
                attributes["style"] = style
        elif name == "href":
            plain = value.replace("\n", "").replace(" ", "")
            # xlink: standalone viewers of SVG 1.1 know no other href.
            attributes["xlink:href"] = f"#{used[value[1:]]}" if value[:1] == "#" else plain
        elif name == "clip-path":
            attributes[name] = re.sub(r"#([^)]+)", lambda m: f"#{used[m[1]]}", value)
        elif not (name == "transform" and value.startswith("rotate(-0 ")):
            attributes[name] = _NUMBER.sub(_round, " ".join(value.split()))
    inside: list[str] = []
    if node.text and node.text.strip():
        inside.append(escape(node.text, quote=False))
    for child in node:
        _write(child, inside, used, colors)
    if not inside and tag in ("g", "defs"):
        return
    if tag == "g" and not attributes:
        out.extend(inside)
        return
    start = " ".join([tag, *(f'{k}="{escape(v)}"' for k, v in attributes.items())])
    out.extend([f"<{start}>", *inside, f"</{tag}>"] if inside else [f"<{start}/>"])


def _style(value: str, colors: Mapping[str, str]) -> str:
    """Drops fonts (the page's are used) and defaults, rounds, and puts variables for sentinels."""
    kept = []
    for part in value.split(";"):
        name, _, setting = (piece.strip() for piece in part.partition(":"))
        if name in _KEEP_STYLE:
            if name == "font-size":
                # The page enlarges text on phones, where the whole picture is small.
                setting = f"calc({setting}*var(--zoom,1))"
            kept.append(f"{name}:{colors.get(setting, _NUMBER.sub(_round, setting))}")
    return ";".join(kept)


def _round(match: re.Match[str]) -> str:
    return f"{float(match[0]):.2f}".rstrip("0").rstrip(".")


def _local(name: str) -> str:
    return name.rpartition("}")[2]
