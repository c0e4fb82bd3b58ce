"""`files:GLOB`: your own records, one document for each line of a .jsonl, .csv or .tsv file."""

from __future__ import annotations

import csv
import dataclasses
import glob
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from moejax.config import ConfigError, knob
from moejax.data.documents import decode, read_bytes
from moejax.data.evaluation.columns import Columns
from moejax.data.evaluation.contract import EVALUATIONS, Part
from moejax.data.evaluation.documents import MAX_TEXT_BYTES, EvaluationDocument

DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (".jsonl", *DELIMITERS)


@EVALUATIONS.register("files")
@dataclasses.dataclass(frozen=True)
class Tables:
    """Records with a column of text and, if you like, columns of labels.

    Without a label, a document's domain is its file's name without suffix.
    """

    argument: str
    text: str = knob("", doc="Column of the text; '' = `text`.")
    label: str = knob("", doc="Column of the domain; '' = `domain` where there is one.")
    language: str = knob("", doc="Likewise of the language.")
    difficulty: str = knob("", doc="Likewise of the difficulty, a number.")
    parallel: str = knob("", doc="Likewise of the id of the aligned unit, a whole number.")
    tags: str = knob("", doc='Likewise of the tags, [[first, end, "TAG"], ...] (.jsonl only).')

    argument_name: ClassVar[str] = "GLOB"

    def parts(self) -> list[Part]:
        pattern = os.path.expanduser(self.argument)
        files = sorted(p for p in map(Path, glob.glob(pattern, recursive=True)) if p.is_file())
        if not files:
            raise ConfigError(f"files:{self.argument}: matches no file (looked from {Path.cwd()})")
        for file in files:
            if file.suffix not in SUFFIXES:
                raise ConfigError(
                    f"{file}: cannot read {file.suffix or 'a file without suffix'}; the pattern "
                    f"may match only {', '.join(SUFFIXES)}"
                )
        return [self._part(file) for file in files]

    def _part(self, file: Path) -> Part:
        names = {field.name for field in dataclasses.fields(Columns)}
        columns = Columns(**{name: getattr(self, name) for name in names})

        def read() -> Iterator[EvaluationDocument]:
            text = decode(read_bytes(file), str(file))
            records = _objects if file.suffix == ".jsonl" else _rows
            for number, record in records(text, file):
                yield columns.document(record, f"{file}: line {number}", file.stem)

        describe = {"file": file.name, "version": "", "licence": "your own"}
        return Part(str(file), lambda: describe, read, files=lambda: [file])


def _objects(text: str, file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        where = f"{file}: line {number}"
        if len(line) > 2 * MAX_TEXT_BYTES:
            raise ConfigError(f"{where}: is longer than {2 * MAX_TEXT_BYTES:,} characters")
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", "nested too deep, or a number too long")
            raise ConfigError(f"{where}: not JSON ({reason})") from error
        if not isinstance(record, dict):
            raise ConfigError(f"{where}: is a JSON {type(record).__name__}, not an object")
        yield number, record


def _rows(text: str, file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=DELIMITERS[file.suffix], strict=True)
    try:
        names = next(rows, [])
        if len(set(names)) < len(names):
            raise ConfigError(f"{file}: line 1: two columns of one name")
        for row in rows:
            if not row:
                continue  # a blank line
            if len(row) != len(names):
                raise ConfigError(
                    f"{file}: line {rows.line_num}: has {len(row)} cells, the first line "
                    f"{len(names)}"
                )
            yield rows.line_num, dict(zip(names, row, strict=True))
    except csv.Error as error:
        raise ConfigError(f"{file}: line {rows.line_num}: cannot be read ({error})") from error
