"""`mathematics` and `reasoning`: questions that the generators of `reasoning-gym` make."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from typing import ClassVar

from moejax.config import ConfigError, knob, nearest
from moejax.data.evaluation.reasoning import LEVELS, describe_gym, generate
from moejax.data.tasks.contract import TASKS, TaskPart
from moejax.data.tasks.example import Example, same_question

MATHEMATICS = (
    "chain_sum",
    "products",
    "basic_arithmetic",
    "gcd",
    "lcm",
    "simple_equations",
    "count_bits",
)
REASONING = (
    "spell_backward",
    "letter_counting",
    "word_sorting",
    "leg_counting",
    "family_relationships",
)


class _Gym:
    """Examples of the generators in `tasks`; what both tasks of this file share."""

    tasks: tuple[str, ...]
    size: int
    levels: int
    seed: int
    longest: int
    known: ClassVar[tuple[str, ...]]

    def validate(self, path: str) -> None:
        """Raises ConfigError for a generator that is not among this task's."""
        for task in self.tasks:
            if task not in self.known:
                raise ConfigError(
                    f"{path}.tasks={task!r}: unknown generator{nearest(task, self.known)}; "
                    f"known: {', '.join(self.known)}"
                )

    def parts(self) -> list[TaskPart]:
        describe = functools.partial(describe_gym, f"the task {type(self).registered_name}")  # type: ignore[attr-defined]
        return [
            TaskPart(f"{task} of reasoning-gym", describe, functools.partial(self._read, task))
            for task in self.tasks
        ]

    def _read(self, task: str) -> Iterator[Example]:
        who = f"the task {type(self).registered_name}"  # type: ignore[attr-defined]
        for level, number, question, answer in generate(
            task, self.size, self.seed, range(self.levels), who
        ):
            if not question or not answer or len(question) + len(answer) > self.longest:
                continue
            # A question is its own document: whatever the seed and size, it is in one split.
            words = same_question(question).encode()
            document = f"{task}/{hashlib.blake2b(words, digest_size=8).hexdigest()}"
            yield Example(f"{task}/{level}.{number}", document, question, answer, task, "en")


@TASKS.register("mathematics")
@dataclasses.dataclass(frozen=True)
class Mathematics(_Gym):
    """Arithmetic with its results; `domain` is the generator. A question is a document."""

    tasks: tuple[str, ...] = knob(MATHEMATICS, doc="Which of the generators.")
    size: int = knob(400, low=1, high=10_000, unit="items", doc="Of each generator and level.")
    levels: int = knob(2, low=1, high=LEVELS, unit="levels", doc="Of difficulty, from the easiest.")
    seed: int = knob(0, low=0, doc="Another seed makes other items.")
    longest: int = knob(400, low=40, unit="characters", doc="Of question and answer together.")

    argument_name: ClassVar[str] = ""
    known: ClassVar[tuple[str, ...]] = MATHEMATICS


@TASKS.register("reasoning")
@dataclasses.dataclass(frozen=True)
class Reasoning(_Gym):
    """Small puzzles of letters, words, legs and families; `domain` is the generator."""

    tasks: tuple[str, ...] = knob(REASONING, doc="Which of the generators.")
    size: int = knob(600, low=1, high=10_000, unit="items", doc="Of each generator and level.")
    levels: int = knob(2, low=1, high=LEVELS, unit="levels", doc="Of difficulty, from the easiest.")
    seed: int = knob(0, low=0, doc="Another seed makes other items.")
    longest: int = knob(400, low=40, unit="characters", doc="Of question and answer together.")

    argument_name: ClassVar[str] = ""
    known: ClassVar[tuple[str, ...]] = REASONING
