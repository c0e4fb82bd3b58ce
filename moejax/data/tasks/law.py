"""`law`: clauses of licences and agreements, begun by the prompt and ended by the answer."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import ClassVar

from moejax.config import ConfigError, knob
from moejax.data.documents import decode, read_bytes
from moejax.data.evaluation.documents import one_line
from moejax.data.evaluation.packages import Package
from moejax.data.tasks.contract import TASKS, TaskPart
from moejax.data.tasks.example import Example

LICENCES = Package(
    "licensedcode-data", "CC-BY-4.0", r"licensedcode/data/licenses/.*\.LICENSE", who="the task law"
)
# Of two clauses that begin with the same letters, the second is a variant of the first.
SAME_LETTERS = 60


@TASKS.register("law")
@dataclasses.dataclass(frozen=True)
class Law:
    """The rest of a clause of a licence; `domain` is the licence's category.

    A document is a family of licences ("gpl", "mit", "oracle"): their versions repeat one another.
    """

    shortest: int = knob(80, low=20, unit="characters", doc="Of a clause.")
    longest: int = knob(320, low=40, unit="characters", doc="Of a clause.")

    argument_name: ClassVar[str] = ""

    def validate(self, path: str) -> None:
        """Raises ConfigError if no clause could be long enough and short enough."""
        if self.shortest > self.longest:
            raise ConfigError(
                f"{path}.shortest={self.shortest}: above longest; nearest valid value "
                f"{self.longest}"
            )

    def parts(self) -> list[TaskPart]:
        where = f"the clauses of {LICENCES.name}"
        return [TaskPart(where, LICENCES.describe, self._read, LICENCES.paths)]

    def _read(self) -> Iterator[Example]:
        met: set[str] = set()
        for name, file in LICENCES.files():
            text = decode(read_bytes(file), str(file))
            matter = re.match(r"---\n(.*?\n)---(?:\n|$)", text, re.DOTALL)
            if matter is None:
                raise ConfigError(f"{file}: no front matter between lines of ---")
            if re.search(r"^language: (?!en\b)", matter[1], re.MULTILINE):
                continue
            category = re.search(r"^category: *([\w -]+)$", matter[1], re.MULTILINE)
            domain = category[1].strip() if category else "Unstated"
            stem = name.rpartition("/")[2].removesuffix(".LICENSE")
            family = re.split(r"[-_.]", stem)[0]
            number = -1
            for paragraph in re.split(r"\n\s*\n", text[matter.end() :]):
                clause = one_line(paragraph)
                number += 1
                key = re.sub(r"[^a-z]", "", clause.lower())[:SAME_LETTERS]
                if not self.shortest <= len(clause) <= self.longest or len(key) < 40 or key in met:
                    continue
                met.add(key)
                begin, end = _halves(clause)
                yield Example(
                    f"{stem}/{number}", family, f"Finish the clause: {begin}", end, domain, "en"
                )


def _halves(clause: str) -> tuple[str, str]:
    """Cuts a clause at the blank nearest to its middle; a single word without one, inside."""
    blanks = [place for place, letter in enumerate(clause) if letter == " "]
    if not blanks:
        return clause[: len(clause) // 2], clause[len(clause) // 2 :]
    at = min(blanks, key=lambda place: abs(place - len(clause) // 2))
    return clause[:at], clause[at + 1 :]
