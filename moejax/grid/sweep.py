"""`Sweep`: what `get_grid` of a grid file returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from moejax.config import ConfigError
from moejax.grid.axes import Axes

SEED = "seed"
"""The key of a config that the seeds are for."""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A grid as data: a base config, treatments, and the seeds that each of them is run with.

    Attributes:
      base: as `--config` of experiments.train, `FILE.py[:ARGUMENT]`, with holes that axes fill:
        `configs/lm.py:size=tiny,moe={moe}`.
      treatments: what is compared; None: the base alone.
      seeds: apart from the treatments, because results are averaged over them. () leaves the
        base's own seed.
      overrides: dotted key -> value, the same for every cell.
      imports: files or modules that register components, as `--import`.
    """

    base: str
    treatments: Axes | None = None
    seeds: Sequence[int] = (0,)
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    imports: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.base:
            raise ConfigError("grid: base is empty; nearest valid: 'configs/lm.py:size=nano'")
        if self.treatments is not None and not isinstance(self.treatments, Axes):
            raise ConfigError(
                f"grid: treatments={self.treatments!r} are no axes; nearest valid: "
                "axis(key, values)"
            )
        wrong = [seed for seed in self.seeds if type(seed) is not int]
        if wrong:
            raise ConfigError(f"grid: the seed {wrong[0]!r} is not a whole number")
        if len(set(self.seeds)) < len(self.seeds):
            twice = next(seed for seed in self.seeds if list(self.seeds).count(seed) > 1)
            raise ConfigError(f"grid: the seed {twice} is there twice")
