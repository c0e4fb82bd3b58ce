"""Annotations: which values a field's type takes, and how a wrong one is reported."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from ml_collections import config_dict

from moejax.config.knobs import BOOLEAN_WORDS, ConfigError, Knob, show

SCALARS = (bool, int, float, str)
NONE = type(None)


def is_mapping(value: Any) -> bool:
    """Whether the value is a dict or a ConfigDict (which is not a Mapping)."""
    return isinstance(value, Mapping | config_dict.ConfigDict)


def is_union(hint: Any) -> bool:
    """Whether an annotation is `X | Y`, Union[X, Y] or Optional[X]."""
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def accepts(value: Any, hint: Any) -> bool:
    """Whether a value has the outer shape that the annotation asks for."""
    origin = typing.get_origin(hint) or hint
    if origin is float:
        return type(value) is not bool and isinstance(value, int | float)
    if origin is int:
        return type(value) is not bool and isinstance(value, int)
    if origin is bool or origin is str:
        return isinstance(value, origin)
    if origin is tuple:
        return isinstance(value, tuple | list)
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if origin is dict:
        return is_mapping(value)
    return is_mapping(value) or (isinstance(origin, type) and isinstance(value, origin))


def type_name(hint: Any) -> str:
    """Returns the annotation as a user would write it."""
    if isinstance(hint, type) and typing.get_origin(hint) is None:
        return "None" if hint is NONE else hint.__name__
    return str(hint).replace("typing.", "").replace("NoneType", "None")


def type_error(value: Any, hint: Any, meta: Knob, path: str) -> ConfigError:
    """Returns the error for a value of the wrong type, with the value that was probably meant."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        keys = ", ".join(field.name for field in dataclasses.fields(hint) if field.init)
        wanted = f"the keys of {hint.__name__} ({keys})"
    else:
        wanted = type_name(hint) + (f" in {meta.unit}" if meta.unit else "")
    text = f"{path}={show(value)}: expected {wanted}, got {type(value).__name__}"
    guess = _guess(value, hint)
    return ConfigError(text if guess is None else f"{text}; nearest valid value: {guess}")


def _guess(value: Any, hint: Any) -> str | None:
    """Returns, as it is written, what a value of the wrong type probably meant."""
    args = typing.get_args(hint)
    arms = [arm for arm in args if arm is not NONE] if is_union(hint) else [hint]
    if is_union(hint) and NONE in args and str(value).lower() in ("none", "null"):
        return "None"
    if hint is bool:
        word = str(value).lower()
        return str(BOOLEAN_WORDS[word]) if word in BOOLEAN_WORDS else None
    if typing.get_origin(hint) is tuple and args and accepts(value, args[0]):
        return repr((value,))
    if str in arms and isinstance(value, SCALARS) and not isinstance(value, float):
        return repr(str(value))
    if int in arms or float in arms:
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            return None
        if number != number or abs(number) == float("inf"):
            return None
        return repr(number if float in arms else round(number))
    return None
