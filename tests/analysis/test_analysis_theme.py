"""Colours that everybody can tell apart and read, in both themes."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from moejax.analysis.charts import theme
from moejax.analysis.page.assets import style_sheet

PAGES = {0: theme.LIGHT_PAGE, 1: theme.DARK_PAGE}


def _linear(color: str) -> np.ndarray:
    rgb = np.array(to_rgb(color))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def _luminance(linear: np.ndarray) -> float:
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(a: str, b: str) -> float:
    """WCAG 2 contrast ratio."""
    high, low = sorted([_luminance(_linear(a)), _luminance(_linear(b))], reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_known_answer():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


@pytest.mark.parametrize("which", PAGES)
def test_series_stand_out_and_text_is_readable(which):
    page = PAGES[which]
    for pair in (*theme.SERIES, theme.DEAD):
        assert contrast(pair[which], page) >= 3, pair
    for role in ("fg", "muted"):
        assert contrast(theme.INK[role][which], page) >= 4.5


@pytest.mark.parametrize("which", PAGES)
def test_page_colours_are_readable(which):
    block = re.findall(r"(?:^|\{|[;}])(?:--)(\w+):(#[0-9a-f]{6})", style_sheet())
    values = [value for name, value in block if name in ("link", "good", "warn", "bad")]
    light, dark = values[:4], values[4:8]
    for color in (light, dark)[which]:
        assert contrast(color, PAGES[which]) >= 4.5, color


# Viénot, Brettel and Mollon (1999): linear RGB as a protanope and a deuteranope see it.
BLIND = {
    "protanopia": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
    "deuteranopia": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
}


@pytest.mark.parametrize("which", PAGES)
def test_sequential_levels_rise_from_the_page_to_the_strongest(which):
    away = [contrast(pair[which], PAGES[which]) for pair in theme.SEQUENCE]
    assert away == sorted(away)
    assert away[-1] > 5 > 1.4 > away[0]
    assert len(set(theme.SEQUENCE)) == len(theme.SEQUENCE)


@pytest.mark.parametrize("kind", BLIND)
@pytest.mark.parametrize("which", PAGES)
def test_load_levels_keep_their_order_for_the_colour_blind(kind, which):
    """From balanced outwards the contrast to the page grows, and the two arms stay apart."""
    seen = [np.array(BLIND[kind]) @ _linear(pair[which]) for pair in theme.HEAT]
    middle = len(seen) // 2
    away = [abs(_luminance(rgb) - _luminance(seen[middle])) for rgb in seen]
    assert away[:middle] == sorted(away[:middle], reverse=True)
    assert away[middle:] == sorted(away[middle:])
    for under, over in zip(seen[:middle], reversed(seen[middle + 1 :]), strict=True):
        blue_against_yellow = [rgb[2] - (rgb[0] + rgb[1]) / 2 for rgb in (under, over)]
        assert blue_against_yellow[0] > blue_against_yellow[1] + 0.03


def test_runs_differ_by_dash_or_marker_too():
    looks = [theme.style(i) for i in range(28)]
    for a, b in itertools.combinations(looks, 2):
        assert (a.color, a.dash_css, a.marker) != (b.color, b.dash_css, b.marker)
    # The first seven differ in colour and marker, neighbours in dash as well.
    assert len({look.marker for look in looks[:7]}) == 7
    assert all(a.dash_css != b.dash_css for a, b in itertools.pairwise(looks[:7]))


def test_every_figure_colour_is_its_own_sentinel():
    assert len(theme.sentinels()) == len(theme.INK) + len(theme.SERIES) + len(theme.HEAT) + 1
    for dark in (False, True):
        for variable in theme.sentinels().values():
            assert f"{variable[4:-1]}:#" in theme.css_variables(dark)
        for name in theme.LEVELS:
            assert f"--{name}:#" in theme.css_variables(dark)
