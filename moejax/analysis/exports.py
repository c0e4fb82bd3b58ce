"""Tables for papers: Markdown and LaTeX (booktabs), safe for any text in a cell."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from moejax.analysis import text

Rows = Sequence[Sequence[object]]
CELL = 200

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    "±": r"$\pm$",
    "–": "--",
    "\u202f": r"\,",
    "·": r"$\cdot$",
    "×": r"$\times$",
}
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|~$:@])")


def markdown(rows: Rows) -> str:
    """A GitHub table, header first. Nothing in a cell is markup, a link or a break."""
    head, *body = [[_markdown(cell) for cell in row] for row in rows]
    numeric = _numeric(rows)
    rule = ["---:" if right else "---" for right in numeric]
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, rule, *body))


def latex(rows: Rows, caption: str, label: str) -> str:
    r"""A `table` with booktabs rules, header first; needs `\usepackage{booktabs}` and T1 fonts."""
    head, *body = [" & ".join(latex_text(cell) for cell in row) + r" \\" for row in rows]
    columns = "".join("r" if right else "l" for right in _numeric(rows))
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{latex_text(caption)}}}",
        rf"  \label{{tab:{label}}}",
        rf"  \begin{{tabular}}{{{columns}}}",
        r"    \toprule",
        f"    {head}",
        r"    \midrule",
        *(f"    {line}" for line in body),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def latex_text(value: object) -> str:
    """`value` with every character that LaTeX would act on made visible."""
    return "".join(_LATEX.get(char, char) for char in _shown(value))


def _markdown(value: object) -> str:
    shown = _shown(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", shown)


def _shown(value: object) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return text.MISSING
    if isinstance(value, float):
        return f"{value:.5g}"
    return text.clean(value, CELL)


def _numeric(rows: Rows) -> list[bool]:
    """Columns whose cells are numbers or absent: set to the right."""
    columns = zip(*rows[1:], strict=True)
    found = [all(c is None or isinstance(c, int | float) for c in column) for column in columns]
    return found or [False] * len(rows[0])
