"""A task as a text: `task:SPEC`, e.g. `task:law`; of its test nothing is here.

A run that is tuned for a task reads its examples otherwise (`moejax.data.tasks.prepared`): with a
base's tokenizer, and learning answers only. This corpus is for whatever looks at texts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from moejax.data.corpora.contract import CORPORA
from moejax.data.documents import Document
from moejax.data.plan import SPLITS
from moejax.data.tasks.contract import PREFIX, open_task
from moejax.data.tasks.example import CHAT, render

if TYPE_CHECKING:
    from moejax.data.knobs import DataConfig


@CORPORA.register("task")
@dataclasses.dataclass(frozen=True)
class TaskCorpus:
    """Every example, the chat template around it, as a document."""

    spec: str
    template: str = CHAT

    argument_name: ClassVar[str] = "SPEC"
    stored: ClassVar[bool] = True

    @classmethod
    def from_data(cls, config: DataConfig, argument: str) -> TaskCorpus:
        """Takes the spec. Raises ConfigError as `open_task`."""
        open_task(PREFIX + argument)
        return cls(argument, config.general.template if config.general else CHAT)

    def fingerprint(self) -> dict[str, Any]:
        return open_task(PREFIX + self.spec).fingerprint() | {"template": self.template}

    def sources(self) -> list[dict[str, Any]]:
        task = open_task(PREFIX + self.spec)
        return [{"domain": task.kind} | row for row in task.sources()]

    def documents(self) -> Iterator[Document]:
        task = open_task(PREFIX + self.spec)
        for split in SPLITS:
            for one in task.examples(split):
                text = "".join(render(one, self.template))
                where = f"{self.spec}: {one.id}"
                yield Document(one.id, text, one.domain, one.language, where, split)
