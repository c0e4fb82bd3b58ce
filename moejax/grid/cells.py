"""Cells: one run of a grid each, with a name that is safe as a directory."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from typing import Any

LONGEST_NAME = 180
"""Bytes of a cell's name; with the hash behind it a directory stays below 200."""

SAFE_NAME = re.compile(r"[A-Za-z0-9_+=,~][A-Za-z0-9._=,+~-]{0,179}")
"""What a cell may be called: one path component that no shell and no file system minds."""

_UNSAFE = re.compile(r"[^A-Za-z0-9._=,+-]")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes:
      name: made of its axes and seed, `router=top_p,p=0.4,seed=1`; unique in its grid.
      overrides: dotted config key -> value, the seed included.
      axes: treatment axis -> label, without the seed.
      seed: None where the base config's own seed is left as it is.
      config: the resolved config, as in config.json of the run.
      hash: 10 hex digits of what the run computes (`rundir.identity_hash` of `config`).
      argv: arguments of `python -m experiments.train` but for --workdir.
    """

    name: str
    overrides: dict[str, Any]
    axes: dict[str, str]
    seed: int | None
    config: dict[str, Any]
    hash: str
    argv: tuple[str, ...]

    @property
    def directory(self) -> str:
        """The run directory below the grid's root: one path component."""
        return f"{self.name}-{self.hash}"


@dataclasses.dataclass(frozen=True)
class Grid:
    """A resolved grid.

    Attributes:
      name: of the grid file.
      source: the --grid argument.
      cells: seeds are the outer loop, so that an early stop still compares treatments.
      bases: `--config` of the cells -> that config before any override.
    """

    name: str
    source: str
    cells: tuple[Cell, ...]
    bases: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)


def cell_name(axes: Mapping[str, str], seed: int | None) -> str:
    """A safe, readable and unambiguous name: what had to be changed is told apart by a hash."""
    parts = [f"{axis}={label}" for axis, label in axes.items()]
    parts += [] if seed is None else [f"seed={seed}"]
    return safe_name(",".join(parts) or "base")


def safe_name(text: str) -> str:
    """`text` where it is a safe name already, else something like it with 8 hex digits of it."""
    slug = _UNSAFE.sub("_", text)
    slug = "_" + slug[1:] if slug[:1] in (".", "-", "") else slug
    if slug == text and len(slug) <= LONGEST_NAME:
        return slug
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{slug[: LONGEST_NAME - 9]}~{digest}"
