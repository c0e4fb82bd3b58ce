"""Registries: components (routers, losses, ...) found by name, wherever they are written."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, TypeVar

from moejax.config.knobs import ConfigError, nearest

T = TypeVar("T", bound=type)


class Registry:
    """Maps names to frozen dataclasses (a component's knobs), filled by a decorator.

    A component registers itself when its file is imported; that file may live outside moejax.

    Args:
      kind: what the components are, for messages.
      home: a module that is imported before the first look-up, for components of a layer above
        the one that reads their configs: every tool opens a run of them without knowing of them.
    """

    def __init__(self, kind: str, home: str = "") -> None:
        self.kind = kind
        self._home = home
        self._classes: dict[str, type[Any]] = {}

    def __repr__(self) -> str:
        return f"Registry({self.kind!r}: {', '.join(self.names())})"

    def __contains__(self, name: object) -> bool:
        return name in self._filled()

    def register(self, name: str) -> Callable[[T], T]:
        """Returns the decorator that enters a frozen dataclass under `name`.

        It sets the class variable `registered_name`. The same definition may be executed again
        (a reloaded module, a notebook cell) and then replaces its older self.

        Raises:
          ConfigError: the name is taken by another class, is not a plain word, or the class is
            not a frozen dataclass or has a knob called `name`.
        """

        def decorate(cls: T) -> T:
            where = f"{self.kind} {name!r} ({cls.__module__}.{cls.__qualname__})"
            if not name or not all(c.isalnum() or c in "_-+." for c in name):
                raise ConfigError(f"{where}: a name is made of letters, digits and _ - + .")
            params = cls.__dict__.get("__dataclass_params__")
            if params is None or not params.frozen:
                raise ConfigError(
                    f"{where}: is not a frozen dataclass; "
                    "write @dataclasses.dataclass(frozen=True) below the registration"
                )
            if "name" in cls.__dict__["__dataclass_fields__"]:
                raise ConfigError(
                    f"{where}: has a knob `name`, which is reserved for the registered name; "
                    "nearest valid: `label`"
                )
            other = self._classes.get(name)
            if other is not None and not same_definition(other, cls):
                raise ConfigError(
                    f"{where}: the name is taken by {other.__module__}.{other.__qualname__}; "
                    f"nearest valid: {name}_2"
                )
            cls.registered_name = name  # type: ignore[attr-defined]
            self._classes[name] = cls
            return cls

        return decorate

    def get(self, name: str, path: str = "") -> type[Any]:
        """Returns the dataclass registered as `name`.

        Raises:
          ConfigError: unknown name; the message starts with `path` and lists the known names.
        """
        found = self._filled().get(name)
        if found is None:
            where = f"{path}={name!r}" if path else repr(name)
            known = ", ".join(self.names()) or "none (is the file that registers it imported?)"
            hint = nearest(name, self.names())
            raise ConfigError(f"{where}: unknown {self.kind}{hint}; known: {known}")
        return found

    def names(self) -> tuple[str, ...]:
        """Returns the registered names, sorted."""
        return tuple(sorted(self._filled()))

    def _filled(self) -> dict[str, type[Any]]:
        if self._home:
            importlib.import_module(self._home)
        return self._classes


def same_definition(a: type[Any], b: type[Any]) -> bool:
    """Whether two classes come from one place in the source (the file may have run twice)."""
    return a is b or (a.__module__, a.__qualname__) == (b.__module__, b.__qualname__)


def registered_name(cls: type[Any]) -> str | None:
    """Returns the name `cls` itself was registered under; a parent's name does not count."""
    name = cls.__dict__.get("registered_name")
    return name if isinstance(name, str) else None
