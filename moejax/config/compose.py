"""Compose: dataclasses <-> ConfigDict <-> JSON, strictly checked in both directions."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from ml_collections import config_dict

from moejax.config.annotations import (
    NONE,
    SCALARS,
    accepts,
    is_mapping,
    is_union,
    type_error,
    type_name,
)
from moejax.config.compare import config_hash, diff, format_diff
from moejax.config.knobs import MISSING, ConfigError, Knob, check_value, knob_of, nearest, show
from moejax.config.registry import Registry, registered_name, same_definition

__all__ = [
    "build",
    "check",
    "config_hash",
    "diff",
    "format_diff",
    "to_config_dict",
    "to_plain",
]

T = TypeVar("T")


def build(cls: type[T], cfg: Mapping[str, Any] | config_dict.ConfigDict, path: str = "config") -> T:
    """Builds a dataclass, and all below it, from a ConfigDict or a dict read from JSON.

    Types follow the annotations: bool, int, float (an int is taken), str, Literal, X | None,
    int | str, tuple (a list is taken), dict[str, X], nested dataclasses, and components of a
    registry by their `name`. After construction `validate(path)` is called, children first.

    Args:
      cls: the dataclass to build.
      cfg: its values; what is absent takes its default.
      path: the dotted name of `cfg`, used in messages.

    Raises:
      ConfigError: unknown or missing key, wrong type, value out of range or not among the
        choices, or a refusal by a component's `validate`.
    """
    if not dataclasses.is_dataclass(cls):
        raise ConfigError(f"{path}: {cls!r} is not a dataclass")
    if not is_mapping(cfg):
        raise type_error(cfg, cls, Knob(), path)
    result: T = _assemble(cls, _mapping(cfg), path, validate=True)
    return result


def check(dc: Any, path: str = "config") -> None:
    """Checks a dataclass that already exists as strictly as `build` does.

    Raises:
      ConfigError: as `build`.
    """
    _canonical(dc, path, validate=True)


def to_plain(dc: Any) -> dict[str, Any]:
    """Returns a JSON-ready dict: tuples are lists, components carry `name`, float knobs floats.

    Raises:
      ConfigError: a value has the wrong type or is out of range.
    """
    plain: dict[str, Any] = dump(_canonical(dc, "config", validate=False))
    return plain


def to_config_dict(dc: Any) -> config_dict.ConfigDict:
    """Returns a nested ConfigDict for `--config.a.b=value` overrides; `build` reads it back.

    A field of one type keeps that type under override. Optional fields and unions accept any
    literal there (`none` included) and are checked by `build`.

    Raises:
      ConfigError: a value has the wrong type or is out of range.
    """
    return _config(_canonical(dc, "config", validate=False))


# --- checking and building ---------------------------------------------------------------------


def _assemble(cls: type[Any], given: dict[str, Any], path: str, *, validate: bool) -> Any:
    given = dict(given)
    name = registered_name(cls)
    if name is not None and given.pop("name", name) != name:
        raise ConfigError(f"{path}.name: must be {name!r} here; nearest valid value: {name!r}")
    hints = hints_of(cls, path)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for key in given:
        if key not in fields:
            hint = nearest(str(key), fields) or f"; valid keys: {', '.join(fields) or 'none'}"
            owner = f" of {name!r}" if name else ""
            raise ConfigError(f"{path}.{key}: unknown key{owner}{hint}")
    values = {}
    for key, field in fields.items():
        if key in given:
            value = given[key]
        elif field.default is not MISSING:
            value = field.default
        elif field.default_factory is not MISSING:
            value = field.default_factory()
        else:
            raise ConfigError(f"{path}.{key}: is required ({type_name(hints[key])})")
        values[key] = convert(value, hints[key], knob_of(field), f"{path}.{key}", validate)
    try:
        made = cls(**values)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:  # raised by a __post_init__ that knows no path
        raise ConfigError(f"{path}: {error}") from error
    if validate and callable(getattr(made, "validate", None)):
        made.validate(path)
    return made


def _canonical(dc: Any, path: str, *, validate: bool) -> Any:
    if isinstance(dc, type) or not dataclasses.is_dataclass(dc):
        raise ConfigError(f"{path}={show(dc)}: is not a dataclass instance")
    given = {field.name: getattr(dc, field.name) for field in dataclasses.fields(dc) if field.init}
    return _assemble(type(dc), given, path, validate=validate)


def convert(value: Any, hint: Any, meta: Knob, path: str, validate: bool) -> Any:
    """A value as a field of type `hint` holds it; raises ConfigError if it cannot."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if is_union(hint):
        if value is None and NONE in args:
            return None
        arms = [arm for arm in args if arm is not NONE]
        if meta.registry is not None and len(arms) == 1:
            return convert(value, arms[0], meta, path, validate)
        fitting = [arm for arm in arms if accepts(value, arm)]
        if not fitting:
            raise type_error(value, hint, meta, path)
        exact = [arm for arm in fitting if type(value) is arm]  # int | float: 3 stays an int
        return convert(value, (exact or fitting)[0], meta, path, validate)
    if origin is tuple or hint is tuple:
        return _convert_tuple(value, hint, args, meta, path, validate)
    if origin is dict:
        if not is_mapping(value):
            raise type_error(value, hint, meta, path)
        items = _mapping(value)
        odd = [key for key in items if not isinstance(key, str) or not key]
        if odd:
            raise ConfigError(f"{path}: the key {odd[0]!r} is not a name; keys are strings")
        return {k: convert(v, args[1], meta, f"{path}.{k}", validate) for k, v in items.items()}
    if meta.registry is not None:
        return _component(value, meta.registry, path, validate)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if isinstance(value, hint):
            return _canonical(value, path, validate=validate)
        if not is_mapping(value):
            raise type_error(value, hint, meta, path)
        return _assemble(hint, _mapping(value), path, validate=validate)
    if origin is typing.Literal:
        check_value(value, dataclasses.replace(meta, choices=args), path)
        return value
    if hint not in SCALARS:
        raise ConfigError(f"{path}: a field of type {type_name(hint)} cannot be configured")
    if not accepts(value, hint):
        raise type_error(value, hint, meta, path)
    value = float(value) if hint is float else value
    check_value(value, meta, path)
    return value


