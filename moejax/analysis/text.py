"""Text that came from a run directory, made safe to show: names, tokens, config values, errors.

Everything passes `clean` (no control, bidi or zero-width characters), then the escape of where it
goes: `esc` for HTML, `script_json` inside a script block, `csv_text` for spreadsheets. SVG text is
written by an XML serialiser after `clean`.
"""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence

_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_SECRET_KEY = re.compile(
    r"(^|[^a-z])(api_?key|secret|password|passwd|credentials?|(access|auth|bearer)_?token"
    r"|private_?key)($|[^a-z])",
    re.IGNORECASE,
)
_URL_LOGIN = re.compile(r"(\w+://)[^/@\s]+@")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "|", "%")
MISSING = "–"


def clean(value: object, limit: int = 400) -> str:
    """`value` as one visible line: invisible characters as escapes, cut to `limit` characters."""
    text = value if isinstance(value, str) else str(value)
    text = text[: limit + 1]
    shown = "".join(
        f"\\u{ord(c):04x}" if unicodedata.category(c) in _INVISIBLE else c for c in text
    )
    return shown if len(shown) <= limit else shown[: max(limit - 1, 0)] + "…"


def shorten(text: str, limit: int) -> str:
    """`text` with its middle left out when longer than `limit`: both ends of a run name tell."""
    if len(text) <= limit:
        return text
    head = limit // 2
    return text[:head] + "…" + text[len(text) - (limit - 1 - head) :]


def esc(value: object, limit: int = 4000) -> str:
    """`clean`ed and escaped for HTML text and double- or single-quoted attributes."""
    return html.escape(clean(value, limit), quote=True)


def script_json(value: object) -> str:
    """JSON for a `<script type="application/json">` block: no `<`, `>` or `&` can end it."""
    text = json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def redact(key: str, value: object) -> object:
    """`value` without secrets: by the key's name, and logins inside URLs."""
    if _SECRET_KEY.search(key) and value not in (None, "", False):
        return "[redacted]"
    return _URL_LOGIN.sub(r"\1[redacted]@", value) if isinstance(value, str) else value


def redact_argument(argument: str) -> str:
    """One command-line argument without secrets: `--api_key=x` -> `--api_key=[redacted]`."""
    key, equals, value = argument.partition("=")
    return f"{key}={redact(key, value)}" if equals else str(redact("", argument))


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """CSV with LF ends; text that a spreadsheet would run as a formula gets an apostrophe."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([_csv_cell(cell) for cell in row] for row in rows)
    return out.getvalue()


def _csv_cell(cell: object) -> object:
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return ""
    if isinstance(cell, float):
        return f"{cell:.10g}"
    if isinstance(cell, str):
        cell = clean(cell, 4000)
        return "'" + cell if cell.startswith(_FORMULA) else cell
    return cell


# ---- numbers -------------------------------------------------------------------------------------


def fixed(value: float, digits: int = 3) -> str:
    """`2.113`, or a dash where the value is not finite."""
    return f"{value:,.{digits}f}" if math.isfinite(value) else MISSING


_PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def short(value: float, digits: int = 3) -> str:
    """SI prefixes with `digits` significant digits: 1234567 -> 1.23M. Dash where not finite."""
    if not math.isfinite(value):
        return MISSING
    size = abs(value)
    for scale, prefix in _PREFIXES:
        if size >= scale * (1 - 0.5e-3):
            return f"{_significant(value / scale, digits)}{prefix}"
    return _significant(value, digits)


def _significant(value: float, digits: int) -> str:
    """Never cuts digits before the point: 896 with two digits is 896, not 9e+02."""
    whole = len(str(int(abs(value))))
    return f"{value:.{max(digits, whole)}g}"


def percent(value: float, digits: int = 1) -> str:
    """0.1234 -> `12.3 %` (a thin no-break space), or a dash."""
    return f"{100 * value:.{digits}f}\u202f%" if math.isfinite(value) else MISSING


def unit(value: float, symbol: str, digits: int = 3) -> str:
    """`2.32 MFLOP`: `short` with the prefix set to the unit, as SI has it."""
    number = short(value, digits)
    if number == MISSING:
        return number
    prefix = number[-1] if number[-1].isalpha() else ""
    return f"{number.removesuffix(prefix)}\u202f{prefix}{symbol}"


def duration(seconds: float) -> str:
    """Seconds as `42 s`, `3 min 05 s`, `2 h 07 min`, or a dash."""
    if not math.isfinite(seconds) or seconds < 0:
        return MISSING
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def count(number: int, noun: str, plural: str = "") -> str:
    """`1 run`, `3 runs`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def listing(names: Sequence[str], limit: int = 6) -> str:
    """`a, b and c`, at most `limit` names and then `and 4 more`."""
    if len(names) > limit:
        return ", ".join(names[:limit]) + f" and {len(names) - limit} more"
    return " and ".join(", ".join(names).rsplit(", ", 1)) if names else ""
