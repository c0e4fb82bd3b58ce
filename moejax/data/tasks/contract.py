"""The contract of a task: prompts with answers, in three splits that no option moves.

A task is asked for by a spec, `KIND[?OPTION=VALUE&OPTION=VALUE]`, e.g. `law` or
`translation?target=de`; files of your own are `task:files:PATTERN`. `task:` may stand before any.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Protocol

from moejax.config import ConfigError, Registry, knob, nearest
from moejax.data.spec import content_hash, open_spec, spec_name
from moejax.data.tasks.example import (
    SPLITS,
    Example,
    check_example,
    check_split,
    place,
    same_question,
    split_of,
)

TASKS = Registry("task")
PREFIX = "task:"
# A change in how examples are cut out of the sources, ordered or split needs a new number, or
# caches built before it would still be found.
REVISION = 1


@dataclasses.dataclass(frozen=True)
class TaskPart:
    """What one source contributes to a task; nothing is read before `read` is iterated.

    Attributes:
      where: for messages: the package or file.
      describe: returns {"package" (or "file"), "version", "licence"}.
      read: yields its examples, in the same order every time and on every machine.
      files: returns all files that are read, in a fixed order.
    """

    where: str
    describe: Callable[[], dict[str, Any]]
    read: Callable[[], Iterator[Example]]
    files: Callable[[], Iterable[Path]] = tuple


class TaskSource(Protocol):
    """What is registered in `TASKS`: a frozen dataclass whose fields are its options.

    Attributes:
      argument_name: what stands after `kind:`, for messages ("PATTERN"); it arrives in the field
        `argument`. "" where the kind takes none.
    """

    registered_name: ClassVar[str]
    argument_name: ClassVar[str]

    def parts(self) -> list[TaskPart]:
        """Returns the parts, in a fixed order; raises ConfigError where that needs a look."""


@dataclasses.dataclass(frozen=True)
class TaskSelection:
    """The options that every task takes; neither moves a document to another split."""

    only: tuple[str, ...] = knob((), doc="Keep these domains and languages; () keeps all.")
    limit: int = knob(0, low=0, unit="examples", doc="Of each split, the first; 0 keeps all.")


@dataclasses.dataclass(frozen=True)
class Task:
    """A task as `open_task` returns it; nothing has been read yet.

    Attributes:
      spec: the text it was asked for by, which `open_task` takes; `task:` only where it must be.
      name: fit for a folder: the kind, and a hash of the spec where that says more.
      kind: the registered name.
      source: the registered dataclass behind it.
      selection: the options that every task takes.
    """

    spec: str
    name: str
    kind: str
    source: TaskSource
    selection: TaskSelection

    @property
    def corpus(self) -> str:
        """The task as `config.data.corpus`."""
        return PREFIX + self.spec.removeprefix(PREFIX)

    def examples(self, split: str) -> tuple[Example, ...]:
        """Returns the examples of a split, in an order whose prefixes come from everywhere.

        An example is left out if it occurs twice, or if another document asks the same before: what
        is tested was not trained on in other words.

        Raises:
          ConfigError: one line: no such split, a package that is absent, a file that cannot be
            read, a label of `only` that does not exist, no example at all, or none in this split.
        """
        check_split(split)
        found = self._chosen[split]
        if not found:
            counts = ", ".join(f"{len(self._chosen[name])} in {name}" for name in SPLITS)
            raise ConfigError(
                f"{self.spec!r}: is empty: no example in its split {split} ({counts})"
            )
        return found

    def fingerprint(self) -> dict[str, Any]:
        """Returns JSON that changes whenever the examples would; equal on every machine.

        It hashes files instead of reading examples.

        Raises:
          ConfigError: a package or file is absent.
        """
        options = dataclasses.asdict(self.source)  # type: ignore[call-overload]
        options.pop("argument", None)  # the same files elsewhere are the same task
        hash_of = functools.cache(content_hash)
        rows = []
        for part in self.source.parts():
            files = hashlib.sha256()
            for file in part.files():
                files.update(f"{file.name}\0{hash_of(file)}\0".encode())
            rows.append({"files": files.hexdigest()} | part.describe())
        return {
            "revision": REVISION,
            "task": self.kind,
            "options": options | dataclasses.asdict(self.selection),
            "parts": rows,
        }

    def sources(self) -> list[dict[str, Any]]:
        """Returns one JSON row per part: `package` (or `file`), `version`, `licence`."""
        return [part.describe() for part in self.source.parts()]

    @functools.cached_property
    def _chosen(self) -> dict[str, tuple[Example, ...]]:
        only, limit = self.selection.only, self.selection.limit
        everything = self._read()
        names = dict.fromkeys(label for e in everything for label in (e.domain, e.language))
        for name in only:
            if name not in names:
                raise ConfigError(
                    f"{self.spec!r}: only={name!r}: no domain or language of that name"
                    f"{nearest(name, names)}; known: {', '.join(names)}"
                )
        chosen: dict[str, list[Example]] = {split: [] for split in SPLITS}
        for example in sorted(everything, key=place):
            if not only or example.domain in only or example.language in only:
                chosen[split_of(self.kind, example.document)].append(example)
        return {split: tuple(mine[: limit or None]) for split, mine in chosen.items()}

    def _read(self) -> list[Example]:
        """All examples of all parts but repetitions, whatever is asked for."""
        found: list[Example] = []
        ids: set[str] = set()
        asked: dict[str, str] = {}
        met: set[tuple[str, str]] = set()
        for part in self.source.parts():
            number = 0
            for example in part.read():
                number += 1
                where = f"{part.where}, example {number}"
                check_example(example, where)
                question = same_question(example.prompt)
                if asked.setdefault(question, example.document) != example.document:
                    continue
                if (question, example.answer) in met:
                    continue
                met.add((question, example.answer))
                if example.id in ids:
                    raise ConfigError(f"{where}: a second example with the id {example.id!r}")
                ids.add(example.id)
                found.append(example)
            if not number:
                raise ConfigError(f"{part.where}: is empty: holds no example")
        return found


def open_task(spec: str) -> Task:
    """Returns the task that a spec names.

    Raises:
      ConfigError: unknown kind or option, a bad value, an argument absent or not wanted; or
        `files:PATTERN` without `task:` before it, which is a corpus.
    """
    bare = spec.removeprefix(PREFIX)
    files = bare.startswith("files:")
    if bare == spec and files:
        raise ConfigError(
            f"{spec!r}: is a corpus, not a task; a task of files is spelled {PREFIX + spec!r}"
        )
    if not bare:
        raise ConfigError(f"{spec!r}: names no task; known: {', '.join(TASKS.names())}")
    kind, source, selection = open_spec(bare, TASKS, TaskSelection)
    return Task(PREFIX + bare if files else bare, spec_name(kind, bare), kind, source, selection)