def _convert_tuple(
    value: Any, hint: Any, args: tuple[Any, ...], meta: Knob, path: str, validate: bool
) -> tuple[Any, ...]:
    if not isinstance(value, tuple | list):
        raise type_error(value, hint, meta, path)
    if len(args) == 2 and args[1] is Ellipsis:
        args = (args[0],) * len(value)
    if len(args) != len(value):
        raise ConfigError(f"{path}={show(value)}: has {len(value)} elements, must have {len(args)}")
    pairs = enumerate(zip(value, args, strict=True))
    return tuple(convert(v, arg, meta, f"{path}[{i}]", validate) for i, (v, arg) in pairs)


def _component(value: Any, registry: Registry, path: str, validate: bool) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        name = registered_name(type(value))
        if name is None or not same_definition(registry.get(name, f"{path}.name"), type(value)):
            raise ConfigError(
                f"{path}: {type(value).__qualname__} is not a registered {registry.kind}; "
                f"known: {', '.join(registry.names())}"
            )
        return _canonical(value, path, validate=validate)
    known = ", ".join(registry.names())
    if not is_mapping(value):
        hint = nearest(value, registry.names()) if isinstance(value, str) else ""
        raise ConfigError(
            f"{path}={show(value)}: expected a {registry.kind} with a key `name`{hint}; "
            f"known: {known}"
        )
    given = _mapping(value)
    name = given.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"{path}.name: is required; one of {known}")
    return _assemble(registry.get(name, f"{path}.name"), given, path, validate=validate)


def _mapping(value: Any) -> dict[Any, Any]:
    return dict(value.items())  # items() resolves ConfigDict's references and placeholders


def hints_of(cls: type[Any], path: str) -> dict[str, Any]:
    """The annotations of a dataclass, evaluated; raises ConfigError if that fails."""
    try:
        return _evaluated_hints(cls)
    except (NameError, TypeError) as error:
        raise ConfigError(f"{path}: the annotations of {cls.__qualname__}: {error}") from error


def _evaluated_hints(cls: type[Any]) -> dict[str, Any]:
    # Annotations are text, and compiling them is most of the time of a build.
    if cls not in _HINTS:
        _HINTS[cls] = typing.get_type_hints(cls)
    return _HINTS[cls]


_HINTS: dict[type[Any], dict[str, Any]] = {}


# --- dumping -----------------------------------------------------------------------------------


def _named(dc: Any) -> dict[str, Any]:
    name = registered_name(type(dc))
    return {} if name is None else {"name": name}


def dump(value: Any) -> Any:
    """The JSON-ready form of what `build` made, which needs no second check."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = (field for field in dataclasses.fields(value) if field.init)
        held = {field.name: getattr(value, field.name) for field in fields if _shown(field, value)}
        return _named(value) | {key: dump(item) for key, item in held.items()}
    if isinstance(value, tuple):
        return [dump(item) for item in value]
    if isinstance(value, dict):
        return {key: dump(item) for key, item in value.items()}
    return value


def _shown(field: dataclasses.Field[Any], owner: Any) -> bool:
    return getattr(owner, field.name) is not None or not knob_of(field).silent_none


def _config(dc: Any) -> config_dict.ConfigDict:
    hints = _evaluated_hints(type(dc))
    cfg = config_dict.ConfigDict(_named(dc))
    for field in dataclasses.fields(dc):
        if field.init:
            cfg[field.name] = _config_value(getattr(dc, field.name), hints[field.name])
    return cfg


def _config_value(value: Any, hint: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _config(value)
    if isinstance(value, dict):
        cfg = config_dict.ConfigDict()
        for key, item in value.items():
            cfg[key] = _config_value(item, typing.get_args(hint)[1] if _is_dict(hint) else Any)
        return cfg
    if isinstance(value, tuple):
        value = tuple(_config_value(item, Any) for item in value)
    if is_union(hint):
        # ml_collections types a field by its first value, which for `int | str` or `float | None`
        # would refuse the other kind; an object slot takes any literal and `build` decides.
        return config_dict.FieldReference(value, field_type=object)
    return value


def _is_dict(hint: Any) -> bool:
    return typing.get_origin(hint) is dict
