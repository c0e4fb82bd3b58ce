"""The knobs of a composed config as a table: key, value, unit and meaning."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from moejax.config.knobs import knob_of
from moejax.config.registry import registered_name


def knob_table(config: Any, path: str = "config") -> str:
    """One line per knob of a dataclass and everything below it."""
    rows = list(_rows(config, path))
    width = max(len(key) + len(value) for key, value, _ in rows) + 3
    return "\n".join(f"{f'{key} = {value}':<{width}}  {doc}".rstrip() for key, value, doc in rows)


def _rows(config: Any, path: str) -> Iterator[tuple[str, str, str]]:
    if registered_name(type(config)):
        yield f"{path}.name", repr(registered_name(type(config))), "registered component"
    for field in dataclasses.fields(config):
        value, key = getattr(config, field.name), f"{path}.{field.name}"
        if dataclasses.is_dataclass(value):
            yield from _rows(value, key)
            continue
        knob = knob_of(field)
        notes = [knob.doc, f"[{knob.unit}]" if knob.unit else ""]
        if knob.choices:
            notes.append(f"({' | '.join(map(str, knob.choices))})")
        yield key, repr(value), " ".join(note for note in notes if note)
