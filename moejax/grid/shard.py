"""`--shard=I/N`: a part of a grid for each of several machines without a batch system."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar

from moejax.config.knobs import ConfigError

T = TypeVar("T")


def shard(cells: Sequence[T], text: str) -> list[T]:
    """The I-th of N parts, I from 1; all cells for "". The parts are disjoint and together all.

    Raises:
      ConfigError: not I/N, or I is not in 1..N.
    """
    if not text:
        return list(cells)
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if not match:
        raise ConfigError(f"--shard={text}: expected I/N, e.g. --shard=1/4")
    part, parts = int(match[1]), int(match[2])
    if not 1 <= part <= parts:
        near = f"{min(max(part, 1), max(parts, 1))}/{max(parts, 1)}"
        raise ConfigError(f"--shard={text}: parts are 1 to {parts}; nearest valid value {near}")
    return list(cells[part - 1 :: parts])
