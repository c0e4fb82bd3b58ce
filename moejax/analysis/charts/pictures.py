"""Pictures that are no line over two axes, drawn by matplotlib: heat maps, flows, tokens."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure as MplFigure
from matplotlib.patches import Patch, Rectangle

from moejax.analysis import text
from moejax.analysis.charts import svg, theme
from moejax.analysis.charts.scales import BLANK
from moejax.analysis.charts.spec import Flow, Grid, Maps, Words

TICKS = 16
_CHARACTERS = 74  # of a line of tokens


def draw_grid(axes: Axes, maps: Maps, grid: Grid) -> list[tuple[Patch, str]]:
    """One pixel a cell, once per theme (an image cannot follow CSS). Returns the legend."""
    levels = maps.scale.level(grid.value_RC)
    rows, columns = levels.shape
    axes.grid(False)
    axes.spines[:].set_visible(False)
    for which, gid in enumerate((svg.LIGHT_ONLY, svg.DARK_ONLY)):
        table = [to_rgb(theme.LEVELS[name][which]) for name in maps.scale.colors]
        palette = np.array([*((*rgb, 1.0) for rgb in table), (0.0, 0.0, 0.0, 0.0)])
        pixels = np.round(palette[np.where(levels == BLANK, len(table), levels)] * 255)
        image = axes.imshow(
            pixels.astype(np.uint8),
            interpolation="none",
            aspect="auto",
            extent=(0, columns, rows, 0),
        )
        image.set_gid(gid)
    for handle, labels in ((axes.xaxis, grid.columns), (axes.yaxis, grid.rows)):
        step = -(-len(labels) // TICKS)
        places = range(0, len(labels), step)
        turned = handle is axes.xaxis and sum(len(labels[i]) for i in places) > 70
        shown = [text.shorten(labels[i], 18) for i in places]
        handle.set_ticks([i + 0.5 for i in places], shown, rotation=90 if turned else 0)
    axes.tick_params(length=0)
    axes.set(xlabel=maps.x, ylabel=maps.y)
    light = [theme.LEVELS[name][0] for name in maps.scale.colors]
    return [
        (Patch(color=color), label) for color, label in zip(light, maps.scale.labels, strict=True)
    ]


def draw_flow(axes: Axes, flow: Flow) -> None:
    """Boxes in columns, as high as what passes through them, and bands between them."""
    axes.axis("off")
    out, into = np.zeros(len(flow.nodes)), np.zeros(len(flow.nodes))
    for source, target, weight in flow.links:
        out[source] += weight
        into[target] += weight
    weight_N = np.maximum(out, into)
    base_N = np.zeros(len(flow.nodes))
    for column in range(len(flow.columns)):
        own = [i for i, node in enumerate(flow.nodes) if node.column == column]
        gap = 0.02 * max(weight_N.sum() / len(flow.columns), 1e-12)
        at = 0.0
        for i in own:
            base_N[i] = at
            at += weight_N[i] + gap
    left, right = base_N.copy(), base_N.copy()
    for source, target, weight in sorted(flow.links):
        a, b = flow.nodes[source], flow.nodes[target]
        t = np.linspace(0, 1, 24)
        ease = t * t * (3 - 2 * t)
        x = a.column + 0.06 + t * (b.column - a.column - 0.06)
        low = right[source] + ease * (left[target] - right[source])
        color = theme.style(a.look).color
        axes.fill_between(x, low, low + weight, color=color, alpha=0.35, lw=0)
        right[source] += weight
        left[target] += weight
    for i, node in enumerate(flow.nodes):
        color = theme.style(node.look).color
        axes.add_patch(Rectangle((node.column, base_N[i]), 0.06, weight_N[i], color=color, lw=0))
        axes.annotate(
            text.shorten(node.name, 20),
            (node.column + 0.09, base_N[i] + weight_N[i] / 2),
            va="center",
            fontsize=8.5,
        )
    top = max((base_N + weight_N).max(initial=0.0), 1e-9)
    for column, label in enumerate(flow.columns):
        axes.annotate(label, (column, top * 1.03), fontsize=9.5, color=theme.INK["muted"][0])
    axes.set(xlim=(-0.05, len(flow.columns) - 0.3), ylim=(0, top * 1.08))


def draw_words(figure: MplFigure, axes: Axes, words: Words) -> None:
    """The tokens as they read, in the first of the shades; lines are broken where they are full."""
    axes.axis("off")
    shade = words.shades[0]
    level_T = shade.scale.level(shade.value_T)
    line = place = 0
    placed = []
    for piece, level in zip(words.pieces, level_T.tolist(), strict=True):
        shown = text.shorten(piece, 30)
        if place and place + len(shown) > _CHARACTERS:
            line, place = line + 1, 0
        placed.append((line, place, shown, level))
        place += len(shown)
        if "↵" in piece:
            line, place = line + 1, 0
    for row, column, shown, level in placed:
        if level != BLANK:
            name = shade.scale.colors[level]
            box = (column, row + 0.08), len(shown), 0.86
            axes.add_patch(Rectangle(*box, color=theme.LEVELS[name][0], lw=0))
            dark = sum(to_rgb(theme.LEVELS[name][0])) < 1.5
        else:
            dark = False
        axes.text(
            column,
            row + 0.5,
            shown,
            family="DejaVu Sans Mono",
            fontsize=9,
            va="center",
            color=theme.INK["halo" if dark else "fg"][0],
        )
    height = max(1, line + 1)
    figure.set_size_inches(480 / 72, (22 + 15 * height) / 72)
    axes.set(xlim=(0, _CHARACTERS + 14), ylim=(height, 0))
