"""Compare: the hash of a resolved config and a readable difference between two."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from moejax.config.knobs import show


class _Absent:
    """Stands in a difference for a key that one side does not have."""

    def __repr__(self) -> str:
        return "(absent)"


ABSENT = _Absent()


def config_hash(plain: Mapping[str, Any]) -> str:
    """Returns 12 hex characters of the SHA-256 of the config's canonical JSON."""
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def diff(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, object, object]]:
    """Returns (dotted key, value in a, value in b) for all that differs; ABSENT where missing."""
    return list(_diff(a, b, ""))


def format_diff(rows: Iterable[tuple[str, object, object]]) -> str:
    """Returns one line per row, `key: old -> new`; "" for no rows."""
    return "\n".join(f"{key}: {show(old)} -> {show(new)}" for key, old, new in rows)


def _diff(a: Any, b: Any, path: str) -> Iterable[tuple[str, object, object]]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in [*a, *(key for key in b if key not in a)]:
            where = f"{path}.{key}" if path else str(key)
            yield from _diff(a.get(key, ABSENT), b.get(key, ABSENT), where)
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        for i, (left, right) in enumerate(zip(a, b, strict=True)):
            yield from _diff(left, right, f"{path}[{i}]")
    elif isinstance(a, bool) != isinstance(b, bool) or a != b:
        yield path, a, b
