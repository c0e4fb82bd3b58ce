"""Override: many variants of one checked config, each as strict as a build and far cheaper."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from moejax.config.compose import convert, dump, hints_of
from moejax.config.knobs import ConfigError, Knob, knob_of, nearest
from moejax.config.registry import registered_name

T = TypeVar("T")


def override(dc: T, changes: Mapping[str, Any], path: str = "config") -> T:
    """A copy of a checked dataclass with some dotted keys set, checked as strictly as by `build`.

    What a change does not touch is neither built nor checked again, so that many variants of one
    config cost little.

    Args:
      changes: dotted key -> value. A mapping (with `name` for a registered component) or a
        dataclass replaces a whole section. A shorter key is applied before a longer one inside it.

    Raises:
      ConfigError: as `build`; also a key below a value that is None or no section.
    """
    tree: dict[str, Any] = {}
    for key in sorted(changes, key=lambda key: key.count(".")):
        *parents, last = key.split(".")
        node = tree
        for part in parents:
            node = node.setdefault(part, _Changes())
            if isinstance(node, _Whole):
                node = node.inside
        node[last] = _Whole(changes[key])
    made: T = _override(dc, tree, path)
    return made


class _Changes(dict[str, Any]):
    """Changes inside a section, by key."""


class _Whole:
    """A new value of a key, and changes inside it."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.inside = _Changes()


def _override(dc: Any, tree: Mapping[str, Any], path: str) -> Any:
    cls = type(dc)
    name, hints = registered_name(cls), hints_of(cls, path)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    values = {key: getattr(dc, key) for key in fields}
    for key, change in tree.items():
        where = f"{path}.{key}"
        if key == "name" and name is not None:
            raise ConfigError(
                f"{where}: is {name!r} here, and another one has other keys; nearest valid: "
                f"{path}={{'name': ..., ...}} as a whole"
            )
        if key not in fields:
            hint = nearest(key, fields) or f"; valid keys: {', '.join(fields) or 'none'}"
            owner = f" of {name!r}" if name else ""
            raise ConfigError(f"{where}: unknown key{owner}{hint}")
        values[key] = _set(values[key], change, hints[key], knob_of(fields[key]), where)
    try:
        made = cls(**values)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if callable(getattr(made, "validate", None)):
        made.validate(path)
    return made


def _set(old: Any, change: Any, hint: Any, meta: Knob, path: str) -> Any:
    """The value of one key after a change of it, or inside it."""
    if not isinstance(change, _Whole):
        return _inside(old, change, hint, meta, path)
    new = convert(change.value, hint, meta, path, True)
    return _inside(new, change.inside, hint, meta, path) if change.inside else new


def _inside(value: Any, tree: Mapping[str, Any], hint: Any, meta: Knob, path: str) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _override(value, tree, path)
    first = next(iter(tree))
    if value is None:
        raise ConfigError(f"{path}.{first}: cannot be set, because {path} is None here")
    if not isinstance(value, dict):
        raise ConfigError(f"{path}.{first}: unknown key; {path} is a value, not a group of keys")
    made = dict(value)
    for key, change in tree.items():
        if key not in value:
            hint_text = nearest(key, value) or f"; valid keys: {', '.join(value) or 'none'}"
            raise ConfigError(f"{path}.{key}: unknown key{hint_text}")
        made[key] = _set(value[key], change, typing.get_args(hint)[1], meta, f"{path}.{key}")
    return made


def plain_variant(made: Any, base: Any, base_plain: Any) -> Any:
    """`to_plain(made)`, where `made` is an `override` of `base` and `base_plain` its plain form."""
    if made is base:
        return base_plain
    if type(made) is type(base) and isinstance(base_plain, dict) and dataclasses.is_dataclass(made):
        fields = [field for field in dataclasses.fields(made) if field.init]
        name = {key: base_plain[key] for key in ("name",) if registered_name(type(made))}
        return name | {
            field.name: plain_variant(value, getattr(base, field.name), base_plain.get(field.name))
            for field in fields
            if (value := getattr(made, field.name)) is not None or not knob_of(field).silent_none
        }
    return dump(made)
