"""Argument: the short switches behind the colon of `--config=configs/lm.py:size=tiny,quick`."""

from __future__ import annotations

import types
from typing import Any

from moejax.config.knobs import BOOLEAN_WORDS, ConfigError, nearest


def parse_argument(arg: str | None, **defaults: Any) -> types.SimpleNamespace:
    """Parses "size=tiny,moe=top_p,quick=true" against typed defaults.

    Args:
      arg: the text; None or "" means all defaults. A bare `quick` means `quick=true`.
      **defaults: name = default. The value is typed by it; a tuple lists the choices, the first
        being the default.

    Returns:
      A namespace with every name of `defaults`.

    Raises:
      ConfigError: an unknown or repeated name, an empty or wrong value; names what is nearest.
    """
    values = {key: d[0] if isinstance(d, tuple) else d for key, d in defaults.items()}
    seen: set[str] = set()
    for part in (arg or "").split(","):
        if not part.strip():
            if arg and arg.strip():
                raise ConfigError(f"config argument {arg!r}: has an empty part; remove a comma")
            continue
        key, equals, text = (piece.strip() for piece in part.partition("="))
        if key not in defaults:
            hint = nearest(key, defaults) or f"; valid arguments: {', '.join(defaults) or 'none'}"
            raise ConfigError(f"config argument {key!r}: unknown argument{hint}")
        if key in seen:
            raise ConfigError(f"config argument {key!r}: is given twice")
        seen.add(key)
        if not equals and not isinstance(values[key], bool):
            raise ConfigError(
                f"config argument {key!r}: needs a value; nearest valid: {key}={values[key]}"
            )
        values[key] = _value(key, text if equals else "true", defaults[key])
    return types.SimpleNamespace(**values)


def _value(key: str, text: str, default: Any) -> Any:
    if isinstance(default, tuple):
        found = [choice for choice in default if str(choice) == text]
        if not found:
            options = ", ".join(map(str, default))
            hint = nearest(text, map(str, default))
            raise ConfigError(f"config argument {key}={text!r}: must be one of {options}{hint}")
        return found[0]
    if isinstance(default, bool):
        if text.lower() not in BOOLEAN_WORDS:
            hint = nearest(text, ("true", "false")) or "; nearest valid: true or false"
            raise ConfigError(f"config argument {key}={text!r}: expected true or false{hint}")
        return BOOLEAN_WORDS[text.lower()]
    if isinstance(default, int | float):
        try:
            return type(default)(text)
        except ValueError:
            kind = type(default).__name__
            raise ConfigError(
                f"config argument {key}={text!r}: expected {kind}{_near_number(text, default)}"
            ) from None
    return text


def _near_number(text: str, default: int | float) -> str:
    try:
        number = float(text)
        return f"; nearest valid value: {round(number)}"
    except (ValueError, OverflowError):
        return f"; for example {default!r}"
