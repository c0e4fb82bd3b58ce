"""A labelled evaluation set as training text: `labelled:SPEC`, e.g. `labelled:languages`.

A model that has seen all domains or languages of a set, but not the documents held out, is what
specialisation should be measured on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from moejax.data.corpora.contract import CORPORA
from moejax.data.documents import Document
from moejax.data.evaluation import EvaluationDocument, EvaluationSet, open_evaluation
from moejax.data.evaluation.order import held_out

if TYPE_CHECKING:
    from moejax.data.knobs import DataConfig


@CORPORA.register("labelled")
@dataclasses.dataclass(frozen=True)
class LabelledCorpus:
    """The documents of an evaluation set, with their domains and languages.

    The set itself says which are held out (`moejax.data.evaluation.order.held_out`), so that their
    other labels can be had of them later, and aligned units are held out as a whole.
    """

    spec: str
    validation_fraction: float
    split_seed: int

    argument_name: ClassVar[str] = "SPEC"
    stored: ClassVar[bool] = True
    # A change in how documents are cut out of the files, ordered or held out needs a new number,
    # or caches built before it would still be found.
    revision: ClassVar[int] = 1

    @classmethod
    def from_data(cls, config: DataConfig, argument: str) -> LabelledCorpus:
        """Takes the spec. Raises ConfigError as `open_evaluation`."""
        open_evaluation(argument)
        return cls(argument, config.validation_fraction, config.split_seed)

    def fingerprint(self) -> dict[str, Any]:
        return {"revision": self.revision} | self._set().fingerprint()

    def sources(self) -> list[dict[str, Any]]:
        return self._set().sources()

    def documents(self) -> Iterator[Document]:
        count: dict[tuple[str, str], int] = {}
        for document, held in self._divided():
            group = (document.domain, document.language)
            number = count[group] = count.get(group, -1) + 1
            name = f"{document.domain}/{document.language}/{number}"
            yield Document(
                name,
                document.text,
                document.domain,
                document.language,
                f"{self.spec}: {name}",
                "validation" if held else "train",
            )

    def held_out(self) -> Iterator[EvaluationDocument]:
        """Yields the documents of the split `validation` with all their labels, in order."""
        return (document for document, held in self._divided() if held)

    def _divided(self) -> Iterator[tuple[EvaluationDocument, bool]]:
        documents = list(self._set().documents())
        held = held_out(documents, self.validation_fraction, self.split_seed)
        return zip(documents, held, strict=True)

    def _set(self) -> EvaluationSet:
        return open_evaluation(self.spec)
