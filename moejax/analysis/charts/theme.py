"""Colours, dashes and markers of the report, in a light and a dark theme.

A figure is drawn once, in the light colours. They double as sentinels: `svg.render` replaces each
by its CSS variable, so the same picture follows the page's theme; files keep the light colours.
Hues are those of Okabe and Ito (2008), darkened or lightened until every series has a contrast of
at least 3:1 on its background (test_analysis_theme.py); dash and marker differ as well.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

import matplotlib
import matplotlib.style

LIGHT_PAGE, DARK_PAGE = "#ffffff", "#14181d"

# role -> (light, dark)
INK = {
    "fg": ("#1d2327", "#e9ecef"),
    "muted": ("#59626d", "#a3adb8"),
    "grid": ("#e4e7eb", "#2c333b"),
    "base": ("#6f7882", "#8d97a3"),
    "halo": ("#fdfefe", "#14191d"),
    "band": ("#f5f7f9", "#1a2027"),
}
SERIES = (
    ("#0072b2", "#5aaeea"),  # blue
    ("#d55e00", "#ff8c50"),  # vermillion
    ("#00835f", "#2cc79c"),  # bluish green
    ("#b3528a", "#e493c4"),  # reddish purple
    ("#a86c00", "#ecb64e"),  # orange
    ("#3587bd", "#a6d8f7"),  # sky blue
    ("#4a525b", "#bac2cb"),  # slate
)
# Diverging, from unused over balanced (neutral) to overloaded; upper edges of u = f * E.
HEAT_EDGES = (0.25, 0.5, 1 / 1.4, 1 / 1.1, 1.1, 1.4, 2.0, 4.0)
HEAT_LABELS = ("< ¼", "¼–½", "½–0.71", "0.71–0.91", "0.91–1.1", "1.1–1.4", "1.4–2", "2–4", "> 4")
HEAT = (
    ("#16578f", "#a9d6f9"),
    ("#4f92c6", "#5a9fd4"),
    ("#9cc4e2", "#35699a"),
    ("#d3e4f1", "#28435b"),
    ("#f1f2f0", "#2b3036"),
    ("#fadfc3", "#553c28"),
    ("#f3b577", "#8c5822"),
    ("#dc7a30", "#d28437"),
    ("#a3430b", "#ffcb96"),
)
DEAD = ("#8f2d6b", "#f07fc6")


def _blend(a: str, b: str, share: float) -> str:
    pairs = zip(bytes.fromhex(a[1:]), bytes.fromhex(b[1:]), strict=True)
    return "#" + "".join(f"{round(x + (y - x) * share):02x}" for x, y in pairs)


# From nothing to much: the blue arm of HEAT, in nine steps.
SEQUENCE = tuple(
    tuple(_blend(HEAT[4 - i // 2][w], HEAT[4 - (i + 1) // 2][w], 0.5) for w in (0, 1))
    for i in range(9)
)
# Names of heat map colours -> (light, dark)
LEVELS = {
    **{f"h{i}": pair for i, pair in enumerate(HEAT)},
    **{f"q{i}": pair for i, pair in enumerate(SEQUENCE)},
    "dead": DEAD,
}
# (dash for matplotlib, SVG dash array of the key)
_DASHES = (
    ("-", ""),
    ((0, (5, 2)), "5 2"),
    ((0, (1.2, 1.6)), "1.5 2"),
    ((0, (7, 2, 1.5, 2)), "7 2 2 2"),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@dataclasses.dataclass(frozen=True)
class Style:
    """How one run is drawn in every figure."""

    color: str
    css: str
    dash: Any
    dash_css: str
    marker: str


def style(index: int) -> Style:
    """The style of the index-th run: colour cycles by 7; dash and marker shift with each round."""
    number = index % len(SERIES)
    turn = index + index // len(SERIES)
    dash, dash_css = _DASHES[turn % len(_DASHES)]
    return Style(
        SERIES[number][0], f"var(--s{number})", dash, dash_css, MARKERS[turn % len(MARKERS)]
    )


def sentinels() -> dict[str, str]:
    """Light colour -> CSS variable, for every colour a figure may use."""
    named = {light: f"var(--{role})" for role, (light, _) in INK.items()}
    named |= {light: f"var(--s{i})" for i, (light, _) in enumerate(SERIES)}
    named |= {light: f"var(--h{i})" for i, (light, _) in enumerate(HEAT)}
    return named | {DEAD[0]: "var(--dead)"}


def css_variables(dark: bool) -> str:
    """The figure colours of one theme as CSS declarations."""
    which = int(dark)
    pairs = [(role, colors[which]) for role, colors in INK.items()]
    pairs += [(f"s{i}", colors[which]) for i, colors in enumerate(SERIES)]
    pairs += [(name, colors[which]) for name, colors in LEVELS.items()]
    return "".join(f"--{name}:{color};" for name, color in pairs)


_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.image_inline": True,
    "text.parse_math": False,  # a run named "$x" is a name, not a formula
    "text.usetex": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same layout on every machine
    "font.size": 11.5,
    "axes.labelsize": 11,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "text.color": INK["fg"][0],
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.labelcolor": INK["muted"][0],
    "axes.edgecolor": INK["grid"][0],
    "xtick.color": INK["muted"][0],
    "ytick.color": INK["muted"][0],
    "grid.color": INK["grid"][0],
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.linewidth": 0.8,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "path.simplify": True,
}


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Everything drawn inside has the report's look, whatever the user's matplotlibrc says."""
    with warnings.catch_warnings(), matplotlib.rc_context():
        # Only the PNGs can lack a glyph (the page uses the reader's fonts); a box there is enough.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)
        yield
