"""Specs: `KIND[:ARGUMENT][?OPTION=VALUE&OPTION=VALUE]`, as text that names a registered source."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from pathlib import Path
from typing import Any

from moejax.config import ConfigError, Registry, build, nearest
from moejax.config.knobs import BOOLEAN_WORDS


def open_spec(spec: str, registry: Registry, shared: type[Any]) -> tuple[str, Any, Any]:
    """Returns the kind, the registered dataclass behind it, and the options that all kinds share.

    Args:
      spec: e.g. `files:mine/*.jsonl?only=en,de`.
      registry: of dataclasses whose fields are their options; `argument_name` says what stands
        after `kind:` ("" for nothing), and arrives in the field `argument`.
      shared: a dataclass of the options that every kind takes.

    Raises:
      ConfigError: unknown kind or option, a bad value, an argument absent or not wanted.
    """
    kind, argument, given = _parse(spec)
    cls = registry.get(kind, registry.kind)
    wanted = cls.argument_name
    if wanted and not argument:
        raise ConfigError(f"{spec!r}: needs an argument; nearest valid: {kind}:{wanted}")
    if argument and not wanted:
        raise ConfigError(f"{spec!r}: takes no argument; nearest valid: {kind!r}")
    own = {f.name: f for f in dataclasses.fields(cls) if f.name != "argument"}
    common = {f.name: f for f in dataclasses.fields(shared)}
    fields = own | common
    values: dict[str, Any] = {}
    for key, text in given.items():
        if key not in fields:
            hint = nearest(key, fields) or f"; valid options: {', '.join(fields)}"
            raise ConfigError(f"{spec!r}: unknown option {key!r}{hint}")
        values[key] = _value(spec, key, text, fields[key].default)
    source = build(
        cls,
        {key: value for key, value in values.items() if key in own}
        | ({"argument": argument} if wanted else {}),
        repr(spec),
    )
    options = build(shared, {k: v for k, v in values.items() if k in common}, repr(spec))
    return kind, source, options


def spec_name(kind: str, spec: str) -> str:
    """Returns a name fit for a folder: the kind, and a hash of the spec where that says more."""
    return kind if spec == kind else f"{kind}-{hashlib.sha256(spec.encode()).hexdigest()[:8]}"


def content_hash(file: Path) -> str:
    """Returns the SHA-256 of a file; raises ConfigError if it cannot be read."""
    try:
        with open(file, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from error


def _parse(spec: str) -> tuple[str, str, dict[str, str]]:
    # A glob may hold question marks of its own: the options are what follows the last one, if
    # that begins with `word=`.
    match = re.fullmatch(r"(?s)(.*)\?(\w+=[^?]*)", spec)
    head, tail = (match[1], match[2]) if match else (spec, "")
    kind, _, argument = head.partition(":")
    options: dict[str, str] = {}
    for part in tail.split("&") if tail else ():
        key, equals, value = part.partition("=")
        if not equals or not value:
            raise ConfigError(f"{spec!r}: option {part!r} needs a value; e.g. {key}=VALUE")
        if key in options:
            raise ConfigError(f"{spec!r}: option {key!r} is given twice")
        options[key] = value
    return kind, argument, options


def _value(spec: str, key: str, text: str, default: Any) -> Any:
    if isinstance(default, tuple):
        return tuple(text.split(","))
    if isinstance(default, bool):
        if text.lower() not in BOOLEAN_WORDS:
            raise ConfigError(f"{spec!r}: {key}={text!r}: expected true or false")
        return BOOLEAN_WORDS[text.lower()]
    if isinstance(default, int | float):
        try:
            return type(default)(text)
        except ValueError:
            kind = "a whole number" if isinstance(default, int) else "a number"
            raise ConfigError(
                f"{spec!r}: {key}={text!r}: expected {kind}; for example {key}={default}"
            ) from None
    return text
