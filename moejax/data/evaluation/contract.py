"""The contract of an evaluation set: labelled documents in an order that never changes.

A set is asked for by a spec, `KIND[:ARGUMENT][?OPTION=VALUE&OPTION=VALUE]`, e.g. `domains`,
`languages?only=en,de` or `files:mine/*.jsonl?label=genre`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Protocol

from moejax.config import ConfigError, Registry, knob, nearest
from moejax.data.evaluation.documents import EvaluationDocument, check_document
from moejax.data.evaluation.order import balanced, wanted_documents
from moejax.data.spec import content_hash, open_spec, spec_name

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
        hash_of = functools.cache(content_hash)  # several parts may lie in one file
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
    kind, source, selection = open_spec(spec, EVALUATIONS, Selection)
    return EvaluationSet(spec, spec_name(kind, spec), source, selection)
