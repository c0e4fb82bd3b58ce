"""`labels.json`: what the numbers of the traces beside it stand for."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from moejax.analysis import text
from moejax.analysis.traces.trace import Trace
from moejax.config.files import read_json, write_json
from moejax.config.knobs import ConfigError

FORMAT_VERSION = 1
MAX_BYTES = 64 << 20
MAX_NAMES = 256
MAX_PIECES = 1 << 20
_NAME, _PIECE = 80, 64  # characters shown


@dataclasses.dataclass(frozen=True)
class Labels:
    """Names for the ids in a trace, and where its text comes from. Anything may be empty.

    Attributes:
      corpus: name of the text, which is the name of the folder.
      spec: what `--corpus` was.
      part: which part of the text was sampled, in words.
      domains, languages, parts_of_speech, token_classes: names by id.
      difficulties: the levels that occur, ascending.
      sources: one JSON row per source: domain, package or file, licence, ...
      tokens_sha256: of ids and sequences (int32, little-endian, in order): equal where two traces
        are of the same tokens.
      tokenizer_sha256: of the tokenizer.
      pieces: the text of each token id, for display: a byte that is no UTF-8 by itself is `\\xNN`.
      slots: of each token's experts only so many, the first, are in the trace; 0: all.
    """

    corpus: str = ""
    spec: str = ""
    part: str = ""
    domains: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    parts_of_speech: tuple[str, ...] = ()
    token_classes: tuple[str, ...] = ()
    difficulties: tuple[float, ...] = ()
    sources: tuple[dict[str, Any], ...] = ()
    tokens_sha256: str = ""
    tokenizer_sha256: str = ""
    pieces: tuple[str, ...] = ()
    slots: int = 0

    def domain(self, index: int) -> str:
        """The name of a domain, also of one that has none."""
        return _name(self.domains, index, "domain")

    def language(self, index: int) -> str:
        """The name of a language, also of one that has none."""
        return _name(self.languages, index, "language")

    def piece(self, token: int) -> str:
        """The text of a token id, also of one that is not in the list."""
        return _name(self.pieces, token, "token")


def write_labels(path: str | os.PathLike[str], labels: Labels) -> None:
    """Writes them atomically."""
    write_json(path, {"format_version": FORMAT_VERSION, **dataclasses.asdict(labels)})


def read_labels(path: str | os.PathLike[str]) -> Labels:
    """Reads `labels.json`, or the names in a run's `data.json`: for the trainer's own traces.

    Every string is made visible and bounded; a field of another form is left empty.

    Raises:
      ConfigError: one line: missing, too large, not JSON, or no object.
    """
    record = _read(Path(path))

    def string(*keys: str) -> str:
        return next((found for key in keys if (found := _string(record.get(key)))), "")

    def names(key: str) -> tuple[str, ...]:
        return _strings(record.get(key), MAX_NAMES, _NAME)

    return Labels(
        corpus=string("corpus"),
        spec=string("spec"),
        part=string("part"),
        domains=names("domains"),
        languages=names("languages"),
        parts_of_speech=names("parts_of_speech"),
        token_classes=names("token_classes"),
        difficulties=_numbers(record.get("difficulties")),
        sources=_rows(record.get("sources")),
        tokens_sha256=string("tokens_sha256"),
        tokenizer_sha256=string("tokenizer_sha256", "tokenizer_hash"),  # the latter of data.json
        pieces=_strings(record.get("pieces"), MAX_PIECES, _PIECE),
        slots=_count(record.get("slots")),
    )


def tokens_hash(trace: Trace) -> str:
    """SHA-256 of ids and sequences as `Labels.tokens_sha256`; "" where they are not known."""
    if trace.token_T is None or trace.sequence_T is None:
        return ""
    pair = np.stack([trace.token_T, trace.sequence_T]).astype("<i4")
    return hashlib.sha256(pair.tobytes()).hexdigest()


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.is_file() and path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_BYTES:,} bytes")
        record = read_json(path)
    except RecursionError as error:
        raise ConfigError(f"{path}: is nested too deeply") from error
    if not isinstance(record, dict):
        raise ConfigError(f"{path}: is not a JSON object")
    version = record.get("format_version")
    if version != FORMAT_VERSION:
        shown = text.clean(version, 20)
        raise ConfigError(f"{path}: format_version is {shown}, this reader knows {FORMAT_VERSION}")
    return record


def _name(names: tuple[str, ...], index: int, kind: str) -> str:
    return names[index] if 0 <= index < len(names) else f"{kind} {index}"


def _string(value: object) -> str:
    return text.clean(value, 200) if isinstance(value, str) else ""


def _strings(value: object, most: int, characters: int) -> tuple[str, ...]:
    if not isinstance(value, list):
        return ()
    return tuple(text.clean(v, characters) if isinstance(v, str) else "" for v in value[:most])


def _numbers(value: object) -> tuple[float, ...]:
    if not isinstance(value, list):
        return ()
    found = [_number(v) for v in value[:MAX_NAMES]]
    return tuple(v for v in found if math.isfinite(v))


def _count(value: object) -> int:
    return value if type(value) is int and 0 <= value < 1 << 16 else 0


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
        return math.nan
    return float(value)


def _rows(value: object) -> tuple[dict[str, Any], ...]:
    rows = []
    for row in value[:4096] if isinstance(value, list) else ():
        if isinstance(row, dict):
            cells = {_string(key): cell for key, cell in list(row.items())[:32]}
            rows.append(
                {
                    key: _string(cell) if isinstance(cell, str) else _number(cell)
                    for key, cell in cells.items()
                    if isinstance(cell, str) or math.isfinite(_number(cell))
                }
            )
    return tuple(rows)
