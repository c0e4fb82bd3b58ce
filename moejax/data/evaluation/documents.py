"""A labelled document, what makes one valid, and how long texts are cut into several."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

from moejax.config import ConfigError

# One document: more than any context, less than what would hurt.
MAX_TEXT_BYTES = 1 << 24
MAX_LABEL = 100
MAX_PARALLEL = (1 << 31) - 1  # int32 in a trace


@dataclasses.dataclass(frozen=True, slots=True)
class EvaluationDocument:
    """One labelled text.

    Attributes:
      text: not empty, valid Unicode, lines end in '\\n'.
      domain: what kind of text ("law", "code", ...; of a task its name).
      language: a code ("en", "de", "python", ...), "und" where nobody said.
      difficulty: higher is harder; the set says of what scale. None where it has none.
      parallel: id of the unit that other documents say in other languages (a verse, an article),
        0 <= id < 2**31. None where nothing is aligned.
      tags: (first character, one past the last, part of speech) of the words that have one, in
        order, without overlap. () where the source has none.
    """

    text: str
    domain: str
    language: str
    difficulty: float | None = None
    parallel: int | None = None
    tags: tuple[tuple[int, int, str], ...] = ()


def check_document(document: EvaluationDocument, where: str, number: int) -> None:
    """Raises ConfigError, naming `where` and the document's number, if it breaks its contract."""
    fault = _fault(document)
    if fault:
        raise ConfigError(f"{where}: document {number}: {fault}")


def _fault(document: EvaluationDocument) -> str:
    """Returns what is wrong with a document, "" if nothing is."""
    text = document.text
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError as error:
        return f"is not Unicode text at character {error.start} ({error.reason})"
    if not text or text.isspace():
        return "is empty"
    if size > MAX_TEXT_BYTES:
        return f"has {size:,} bytes of text; at most {MAX_TEXT_BYTES:,}; cut it"
    for kind in ("domain", "language"):
        label = getattr(document, kind)
        if not _is_label(label):
            return f"the {kind} {label[:20]!r} is no label: 1 to {MAX_LABEL} printable characters"
    if document.difficulty is not None and not math.isfinite(document.difficulty):
        return f"the difficulty is {document.difficulty}, not a finite number"
    if document.parallel is not None and not 0 <= document.parallel <= MAX_PARALLEL:
        return f"the parallel id is {document.parallel}; must be in [0, {MAX_PARALLEL}]"
    end = 0
    for first, last, tag in document.tags:
        if not end <= first < last <= len(text):
            return f"the tag {tag[:20]!r} at [{first}, {last}) is out of order or place"
        if not _is_label(tag):
            return f"the tag {tag[:20]!r} is no label: 1 to {MAX_LABEL} printable characters"
        end = last
    return ""


@functools.lru_cache(maxsize=1024)
def _is_label(label: str) -> bool:
    return 0 < len(label) <= MAX_LABEL and label.isprintable()


def pieces(text: str, separator: str = "\n\n", size: int = 4096) -> Iterator[str]:
    """Cuts a text at `separator` into pieces of at most about `size` characters.

    A paragraph longer than that stays whole; blank ones go.
    """
    piece = ""
    for paragraph in text.split(separator):
        paragraph = paragraph.strip("\n")
        if not paragraph.strip():
            continue
        if piece and len(piece) + len(separator) + len(paragraph) > size:
            yield piece + "\n"
            piece = ""
        piece += (separator if piece else "") + paragraph
    if piece:
        yield piece + "\n"


def one_line(text: str) -> str:
    """Returns `text` with every run of white space as one blank."""
    return re.sub(r"\s+", " ", text).strip()
