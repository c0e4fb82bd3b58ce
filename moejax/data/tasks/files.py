"""`task:files:PATTERN`: your own examples, an object with `prompt` and `answer` on every line."""

from __future__ import annotations

import dataclasses
import glob
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from moejax.config import ConfigError, knob, nearest
from moejax.data.documents import decode, normalise, read_bytes
from moejax.data.tasks.contract import TASKS, TaskPart
from moejax.data.tasks.example import Example, as_label


@TASKS.register("files")
@dataclasses.dataclass(frozen=True)
class FilesTask:
    """Lines of .jsonl files: `prompt` and `answer`, if you like `document`, `domain`, `language`.

    Without `document` a line is its own, and is told by its prompt: equal prompts share a split.
    """

    argument: str = knob(doc="Path or pattern of .jsonl files.")
    prompt: str = knob("prompt", doc="Field with the prompt.")
    answer: str = knob("answer", doc="Field with the answer.")
    document: str = knob("document", doc="Optional field that tells which lines belong together.")
    domain: str = knob("domain", doc="Optional field with a label.")
    language: str = knob("language", doc="Optional field with the answer's language.")

    argument_name: ClassVar[str] = "PATTERN"

    def parts(self) -> list[TaskPart]:
        found = sorted(glob.glob(self.argument, recursive=True))
        if not found:
            parent = Path(self.argument).parent
            names = [path.name for path in parent.iterdir()] if parent.is_dir() else []
            hint = nearest(Path(self.argument).name, names)
            raise ConfigError(f"task:files:{self.argument}: matches no file{hint}")
        for name in found:
            if not name.endswith(".jsonl"):
                raise ConfigError(f"{name}: no .jsonl file; nearest valid: a pattern like *.jsonl")
        # Ids know the folder where two files have one name, and no place outside the pattern's.
        root = os.path.commonpath([os.path.dirname(name) or "." for name in found])
        return [self._part(Path(name), os.path.relpath(name, root)) for name in found]

    def _part(self, file: Path, name: str) -> TaskPart:
        def describe() -> dict[str, Any]:
            return {"file": file.name, "version": "", "licence": "yours"}

        def read() -> Iterator[Example]:
            for number, line in enumerate(decode(read_bytes(file), str(file)).splitlines(), 1):
                yield self._example(line, file, f"{name}/{number}", number)

        return TaskPart(str(file), describe, read, lambda: [file])

    def _example(self, line: str, file: Path, identity: str, number: int) -> Example:
        where = f"{file}, line {number}"
        try:
            record = json.loads(line)
        except ValueError:
            raise ConfigError(f"{where}: is not JSON") from None
        if not isinstance(record, dict):
            raise ConfigError(f"{where}: is no object with {self.prompt!r} and {self.answer!r}")

        def field(key: str, default: str | None) -> str:
            name = getattr(self, key)
            if name not in record and default is not None and name == key:
                return default
            value = record.get(name)
            if not isinstance(value, str):
                hint = nearest(name, record)
                what = (
                    f"is of type {type(value).__name__}" if name in record else f"is absent{hint}"
                )
                raise ConfigError(f"{where}: the field {name!r} {what}; it must be a string")
            return normalise(value)

        prompt = field("prompt", None)
        document = field("document", as_label(prompt))
        labels = field("domain", "text"), field("language", "und")
        return Example(identity, document, prompt, field("answer", None), *labels)
