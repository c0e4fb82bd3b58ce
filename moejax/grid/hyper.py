"""`hyper`: the object that `get_hyper(hyper)` of big_vision's and vmoe's config files is given.

Google's own is internal; this is the part of it that their public configs use. Axes are named by
their keys. A sweep over `config.seed` becomes the seeds of the grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from moejax.config import ConfigError, nearest
from moejax.grid import axes
from moejax.grid.axes import Axes, Point

NAMES = (
    "sweep", "fixed", "product", "zipit", "chainit", "discrete", "categorical", "boolean",
)  # fmt: skip


class Hyper:
    """Makes `Axes`; every method is called as in those configs."""

    def sweep(self, name: str, values: Sequence[Any]) -> Axes:
        """One key and its values."""
        key = name.removeprefix("config.")
        return axes.axis(key, list(values), name=key)

    def fixed(self, name: str, value: Any, length: int = 1) -> Axes:
        """One key with one value.

        Raises:
          ConfigError: `length` other than 1, which would be the same cell several times.
        """
        if length != 1:
            raise ConfigError(f"hyper.fixed({name!r}): length={length}; nearest valid value: 1")
        return self.sweep(name, [value])

    def product(self, parts: Sequence[Axes]) -> Axes:
        """Every combination; of nothing, as most of those configs have it, the base alone."""
        return axes.product(*parts) if parts else Axes((Point({}, {}),))

    def zipit(self, parts: Sequence[Axes]) -> Axes:
        """First with first, second with second; a single value goes with all."""
        parts = list(parts)
        longest = max(map(len, parts), default=0)
        same = [part if len(part) != 1 else Axes(part.points * longest) for part in parts]
        return axes.zip(*same)

    def chainit(self, parts: Sequence[Axes]) -> Axes:
        """One after the other."""
        return axes.chain(*parts)

    def discrete(self, values: Sequence[Any]) -> Sequence[Any]:
        """The values."""
        return values

    categorical = discrete

    def boolean(self) -> Sequence[bool]:
        """Both."""
        return (False, True)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        hint = nearest(name, NAMES) or f"; known: {', '.join(NAMES)}"
        raise ConfigError(f"hyper.{name}: is not supported{hint}")
