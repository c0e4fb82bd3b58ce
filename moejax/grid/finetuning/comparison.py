"""`Comparison`: methods x tasks x seeds as data, what `get_comparison` of a grid file returns."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from moejax.config import ConfigError, nearest
from moejax.data.tasks.contract import open_task
from moejax.finetune.recipe import ESFTS, KINDS, SIZED
from moejax.finetune.selection import DEFAULT_P

FULL_SEEDS = 2**31


@dataclasses.dataclass(frozen=True)
class Treatment:
    """One way to fine-tune: a method of configs/finetune.py and what it is set to.

    Attributes:
      method: of `recipe.KINDS`.
      p: threshold of a selection; 0: the published one.
      overrides: dotted key of the recipe -> value, e.g. `optimizer.lr`.
      name: fit for a folder, unique in a comparison; "": method and p.
    """

    method: str
    p: float = 0.0
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    name: str = ""

    def __post_init__(self) -> None:
        if self.method not in KINDS:
            hint = nearest(self.method, KINDS) or f"; known: {', '.join(KINDS)}"
            raise ConfigError(f"method {self.method!r}: no such method{hint}")
        if not 0.0 <= self.p <= 1.0:
            raise ConfigError(f"{self.method}: p={self.p}: a share; nearest valid value 1.0")
        if self.p and self.method not in ESFTS:
            raise ConfigError(f"{self.method}: p={self.p}: selects no experts; nearest valid 0")

    @property
    def label(self) -> str:
        """Of folders and lines."""
        return self.name or self.method + (f"-p{self.p:g}" if self.p else "")

    @property
    def selects(self) -> bool:
        """Whether experts are selected."""
        return self.method in ESFTS

    @property
    def threshold(self) -> float:
        """The p that is used."""
        return self.p or DEFAULT_P[ESFTS[self.method]]

    @property
    def sized(self) -> bool:
        """Whether it can be made to train as many parameters as another."""
        return self.method in SIZED


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What is compared from every base.

    Attributes:
      tasks: as `tools.task` takes them.
      treatments: what is tried on each.
      seeds: of each; the order of the data, and what is drawn.
      match: method whose selection low-rank methods and `partial` train as many parameters as; "":
        as their own knobs say.
      samples, length: of the text that experts are scored on; bounded by the base's window.
      generate: answers that are generated for exact match, by run.
      overrides: dotted key of the recipe -> value, for all runs.
    """

    tasks: Sequence[str]
    treatments: Sequence[Treatment]
    seeds: Sequence[int] = (0, 1)
    match: str = "esft_gate"
    samples: int = 32
    length: int = 4096
    generate: int = 0
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("tasks", "treatments", "seeds"):
            values = [getattr(one, "label", one) for one in getattr(self, name)]
            if not values:
                raise ConfigError(f"{name}: nothing to compare; nearest valid: one of them")
            twice = next((one for one in values if values.count(one) > 1), None)
            if twice is not None:
                raise ConfigError(f"{name}: {twice} is there twice; nearest valid: once")
        for seed in self.seeds:
            if type(seed) is not int or not 0 <= seed < FULL_SEEDS:
                raise ConfigError(f"seeds: {seed!r} is no seed; nearest valid value 0")
        if self.match and self.match not in ESFTS:
            hint = nearest(self.match, ESFTS) or f"; known: {', '.join(ESFTS)}"
            raise ConfigError(f"match={self.match!r}: is no method that selects experts{hint}")
        names = [open_task(task).name for task in self.tasks]
        if len(set(names)) < len(names):
            raise ConfigError(f"tasks: {', '.join(self.tasks)}: two are one; nearest valid: once")


def flag(key: str, value: Any) -> str:
    """`--config.KEY=VALUE` of the recipe, as its flags read it back."""
    return f"--config.{key}={value if isinstance(value, str) else _literal(value)}"


def _literal(value: Any) -> str:
    try:
        json.dumps(value)
    except TypeError as error:
        raise ConfigError(f"{value!r}: cannot be given to a command line") from error
    return repr(tuple(value)) if isinstance(value, list | tuple) else repr(value)
