"""Documents as data: their code blocks, their generated tables, and how to bring both up to date.

    python tests/docs/documents.py README.md docs/*.md

rewrites every generated table and every printed output in place; the tests compare and rewrite
nothing.

A document marks a knob table by `<!-- knobs: moejax.routing.routers.TopP -->` on the line above it,
the table of all routers by `<!-- routers -->`.
A `text` block right after a `python` block is what that block prints. A `python` block that starts
with `# NAME.py` is a file of the reader's; later blocks of the document may import it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import os
import re
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent.parent
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_KNOBS = re.compile(r"^<!-- knobs: ([\w.]+) -->\n((?:\|.*\n)*)", re.MULTILINE)
_ROUTERS = re.compile(r"^<!-- routers -->\n((?:\|.*\n)*)", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block: its language, text, and place in the document."""

    language: str
    text: str
    start: int
    end: int


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a document, in order."""
    return [Block(m[1], m[2], m.start(2), m.end(2)) for m in _FENCE.finditer(text)]


def run(path: Path, directory: Path) -> tuple[dict[str, Any], list[tuple[Block, str]]]:
    """Runs the python blocks of a document in one namespace.

    Args:
      path: the document.
      directory: where its files (`# NAME.py` blocks) are written; must be on `sys.path`.

    Returns:
      The namespace after the last block, and what each block that has a `text` block below it
      printed.
    """
    text = path.read_text()
    module = types.ModuleType(f"document_{path.stem}")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    found = blocks(text)
    outputs = []
    for block, below in zip(found, [*found[1:], None], strict=True):
        if block.language != "python":
            continue
        name = re.match(r"# (\w+\.py)", block.text)
        if name:
            (directory / name[1]).write_text(block.text)
            continue
        # Blank lines above make tracebacks point at the line of the document.
        line = text.count("\n", 0, block.start)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * line + block.text, str(path), "exec"), module.__dict__)
        if below is not None and below.language == "text" and follows(text, block, below):
            outputs.append((below, printed.getvalue()))
    return module.__dict__, outputs


def follows(text: str, block: Block, below: Block) -> bool:
    """Whether nothing but the fences stands between two blocks."""
    return text[block.end : below.start].split() == ["```", "```text"]


def knob_tables(text: str) -> list[tuple[str, str]]:
    """The marked knob tables of a document: dotted name of the dataclass, and table as it is."""
    return [(m[1], m[2]) for m in _KNOBS.finditer(text)]


def knob_table(dotted: str) -> str:
    """The knob table of a dataclass as it should be."""
    from moejax.config.knobs import knob_of
    from moejax.config.registry import registered_name

    module, _, name = dotted.rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    rows = ["| knob | default | valid | meaning |", "|---|---|---|---|"]
    for field in dataclasses.fields(cls):
        meta = knob_of(field)
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if dataclasses.is_dataclass(default):
            shown = registered_name(type(default)) or type(default).__name__
            valid, meaning = "", meta.doc or _sentence(type(default))
        else:
            shown = "required" if default is dataclasses.MISSING else repr(default)
            valid, meaning = _valid(meta), meta.doc
        if meta.registry is not None:
            valid = f"any registered {meta.registry.kind}"
            meaning = f"The {meta.registry.kind}, chosen by its name."
        unit = f" [{meta.unit}]" if meta.unit else ""
        meaning = f"{meaning}{unit}".replace("|", "\\|")
        rows.append(f"| `{field.name}` | `{shown}` | {valid} | {meaning} |")
    return "\n".join(rows) + "\n"


def router_tables(text: str) -> list[str]:
    """The marked tables of all routers in a document, as they are."""
    return [m[1] for m in _ROUTERS.finditer(text)]


def router_table() -> str:
    """The table of moejax's own routers as it should be: what their classes and cards say."""
    from moejax.routing import ROUTERS

    head = ("`router.name`", "proposed by", "rule", "combine weights", "causal", "slots", "losses")
    rows = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name in ROUTERS.names():
        cls = ROUTERS.get(name)
        if not cls.__module__.startswith("moejax."):
            continue
        file = f"{cls.__module__.replace('.', '/')}.py"
        who = re.sub(r"arXiv (\d+\.\d+)", r"[\1](https://arxiv.org/abs/\1)", cls.card.proposed)
        own = "its own, self-adjusting"
        losses = [own if loss == "own" else f"`{loss}`" for loss in cls.card.losses]
        cells = (
            f"[`{name}`](../{file})",
            who,
            cls.card.rule,
            cls.card.weights,
            "yes" if cls.causal else "no",
            _slots(cls()),
            ", ".join(losses) or "none",
        )
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def _slots(router: Any) -> str:
    """Static slots of a token, and how many of them are filled where the batch decides that."""
    slots = "`k`" if router.slots(64) != 64 else "E"
    tokens, experts = 1024, 64
    rows = router.max_rows(tokens, experts) / tokens
    fewer = f", {rows:g} filled on average" if rows < router.slots(experts) else ""
    return slots + fewer


def _valid(meta: Any) -> str:
    if meta.choices is not None:
        return ", ".join(f"`{choice}`" for choice in meta.choices)
    low, high = meta.low, meta.high
    if low is not None and high is not None:
        return f"{'(' if meta.low_open else '['}{low:g}, {high:g}{')' if meta.high_open else ']'}"
    if low is not None:
        return f"{'>' if meta.low_open else '≥'} {low:g}"
    if high is not None:
        return f"{'<' if meta.high_open else '≤'} {high:g}"
    return ""


def _sentence(cls: type) -> str:
    """First sentence of a docstring; the full stop of "et al. 2024" ends none."""
    return " ".join(re.split(r"\.(?=\s+[A-Z]|\s*$)", cls.__doc__ or "")[0].split()) + "."


def rewrite(path: Path) -> bool:
    """Brings tables and printed outputs up to date; returns whether anything changed."""
    before = path.read_text()
    text = _KNOBS.sub(lambda m: f"<!-- knobs: {m[1]} -->\n{knob_table(m[1])}", before)
    text = _ROUTERS.sub(lambda m: f"<!-- routers -->\n{router_table()}", text)
    path.write_text(text)
    with tempfile.TemporaryDirectory() as directory:
        sys.path.insert(0, directory)
        _, outputs = run(path, Path(directory))
    for block, printed in reversed(outputs):
        text = text[: block.start] + printed + text[block.end :]
    path.write_text(text)
    return text != before


if __name__ == "__main__":
    os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests/support")]
    for name in sys.argv[1:]:
        print(name, "rewritten" if rewrite(Path(name)) else "is up to date")
