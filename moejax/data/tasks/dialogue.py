"""`dialogue`: the next turn of a conversation."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from moejax.config import ConfigError, knob
from moejax.data.documents import decode, read_bytes
from moejax.data.evaluation.documents import one_line
from moejax.data.evaluation.packages import Package
from moejax.data.tasks.contract import TASKS, TaskPart
from moejax.data.tasks.example import Example, as_label

TALKS = Package(
    "chatterbot-corpus",
    "BSD-3-Clause",
    r"chatterbot_corpus/data/english/(?!coding)\w+\.yml",
    who="the task dialogue",
)


@TASKS.register("dialogue")
@dataclasses.dataclass(frozen=True)
class Dialogue:
    """Answers of conversations in English; `domain` is the topic.

    A document are all conversations that open with the same words: those have many answers.
    """

    turns: int = knob(3, low=1, high=9, unit="turns", doc="Of a prompt; the last ones are kept.")
    longest: int = knob(200, low=10, unit="characters", doc="Of the prompt, and of the answer.")

    argument_name: ClassVar[str] = ""

    def parts(self) -> list[TaskPart]:
        where = f"the conversations of {TALKS.name}"
        return [TaskPart(where, TALKS.describe, self._read, TALKS.paths)]

    def _read(self) -> Iterator[Example]:
        for name, file in TALKS.files():
            topic = name.rpartition("/")[2].removesuffix(".yml")
            for number, talk in enumerate(_conversations(file)):
                for turn in range(1, len(talk), 2):  # the other speaker's
                    prompt = "\n".join(talk[max(turn - self.turns, 0) : turn])
                    if talk[turn] and 0 < len(prompt) <= self.longest >= len(talk[turn]):
                        yield Example(
                            f"{topic}/{number}.{turn}",
                            as_label(talk[0]),
                            prompt,
                            talk[turn],
                            topic,
                            "en",
                        )


def _conversations(file: Path) -> list[list[str]]:
    try:
        import yaml
    except ImportError as error:
        raise ConfigError(
            "the task dialogue needs the package 'PyYAML'; install it: pip install PyYAML"
        ) from error
    try:
        found = yaml.safe_load(decode(read_bytes(file), str(file)))["conversations"]
        # Some of them are a single text, which nobody answers.
        return [[one_line(str(turn)) for turn in talk] for talk in found if isinstance(talk, list)]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigError(f"{file}: holds no conversations ({one_line(repr(error))})") from error
