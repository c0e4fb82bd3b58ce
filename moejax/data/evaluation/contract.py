"""The contract of an evaluation set: labelled documents in an order that never changes.

A set is asked for by a spec, `KIND[:ARGUMENT][?OPTION=VALUE&OPTION=VALUE]`, e.g. `domains`,
`languages?only=en,de` or `files:mine/*.jsonl?label=genre`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Protocol

from moejax.config import ConfigError, Registry, build, knob, nearest
from moejax.config.knobs import BOOLEAN_WORDS
from moejax.data.evaluation.documents import EvaluationDocument, check_document
from moejax.data.evaluation.order import balanced, wanted_documents

EVALUATIONS = Registry("evaluation set")


@dataclasses.dataclass(frozen=True)
class Part:
    """What one source contributes to a set; nothing is read before `read` is iterated.

    Attributes:
      where: for messages: the package or file.
      describe: returns {"package" (or "file"), "version", "licence"}.
      read: yields its documents, in the same order every time and on every machine.
      labels: (domain, language) of all its documents, None where only they know. A part that no
        name of `only` matches is then not even looked for.
      files: returns all files that are read, in a fixed order.
    """

    where: str
    describe: Callable[[], dict[str, Any]]
    read: Callable[[], Iterator[EvaluationDocument]]
    labels: tuple[str, str] | None = None
    files: Callable[[], Iterable[Path]] = tuple


class EvaluationSource(Protocol):
    """What is registered in `EVALUATIONS`: a frozen dataclass whose fields are its options.

    Attributes:
      argument_name: what stands after `kind:`, for messages ("GLOB"); it arrives in the field
        `argument`. "" where the kind takes none.
    """

    registered_name: ClassVar[str]
    argument_name: ClassVar[str]

    def parts(self) -> list[Part]:
        """Returns the parts, in a fixed order; raises ConfigError where that needs a look."""


@dataclasses.dataclass(frozen=True)
class Selection:
    """The options that every set takes.

    `only` keeps documents whose domain or language is among these names; `limit_bytes` keeps the
    first documents, in the set's order, of each domain, language and level.
    """

    only: tuple[str, ...] = knob((), doc="Keep these domains and languages; () keeps all.")
    limit_bytes: int = knob(
        0, low=0, unit="bytes of text", doc="Of each domain, language and level; 0 keeps all."
    )


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """An evaluation set as `open_evaluation` returns it; nothing has been read yet.

    Attributes:
      spec: the text it was asked for by.
      name: fit for a folder: the kind, and a hash of the spec where that says more.
      source: the registered dataclass behind it.
      selection: the options that every set takes.
    """

    spec: str
    name: str
    source: EvaluationSource
    selection: Selection

    def documents(self) -> Iterator[EvaluationDocument]:
        """Yields all documents, in the same order every time; may be called again.

        The order is balanced (`moejax/data/evaluation/order.py`): any prefix holds about the same
        number of bytes of each domain, language and level until one of them is used up, drawn
        from the whole of it; documents of one aligned unit stand together.

        Raises:
          ConfigError: one line: a package that is absent, a file that cannot be read, a label
            of `only` that does not exist, no document at all.
        """
        found: list[EvaluationDocument] = []
        for _, documents in self._kept():
            found += documents
        return balanced(found, self.selection.limit_bytes)

    def sources(self) -> list[dict[str, Any]]:
        """Returns one JSON row per source, domain and language.

        Keys: `domain`, `language`, `package` (or `file`), `version`, `licence`, `documents`,
        `bytes` (UTF-8, of the documents' text; `limit_bytes` not applied) and `sha256` (of the
        documents with all their labels).

        Raises:
          ConfigError: as `documents`.
        """
        rows = []
        for part, documents in self._kept():
            origin = part.describe()
            groups: dict[tuple[str, str], list[EvaluationDocument]] = {}
            for document in documents:
                groups.setdefault((document.domain, document.language), []).append(document)
            for (domain, language), mine in groups.items():
                digest = hashlib.sha256()
                for document in mine:
                    digest.update(json.dumps(dataclasses.astuple(document)).encode())
                row = {"domain": domain, "language": language} | origin
                size = sum(len(document.text.encode()) for document in mine)
                rows.append(
                    row | {"documents": len(mine), "bytes": size, "sha256": digest.hexdigest()}
                )
        return rows

    def fingerprint(self) -> dict[str, Any]:
        """Returns JSON that changes whenever the documents would; equal on every machine.

        It hashes files instead of reading documents, and so takes a tenth of the time.

        Raises:
          ConfigError: a package or file is absent.
        """
        options = dataclasses.asdict(self.source)  # type: ignore[call-overload]
        options.pop("argument", None)  # the same files elsewhere are the same set
        parts = [part for part in self.source.parts() if self._wants(part)]
        hash_of = functools.cache(_hash_of)  # several parts may lie in one file
        rows = []
        for part in parts:
            files = hashlib.sha256()
            for file in part.files():
                files.update(f"{file.name}\0{hash_of(file)}\0".encode())
            rows.append({"labels": part.labels, "files": files.hexdigest()} | part.describe())
        return {
            "set": self.source.registered_name,
            "options": options | dataclasses.asdict(self.selection),
            "parts": rows,
        }

    def _wants(self, part: Part) -> bool:
        only = self.selection.only
        return not only or part.labels is None or bool(set(part.labels) & set(only))

    def _kept(self) -> Iterator[tuple[Part, list[EvaluationDocument]]]:
        """Yields each part with its documents that `only` keeps; parts without any are left out."""
        only, empty = self.selection.only, True
        names: dict[str, None] = {}
        for part in self.source.parts():
            names |= dict.fromkeys(part.labels or ())
            if not self._wants(part):
                continue
            documents = list(self._read(part))
            for document in documents:
                names |= {document.domain: None, document.language: None}
            documents = wanted_documents(documents, only)
            if documents:
                empty = False
                yield part, documents
        for name in only:
            if name not in names:
                raise ConfigError(
                    f"{self.spec!r}: only={name!r}: no domain or language of that name"
                    f"{nearest(name, names)}; known: {', '.join(names)}"
                )
        if empty:
            raise ConfigError(f"{self.spec!r}: holds no document")

    def _read(self, part: Part) -> Iterator[EvaluationDocument]:
        number = 0
        for document in part.read():
            number += 1
            check_document(document, part.where, number)
            yield document
        if not number:
            raise ConfigError(f"{part.where}: holds no document")


def open_evaluation(spec: str) -> EvaluationSet:
    """Returns the set that a spec names.

    Raises:
      ConfigError: unknown kind or option, a bad value, an argument absent or not wanted.
    """
    kind, argument, given = _parse(spec)
    cls = EVALUATIONS.get(kind, "evaluation set")
    wanted = cls.argument_name
    if wanted and not argument:
        raise ConfigError(f"{spec!r}: needs an argument; nearest valid: {kind}:{wanted}")
    if argument and not wanted:
        raise ConfigError(f"{spec!r}: takes no argument; nearest valid: {kind!r}")
    own = {f.name: f for f in dataclasses.fields(cls) if f.name != "argument"}
    common = {f.name: f for f in dataclasses.fields(Selection)}
    fields = own | common
    values: dict[str, Any] = {}
    for key, text in given.items():
        if key not in fields:
            hint = nearest(key, fields) or f"; valid options: {', '.join(fields)}"
            raise ConfigError(f"{spec!r}: unknown option {key!r}{hint}")
        values[key] = _value(spec, key, text, fields[key].default)
    source = build(
        cls,
        {key: value for key, value in values.items() if key in own}
        | ({"argument": argument} if wanted else {}),
        repr(spec),
    )
    shared = {key: value for key, value in values.items() if key in common}
    return EvaluationSet(spec, _name(kind, spec), source, build(Selection, shared, repr(spec)))


def _parse(spec: str) -> tuple[str, str, dict[str, str]]:
    # A glob may hold question marks of its own: the options are what follows the last one, if
    # that begins with `word=`.
    match = re.fullmatch(r"(?s)(.*)\?(\w+=[^?]*)", spec)
    head, tail = (match[1], match[2]) if match else (spec, "")
    kind, _, argument = head.partition(":")
    options: dict[str, str] = {}
    for part in tail.split("&") if tail else ():
        key, equals, value = part.partition("=")
        if not equals or not value:
            raise ConfigError(f"{spec!r}: option {part!r} needs a value; e.g. {key}=VALUE")
        if key in options:
            raise ConfigError(f"{spec!r}: option {key!r} is given twice")
        options[key] = value
    return kind, argument, options


def _value(spec: str, key: str, text: str, default: Any) -> Any:
    if isinstance(default, tuple):
        return tuple(text.split(","))
    if isinstance(default, bool):
        if text.lower() not in BOOLEAN_WORDS:
            raise ConfigError(f"{spec!r}: {key}={text!r}: expected true or false")
        return BOOLEAN_WORDS[text.lower()]
    if isinstance(default, int | float):
        try:
            return type(default)(text)
        except ValueError:
            kind = "a whole number" if isinstance(default, int) else "a number"
            raise ConfigError(
                f"{spec!r}: {key}={text!r}: expected {kind}; for example {key}={default}"
            ) from None
    return text


def _hash_of(file: Path) -> str:
    try:
        with open(file, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from error


def _name(kind: str, spec: str) -> str:
    return kind if spec == kind else f"{kind}-{hashlib.sha256(spec.encode()).hexdigest()[:8]}"
