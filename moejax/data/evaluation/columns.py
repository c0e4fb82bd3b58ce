"""Which columns of a record hold text and labels: shared by `files` and `tfds`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from moejax.config import ConfigError, nearest
from moejax.data.documents import decode, normalise
from moejax.data.evaluation.documents import EvaluationDocument

# Column -> the name it has by default; all but the text may be absent then.
DEFAULTS = {
    "text": "text",
    "label": "domain",
    "language": "language",
    "difficulty": "difficulty",
    "parallel": "parallel",
    "tags": "tags",
}


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names of columns; "" takes the default name where a record has it.

    A column that was named must be in every record. `label` is the document's domain.
    """

    text: str = ""
    label: str = ""
    language: str = ""
    difficulty: str = ""
    parallel: str = ""
    tags: str = ""

    def document(self, record: Mapping[str, Any], where: str, domain: str) -> EvaluationDocument:
        """Returns the document of a record; `domain` is its label if it has none.

        Raises:
          ConfigError: a column that was named is absent, or a value is of the wrong type.
        """
        difficulty = self._value(record, "difficulty", where)
        parallel = self._value(record, "parallel", where)
        label = self._value(record, "label", where)
        language = self._value(record, "language", where)
        return EvaluationDocument(
            text=normalise(_text(self._value(record, "text", where), f"{where}: the text")),
            domain=domain if label is None else _label(label, f"{where}: the label"),
            language="und" if language is None else _label(language, f"{where}: the language"),
            difficulty=None if difficulty is None else _number(difficulty, where, float),
            parallel=None if parallel is None else _number(parallel, where, int),
            tags=_tags(self._value(record, "tags", where), where),
        )

    def _value(self, record: Mapping[str, Any], column: str, where: str) -> Any:
        named = getattr(self, column)
        name = named or DEFAULTS[column]
        if name in record:
            value = record[name]
            return value if column == "text" or value not in ("", b"") else None
        if named or column == "text":
            has = ", ".join(str(key)[:40] for key in list(record)[:20]) or "none"
            raise ConfigError(
                f"{where}: no column {name!r}{nearest(name, map(str, record))}; it has: {has} "
                f"(option {column}=NAME)"
            )
        return None


def _text(value: Any, where: str) -> str:
    if isinstance(value, bytes):
        return decode(value, where)
    if not isinstance(value, str):
        raise ConfigError(f"{where} is of type {type(value).__name__}, not a string")
    return value


def _label(value: Any, where: str) -> str:
    return str(value) if type(value) is int else _text(value, where)


def _number(value: Any, where: str, kind: type[float] | type[int]) -> Any:
    try:
        if isinstance(value, bool) or (isinstance(value, float) and kind is int):
            raise TypeError
        return kind(value)
    except (TypeError, ValueError, OverflowError):
        what = "the difficulty" if kind is float else "the parallel id"
        shown = repr(value)[:40].replace("\n", " ")
        noun = "number" if kind is float else "whole number"
        raise ConfigError(f"{where}: {what} is {shown}, not a {noun}") from None


def _tags(value: Any, where: str) -> tuple[tuple[int, int, str], ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(
        isinstance(tag, list) and [type(part) for part in tag] == [int, int, str] for tag in value
    ):
        raise ConfigError(
            f'{where}: the tags are no list of [first character, one past the last, "TAG"]'
        )
    return tuple((first, last, tag) for first, last, tag in value)
