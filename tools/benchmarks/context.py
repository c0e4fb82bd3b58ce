"""What a suite is told: which back ends, with or without peers, how much."""

from __future__ import annotations

import dataclasses
from typing import Any

from tools.benchmarks.layers import unavailable


@dataclasses.dataclass(frozen=True)
class Context:
    """The request of one measuring process.

    Attributes:
      suite: its name.
      backends: as asked for.
      peers: compare with torch and transformers.
      targets_only: measure what the targets speak of and no more.
      allocator: regime of malloc.
      rounds, warm_up, budget: see `timing.interleave`.
    """

    suite: str
    backends: tuple[str, ...]
    peers: bool = True
    targets_only: bool = False
    allocator: str = "huge"
    rounds: int = 9
    warm_up: int = 2
    budget: float = 45.0

    @property
    def usable(self) -> tuple[str, ...]:
        """The back ends that can be measured."""
        return tuple(name for name in self.backends if not unavailable(name))

    @staticmethod
    def of(plain: dict[str, Any]) -> Context:
        return Context(**plain | {"backends": tuple(plain["backends"])})
