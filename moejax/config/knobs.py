"""Knobs: dataclass fields that know their unit, meaning and valid values."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moejax.config.registry import Registry

MISSING = dataclasses.MISSING
BOOLEAN_WORDS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_KEY = "knob"


class ConfigError(ValueError):
    """A configuration mistake, told in one line: what, where, and the nearest valid value."""

    def __init__(self, message: str) -> None:
        # ml_collections re-raises an error of a config file as the same type with the whole
        # traceback for a message. Its last line is the message we wrote; keep only that.
        lines = [line.strip() for line in str(message).splitlines() if line.strip()] or [""]
        last = lines[-1]
        if len(lines) > 1:
            last = last.removeprefix(f"{type(self).__module__}.{type(self).__qualname__}: ")
        super().__init__(last)


@dataclasses.dataclass(frozen=True)
class Knob:
    """What a field's metadata says about its values; `low`/`high` bound numbers element-wise, and
    None is left out of the plain form with `silent_none`."""

    unit: str = ""
    doc: str = ""
    choices: tuple[Any, ...] | None = None
    low: float | None = None
    high: float | None = None
    low_open: bool = False
    high_open: bool = False
    registry: Registry | None = None
    silent_none: bool = False


def knob(
    default: Any = MISSING,
    *,
    unit: str = "",
    doc: str = "",
    choices: Iterable[Any] | None = None,
    low: float | None = None,
    high: float | None = None,
    low_open: bool = False,
    high_open: bool = False,
    registry: Registry | None = None,
    silent_none: bool = False,
) -> Any:
    """Returns a `dataclasses.field` with a default, a unit and its valid values.

    Args:
      default: the one default; absent = required. A frozen dataclass instance, a tuple or a
        dict (copied for each owner) may stand here; a list or a set may not.
      unit: unit of the value ("tokens", "steps", ...); "" = none.
      doc: one sentence for the reader of the docs.
      choices: the values allowed (for a tuple or dict field: of each element).
      low: least number allowed; excluded if `low_open`.
      high: greatest number allowed; excluded if `high_open`.
      low_open: whether `low` itself is refused.
      high_open: whether `high` itself is refused.
      registry: the field holds a component of that registry, chosen by the key `name`.
      silent_none: None is left out of `to_plain`: a component that came later than the first runs,
        whose configs and hashes stay as they are.

    Raises:
      ConfigError: a mutable default, or bounds that admit nothing.
    """
    if isinstance(default, list | set):
        raise ConfigError(f"knob default {default!r} is mutable; nearest valid: a tuple")
    if low is not None and high is not None and low > high:
        raise ConfigError(f"knob bounds are empty: low={low} is above high={high}")
    meta = Knob(
        unit=unit,
        doc=doc,
        choices=None if choices is None else tuple(choices),
        low=low,
        high=high,
        low_open=low_open,
        high_open=high_open,
        registry=registry,
        silent_none=silent_none,
    )
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, metadata={_KEY: meta})
    return dataclasses.field(default=default, metadata={_KEY: meta})


def knob_of(field: dataclasses.Field[Any]) -> Knob:
    """Returns the field's Knob; an ordinary dataclass field has an unconstrained one."""
    found = field.metadata.get(_KEY)
    return found if isinstance(found, Knob) else Knob()


def nearest(word: str, options: Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" for the option closest to `word`, or "" if none is close."""
    names = [str(option) for option in options]
    folded = {name.lower(): name for name in names}
    match = difflib.get_close_matches(str(word).lower(), list(folded), n=1, cutoff=0.6)
    return f"; did you mean {folded[match[0]]!r}?" if match else ""


def show(value: Any) -> str:
    """Returns a one-line repr of at most about 80 characters for an error message."""
    if isinstance(value, Mapping):
        text = "{" + ", ".join(map(str, value)) + "}"
    else:
        text = repr(value).replace("\n", " ")
    return text if len(text) <= 80 else text[:77] + "..."


def check_value(value: Any, meta: Knob, path: str) -> None:
    """Checks one scalar against its knob's choices and bounds.

    Raises:
      ConfigError: names `path`, the value and the nearest valid one.
    """
    if meta.choices is not None and not _among(value, meta.choices):
        raise ConfigError(f"{path}={show(value)}: {_choice_text(value, meta.choices)}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if not math.isfinite(value):
        raise ConfigError(f"{path}={value}: must be finite{_nearest_bound(value, meta)}")
    too_low = meta.low is not None and (value <= meta.low if meta.low_open else value < meta.low)
    too_high = meta.high is not None and (
        value >= meta.high if meta.high_open else value > meta.high
    )
    if too_low or too_high:
        raise ConfigError(
            f"{path}={value!r}: must be {_interval(meta)}{_nearest_bound(value, meta)}"
        )


def _among(value: Any, choices: tuple[Any, ...]) -> bool:
    # True == 1 in Python; a choice must also agree on being a bool.
    return any(
        value == choice and isinstance(value, bool) == isinstance(choice, bool)
        for choice in choices
    )


def _choice_text(value: Any, choices: tuple[Any, ...]) -> str:
    text = "must be one of " + ", ".join(map(str, choices))
    if isinstance(value, str):
        return text + nearest(value, [c for c in choices if isinstance(c, str)])
    numbers = [c for c in choices if isinstance(c, int | float) and not isinstance(c, bool)]
    if numbers and isinstance(value, int | float) and math.isfinite(value):
        closest = min(numbers, key=lambda c: abs(c - value))
        return f"{text}; nearest valid value: {closest!r}"
    return text


def _interval(meta: Knob) -> str:
    if meta.low is None:
        return f"{'<' if meta.high_open else '<='} {meta.high:g}"
    if meta.high is None:
        return f"{'>' if meta.low_open else '>='} {meta.low:g}"
    left, right = "(" if meta.low_open else "[", ")" if meta.high_open else "]"
    return f"in {left}{meta.low:g}, {meta.high:g}{right}"


def _nearest_bound(value: float, meta: Knob) -> str:
    if math.isnan(value):
        return ""
    below = meta.low is not None and value <= meta.low
    bound, is_open = (meta.low, meta.low_open) if below else (meta.high, meta.high_open)
    if bound is None:
        return ""
    if isinstance(value, int):
        whole = math.ceil(bound) if below else math.floor(bound)
        if is_open and whole == bound:
            whole += 1 if below else -1
        return f"; nearest valid value: {whole}"
    if is_open:
        return f"; nearest valid value: just {'above' if below else 'below'} {bound:g}"
    return f"; nearest valid value: {float(bound)!r}"
