"""The static files of the page, and plotly.js, which is embedded: the page needs no network."""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

from moejax.analysis.charts import theme
from moejax.config.knobs import ConfigError

STATIC = Path(__file__).parent / "static"
_LIGHT = (
    "--page:#f6f7f9;--card:#ffffff;--line:#e2e6ea;--soft:#f1f3f6;--link:#0062a3;--good:#00704f;"
    "--warn:#8a5300;--bad:#a8321b;--warnbg:#fff7e8;--warnline:#efd9ae;color-scheme:light;"
)
_DARK = (
    "--page:#0d1013;--card:#14181d;--line:#272e36;--soft:#1b2127;--link:#74bdf5;--good:#3fd0a6;"
    "--warn:#efbe62;--bad:#ff9a80;--warnbg:#211b10;--warnline:#4b3c1c;color-scheme:dark;"
)


def style_sheet() -> str:
    """All CSS: both themes by preference, overridden by `data-theme` on the root."""
    light = _LIGHT + theme.css_variables(dark=False)
    dark = _DARK + theme.css_variables(dark=True)
    show_dark = (".light-only{display:none}", ".dark-only{display:inline}")
    chosen, preferred = ":root[data-theme=dark]", ":root:not([data-theme=light])"
    return "".join(
        [
            f":root{{{light}}}.dark-only{{display:none}}",
            f"@media(prefers-color-scheme:dark){{{preferred}{{{dark}}}",
            *(f"{preferred} {rule}" for rule in show_dark),
            f"}}{chosen}{{{dark}}}",
            *(f"{chosen} {rule}" for rule in show_dark),
            _read("report.css"),
        ]
    )


@functools.cache
def script() -> str:
    """The page's own script."""
    return _read("report.js")


@functools.cache
def library() -> str:
    """plotly.js, as its Python package ships it. The package is not imported.

    Raises:
      ConfigError: the package is not installed, or its file cannot stand in a page.
    """
    spec = importlib.util.find_spec("plotly")
    places = list(spec.submodule_search_locations or ()) if spec else []
    path = Path(places[0], "package_data", "plotly.min.js") if places else None
    if path is None or not path.is_file():
        raise ConfigError("plotly is missing, whose script draws the page: pip install plotly")
    source = path.read_text(encoding="utf-8").replace("\r\n", "\n")
    if re.search(r"</script|<!--", source, re.IGNORECASE):
        raise ConfigError(f"{path.name}: holds the end of a script element: use another version")
    return source


def library_version() -> str:
    """The version of the package that plotly.js comes from."""
    return importlib.metadata.version("plotly")


def policy(*scripts: str) -> str:
    """A content security policy under which these scripts run, and nothing is fetched.

    A second fence behind the escaping. plotly.js sets style attributes and draws images as data.
    """
    digests = [hashlib.sha256(source.encode()).digest() for source in scripts]
    hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    rules = ("default-src 'none'", "style-src 'unsafe-inline'", "img-src data:")
    return "; ".join([*rules, f"script-src {hashes}", "base-uri 'none'", "form-action 'none'"])


def fill(values: Mapping[str, str]) -> str:
    """The template with every `{{name}}` replaced, in one pass: what is put in is not read again.

    Raises:
      KeyError: the template has a name without a value.
    """
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], _read("template.html"))


def _read(name: str) -> str:
    return (STATIC / name).read_text(encoding="utf-8").replace("\r\n", "\n")
