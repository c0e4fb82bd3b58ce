"""Your own text: `files:PATTERN`, one document per .txt file or per line of a .jsonl file."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from moejax.config import ConfigError
from moejax.data.corpora.contract import CORPORA
from moejax.data.documents import Document, decode, normalise, read_bytes

if TYPE_CHECKING:
    from moejax.data.knobs import DataConfig

SUFFIXES = (".txt", ".jsonl")


@CORPORA.register("files")
@dataclasses.dataclass(frozen=True)
class FilesCorpus:
    """Text files that match a glob pattern (`**` = any folders), in the order of their paths.

    A document without a domain of its own gets the name of the first folder below the fixed
    part of the pattern, or "text": `files:corpus/**/*.txt` makes each folder of `corpus` a
    domain.
    """

    pattern: str
    text_field: str = "text"
    domain_field: str = "domain"
    language_field: str = "language"
    separator: str = ""

    argument_name: ClassVar[str] = "PATTERN"
    stored: ClassVar[bool] = True

    @classmethod
    def from_data(cls, config: DataConfig, argument: str) -> FilesCorpus:
        """Takes the pattern; the files are looked at when they are read."""
        fields = (config.text_field, config.domain_field, config.language_field)
        return cls(argument, *fields, config.separator)

    def fingerprint(self) -> dict[str, Any]:
        settings = dataclasses.asdict(self)
        del settings["pattern"]  # the same files in another folder are the same corpus
        return {"settings": settings, "sources": self.sources()}

    def sources(self) -> list[dict[str, Any]]:
        rows = []
        for name, file in self._files():
            raw = read_bytes(file)
            rows.append(
                {
                    "domain": _folder(name),
                    "file": name,
                    "licence": "your own",
                    "bytes": len(raw),
                    "sha256": hashlib.sha256(raw).hexdigest(),
                }
            )
        return rows

    def documents(self) -> Iterator[Document]:
        for name, file in self._files():
            raw = read_bytes(file)
            if not raw:
                raise ConfigError(f"{file}: is empty; remove it or narrow {self.pattern!r}")
            yield from (self._lines if file.suffix == ".jsonl" else self._texts)(name, file, raw)

    def _files(self) -> list[tuple[str, Path]]:
        """Returns (path below the fixed part of the pattern, file), sorted."""
        pattern = os.path.expanduser(self.pattern)
        found = [Path(path) for path in glob.glob(pattern, recursive=True)]
        files = [path for path in found if path.is_file()]
        if not files:
            raise ConfigError(f"files:{self.pattern}: {_why_nothing(pattern, found)}")
        fixed = re.split(r"[*?[]", pattern, maxsplit=1)[0]
        root = Path(pattern).parent if fixed == pattern else Path(os.path.dirname(fixed))
        for path in files:
            if path.suffix not in SUFFIXES:
                raise ConfigError(
                    f"{path}: cannot read {path.suffix or 'a file without suffix'}; the pattern "
                    f"may match only {' and '.join(SUFFIXES)}, e.g. files:{root}/**/*.txt"
                )
        return sorted((path.relative_to(root).as_posix(), path) for path in files)

    def _texts(self, name: str, file: Path, raw: bytes) -> Iterator[Document]:
        text = decode(raw, str(file))
        if not self.separator:
            yield Document(name, text, _folder(name), "und", str(file))
            return
        parts = text.split(normalise(self.separator))
        # What stands before the first or after the last separator may be nothing at all;
        # nothing between two of them is an empty document, which the plan refuses.
        first = 0 if parts[0].strip() else 1
        last = len(parts) if parts[-1].strip() else len(parts) - 1
        for number in range(first, last):
            where = f"{file}: document {number + 1}"
            yield Document(f"{name}#{number}", parts[number], _folder(name), "und", where)

    def _lines(self, name: str, file: Path, raw: bytes) -> Iterator[Document]:
        # Only b"\n" ends a record: str.splitlines would also cut at U+2028 inside a string.
        lines = raw.removesuffix(b"\n").split(b"\n")
        for number, line in enumerate(lines, start=1):
            where = f"{file}: line {number}"
            text = decode(line, where)
            if not text.strip():
                raise ConfigError(f"{where}: is blank; expected a JSON object on every line")
            try:
                record = json.loads(text)
            except json.JSONDecodeError as error:
                raise ConfigError(
                    f"{where}: not JSON ({error.msg}, column {error.colno})"
                ) from error
            if not isinstance(record, dict):
                raise ConfigError(f"{where}: is a JSON {type(record).__name__}, not an object")
            yield Document(
                f"{name}#{number}",
                normalise(_string(record, self.text_field, where, None)),
                _string(record, self.domain_field, where, _folder(name)),
                _string(record, self.language_field, where, "und"),
                where,
            )


def _string(record: dict[str, Any], field: str, where: str, default: str | None) -> str:
    if field not in record:
        if default is not None:
            return default
        fields = ", ".join(map(str, record)) or "none"
        raise ConfigError(f"{where}: no field {field!r}; it has: {fields} (config.data.text_field)")
    value = record[field]
    if not isinstance(value, str):
        raise ConfigError(f"{where}: field {field!r} is a {type(value).__name__}, not a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON may spell half of a surrogate pair
        raise ConfigError(
            f"{where}: field {field!r} is not Unicode text at character {error.start} "
            f"({error.reason})"
        ) from error
    return value


def _folder(name: str) -> str:
    first, slash, _ = name.partition("/")
    return first if slash else "text"


def _why_nothing(pattern: str, found: list[Path]) -> str:
    if found:
        return f"is a directory; nearest valid: files:{found[0]}/**/*.txt"
    if glob.has_magic(pattern):
        return f"matches no file (looked from {Path.cwd()})"
    return f"no such file (looked from {Path.cwd()})"
