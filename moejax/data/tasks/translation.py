"""`translation`: verses of the Bible from one language into another, aligned by their numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

from moejax.config import ConfigError, knob
from moejax.data.evaluation.languages import BIBLES, VERSIONS, read_verses
from moejax.data.tasks.contract import TASKS, TaskPart
from moejax.data.tasks.example import Example

NAMES = {
    "en": "English",
    "fr": "French",
    "de": "German",
    "es": "Spanish",
    "it": "Italian",
    "ro": "Romanian",
    "ru": "Russian",
    "ar": "Arabic",
    "fa": "Persian",
    "vi": "Vietnamese",
    "tl": "Tagalog",
    "ko": "Korean",
}


@TASKS.register("translation")
@dataclasses.dataclass(frozen=True)
class Translation:
    """A verse in another language; `language` is that of the answer.

    A document is a chapter, whatever the languages: no verse is trained on in one language and
    tested in another.
    """

    source: str = knob("en", choices=tuple(VERSIONS), doc="Language of the prompt.")
    target: str = knob("fr", choices=tuple(VERSIONS), doc="Language of the answer.")
    longest: int = knob(120, low=20, unit="bytes", doc="Of the verse, in both languages.")

    argument_name: ClassVar[str] = ""

    def validate(self, path: str) -> None:
        """Raises ConfigError if both languages are the same."""
        if self.source == self.target:
            near = "fr" if self.source != "fr" else "en"
            raise ConfigError(
                f"{path}.target={self.target!r}: is the source's; nearest valid value {near!r}"
            )

    def parts(self) -> list[TaskPart]:
        where = f"the verses of {BIBLES.name}"
        return [TaskPart(where, self._describe, self._read, self._package.paths)]

    @property
    def _package(self) -> Any:
        return dataclasses.replace(BIBLES, who="the task translation")

    def _describe(self) -> dict[str, Any]:
        editions = "; ".join(VERSIONS[name][1] for name in (self.source, self.target))
        return self._package.describe() | {"licence": f"public domain ({editions})"}

    def _read(self) -> Iterator[Example]:
        for _, file in self._package.files():
            read = (read_verses(file, VERSIONS[name][0]) for name in (self.source, self.target))
            first, second = ({verse[:3]: verse[3] for verse in verses} for verses in read)
            for place, text in first.items():
                other = second.get(place)
                if other is None or max(len(text.encode()), len(other.encode())) > self.longest:
                    continue
                book, chapter, verse = place
                yield Example(
                    f"{book}.{chapter}.{verse}",
                    f"{book}.{chapter}",
                    f"Translate into {NAMES[self.target]}: {text}",
                    other,
                    "scripture",
                    self.target,
                )
