"""A source that is an installed package, and the hint where it is absent."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from moejax.data.evaluation.contract import Part
from moejax.data.evaluation.documents import EvaluationDocument
from moejax.data.installed import installed_files, installed_version

Files = Iterable[tuple[str, Path]]


@dataclasses.dataclass(frozen=True)
class Package:
    """One package and what is taken from it.

    Attributes:
      name: on the package index.
      licence: of the text.
      pattern: full match on the path inside site-packages.
      extra: of moejax, that brings it; "" for a dependency of moejax itself.
      who: what needs it, for messages.
    """

    name: str
    licence: str
    pattern: str
    extra: str = "eval"
    who: str = "the evaluation set"

    def files(self) -> tuple[tuple[str, Path], ...]:
        """Returns (path inside site-packages, file); raises ConfigError as `installed_files`."""
        return installed_files(self.name, self.pattern, self.who, self.install)

    def describe(self) -> dict[str, Any]:
        """Returns the package's columns of a row of `EvaluationSet.sources`."""
        version = installed_version(self.name, self.who, self.install)
        return {"package": self.name, "version": version, "licence": self.licence}

    def part(self, domain: str, language: str, texts: Callable[[Files], Iterator[str]]) -> Part:
        """Returns the part of a set that is this package's files, cut into texts."""

        def read() -> Iterator[EvaluationDocument]:
            for text in texts(self.files()):
                yield EvaluationDocument(text, domain, language)

        where = f"{domain} of {self.name}"
        return Part(where, self.describe, read, (domain, language), self.paths)

    def paths(self) -> list[Path]:
        """Returns the files alone."""
        return [file for _, file in self.files()]

    @property
    def install(self) -> str:
        """The command that installs it."""
        return f'pip install "moejax[{self.extra}]"' if self.extra else f"pip install {self.name}"
