"""A table for the terminal: columns as wide as their widest cell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from moejax.analysis import text


def render(head: Sequence[str], rows: Iterable[Sequence[object]], left: int = 1) -> list[str]:
    """Lines of a table; the first `left` columns are flush left, the others flush right.

    Every value is made visible first: names and errors come from files.
    """
    table = [[text.clean(value, 200) for value in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    return ["  ".join(_padded(row, widths, left)).rstrip() for row in table]


def _padded(row: Sequence[str], widths: Sequence[int], left: int) -> list[str]:
    pairs = enumerate(zip(row, widths, strict=True))
    return [word.ljust(size) if i < left else word.rjust(size) for i, (word, size) in pairs]
