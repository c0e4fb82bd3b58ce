"""Where a grid keeps its files: the cells' run directories, and beside them what drivers write.

A driver writes nothing into a cell's own directory: a cell whose disk is full, or whose directory
is moved aside, keeps its log and its history.
"""

from __future__ import annotations

import os
from pathlib import Path

from moejax.config.knobs import ConfigError

FORMAT_VERSION = 1


class Places:
    """Paths below the root of a grid; makes nothing.

    A `directory` is the name of a cell's run directory: one path component that ends in a hash, so
    that it is never `driver`.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(os.path.abspath(os.path.expanduser(root)))
        self.driver = self.root / "driver"
        self.lock = self.driver / "lock"
        self.claims = self.driver / "claims"
        self.beats = self.driver / "beats"
        self.slurm = self.driver / "slurm"

    def workdir(self, directory: str) -> Path:
        """The run directory of a cell."""
        return self.root / _component(directory)

    def claim(self, directory: str) -> Path:
        """Who runs the cell now; absent where nobody does."""
        return self.claims / f"{_component(directory)}.json"

    def attempts(self, directory: str) -> Path:
        """Beginning and end of every process of the cell, a JSON object a line."""
        return self.driver / "attempts" / f"{_component(directory)}.jsonl"

    def log(self, directory: str) -> Path:
        """What the cell's processes printed, one after the other."""
        return self.driver / "logs" / f"{_component(directory)}.txt"

    def set_aside(self, directory: str) -> Path:
        """A free place for a run directory that makes room for a new run."""
        number, directory = 1, _component(directory)
        while os.path.lexists(place := self.driver / "set_aside" / f"{directory}.{number}"):
            number += 1
        return place


def _component(directory: str) -> str:
    """Raises ConfigError if a name could lead out of the root."""
    if not directory or directory in (".", "..", "driver") or set(directory) & {"/", "\0"}:
        raise ConfigError(f"{directory!r}: is no name of a cell's directory")
    return directory
