"""`domains`: seven kinds of English text (one is Python), from packages read where they lie.

None of it is text of the embedded corpus, so a model trained on that has not seen it: another
translation of the Bible, other packages' code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import ClassVar

from moejax.data.evaluation import formats
from moejax.data.evaluation.contract import EVALUATIONS, Part
from moejax.data.evaluation.languages import BIBLES, chapters
from moejax.data.evaluation.packages import Files, Package

_MATHEMATICS = (
    "calculus|combinatorics|concrete|diffgeom|functions|geometry|integrals|liealgebras|matrices|"
    "ntheory|polys|series|sets|solvers|stats"
)
# domain -> (language, packages and how their files become texts)
DOMAINS: dict[str, tuple[str, tuple[tuple[Package, Callable[[Files], Iterator[str]]], ...]]] = {
    "prose": (
        "en",
        (
            (
                Package(
                    "gensim",
                    "CC-BY-SA-3.0",
                    r"gensim/test/test_data/enwiki-latest-pages-articles1\.xml-.*\.bz2",
                ),
                formats.articles,
            ),
        ),
    ),
    "scripture": ("en", ((BIBLES, lambda files: chapters(files, "4")),)),
    "code": (
        "python",
        (
            (
                Package("grain", "Apache-2.0", r"grain/(?!.*(_test|_pb2)\.py).*\.py", ""),
                formats.modules,
            ),
            (
                Package("rich", "MIT", r"rich/(?!_emoji_codes|_unicode_data/).*\.py", ""),
                formats.modules,
            ),
        ),
    ),
    "law": (
        "en",
        (
            (
                Package(
                    "licensedcode-data", "CC-BY-4.0", r"licensedcode/data/licenses/.*\.LICENSE"
                ),
                formats.licences,
            ),
        ),
    ),
    "mathematics": (
        "en",
        (
            (
                Package("mpmath", "BSD-3-Clause", r"mpmath/(?!tests/).*\.py"),
                formats.mathematics,
            ),
            (
                Package(
                    "sympy", "BSD-3-Clause", rf"sympy/({_MATHEMATICS})/(?!.*(tests|bench)).*\.py"
                ),
                formats.mathematics,
            ),
        ),
    ),
    "technical": (
        "en",
        (
            (
                Package("botocore", "Apache-2.0", r"botocore/data/.*/service-2\.json\.gz"),
                formats.services,
            ),
        ),
    ),
    "dialogue": (
        "en",
        (
            (
                Package(
                    "chatterbot-corpus",
                    "BSD-3-Clause",
                    r"chatterbot_corpus/data/english/(?!coding)\w+\.yml",
                ),
                formats.conversations,
            ),
        ),
    ),
}


@EVALUATIONS.register("domains")
@dataclasses.dataclass(frozen=True)
class Domains:
    """Prose, scripture, code, law, mathematics, technical documentation, dialogue."""

    argument_name: ClassVar[str] = ""

    def parts(self) -> list[Part]:
        return [
            package.part(domain, language, texts)
            for domain, (language, packages) in DOMAINS.items()
            for package, texts in packages
        ]
