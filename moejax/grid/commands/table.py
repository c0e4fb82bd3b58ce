"""`table`: the comparison as Markdown, LaTeX or CSV, for a paper or a spreadsheet."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence

from moejax.analysis import text
from moejax.analysis.compare.noise import WITHIN
from moejax.config import ConfigError, nearest
from moejax.grid.arguments import Arguments
from moejax.grid.commands.best import as_json, compare, notes, plus_minus, spread
from moejax.grid.groups import Group, Metric
from moejax.grid.results import Results

FORMATS = ("markdown", "latex", "csv")


def main(arguments: Arguments) -> int:
    """Prints the table. Notes go below it; for CSV, which has no place for them, to stderr.

    Raises:
      ConfigError: as `best`, or an unknown format.
    """
    if arguments.format not in FORMATS:
        hint = nearest(arguments.format, FORMATS) or f"; known: {', '.join(FORMATS)}"
        raise ConfigError(f"--format={arguments.format}: unknown format{hint}")
    groups, results, metrics = compare(arguments)
    if arguments.json:
        print(json.dumps(as_json(groups, results, metrics, arguments.agg), indent=2))
        return 0
    said = notes(groups, results, arguments.agg)
    if arguments.format == "csv":
        print(csv(groups, metrics), end="")
        for note in said:
            print(f"note: {note}", file=sys.stderr)
    else:
        write = markdown if arguments.format == "markdown" else latex
        print(write(groups, results, metrics, arguments.agg, said), end="")
    return 0


def csv(groups: Sequence[Group], metrics: Sequence[Metric]) -> str:
    """One row per group, full precision, interval and deviation in columns of their own."""
    axes = list(groups[0].labels)
    head: list[object] = [*axes, "cells", "done"]
    for one in metrics:
        head += [one.name, f"{one.name} sd", f"{one.name} half width 95%"]
    head += ["difference from best", "difference half width 95%", "verdict"]
    rows: list[list[object]] = [head]
    for group in groups:
        row: list[object] = [*group.labels.values(), group.cells, len(group.results)]
        for one in metrics:
            mean = group.means[one.name]
            row += [group.values[one.name], mean.sd, mean.half_width]
        other = group.difference
        row += [other.mean, other.half_width] if other is not None else [None, None]
        rows.append([*row, group.verdict])
    return text.csv_text(rows)


def markdown(
    groups: Sequence[Group],
    results: Results,
    metrics: Sequence[Metric],
    aggregate: str,
    said: Sequence[str],
) -> str:
    """A pipe table; bold: the best group, and those that noise does not tell from it."""
    head, rows = _cells(groups, metrics, aggregate)
    lines = [
        "| " + " | ".join(map(_markdown, head)) + " |",
        "|" + "---|" * len(groups[0].labels) + "---:|" * (len(head) - len(groups[0].labels)),
    ]
    for group, row in zip(groups, rows, strict=True):
        words = list(map(_markdown, row))
        words = [_bold(word, "**", "**") if at else word for word, at in _marks(group, words)]
        lines.append("| " + " | ".join(words) + " |")
    lines += ["", *(f"- {_markdown(note)}" for note in [_caption(aggregate), *said])]
    return "\n".join(lines) + "\n"


def latex(
    groups: Sequence[Group],
    results: Results,
    metrics: Sequence[Metric],
    aggregate: str,
    said: Sequence[str],
) -> str:
    """A booktabs table."""
    head, rows = _cells(groups, metrics, aggregate)
    axes = len(groups[0].labels)
    lines = [
        "% \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{{'l' * axes}{'r' * (len(head) - axes)}}}",
        "\\toprule",
        " & ".join(map(_latex, head)) + " \\\\",
        "\\midrule",
    ]
    for group, row in zip(groups, rows, strict=True):
        words = list(map(_latex, row))
        words = [_bold(w, "\\textbf{", "}") if at else w for w, at in _marks(group, words)]
        lines.append(" & ".join(words) + " \\\\")
    lines += ["\\bottomrule", "\\end{tabular}"]
    lines += [f"% {text.clean(note)}" for note in [_caption(aggregate), *said]]
    return "\n".join(lines) + "\n"


def _cells(
    groups: Sequence[Group], metrics: Sequence[Metric], aggregate: str
) -> tuple[list[str], list[list[str]]]:
    axes = list(groups[0].labels)
    head = [*axes, *(one.name for one in metrics), f"Δ {metrics[0].name}", "n"]
    rows = []
    for group in groups:
        row = [group.labels[axis] or text.MISSING for axis in axes]
        for one in metrics:
            half = spread(group.means[one.name], aggregate)
            row.append(plus_minus(group.values[one.name], half))
        other = group.difference
        row.append("" if other is None else plus_minus(other.mean, other.half_width, "+"))
        done = len(group.results)
        rows.append([*row, str(done) if done == group.cells else f"{done}/{group.cells}"])
    return head, rows


def _marks(group: Group, words: Sequence[str]) -> list[tuple[str, bool]]:
    """Each word of a row, and whether it is set bold: the first metric of the best groups."""
    best = bool(group.results) and (group.difference is None or group.verdict == WITHIN)
    return [(word, best and i == len(group.labels)) for i, word in enumerate(words)]


def _bold(word: str, left: str, right: str) -> str:
    return f"{left}{word}{right}" if word else word


def _caption(aggregate: str) -> str:
    spreads = {"mean±ci": " ±: half of the 95 % t interval.", "mean±sd": " ±: standard deviation."}
    word = aggregate.partition("±")[0]
    return (
        f"{word.capitalize()} over n cells.{spreads.get(aggregate, '')} Δ: difference from the "
        "best, paired by seed. Bold: the best, and what noise does not tell from it."
    )


def _markdown(word: str) -> str:
    """Text that ends no table cell and starts no markup."""
    return re.sub(r"([\\|`*_\[\]<>])", r"\\\1", text.clean(word))


_LATEX = {
    "\\": "\\textbackslash{}", "{": "\\{", "}": "\\}", "$": "\\$", "&": "\\&", "#": "\\#",
    "%": "\\%", "_": "\\_", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}",
    "±": "$\\pm$", "Δ": "$\\Delta$", text.MISSING: "--", "<": "\\textless{}",
    ">": "\\textgreater{}", "|": "\\textbar{}", "[": "{[}", "*": "{*}",
}  # fmt: skip


def _latex(word: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(_LATEX.get(char, char) for char in text.clean(word))
