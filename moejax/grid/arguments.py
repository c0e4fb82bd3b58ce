"""What the command line of `experiments/grid.py` says, as one value that every command takes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from moejax.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The flags; `docs/grids.md` says what each one does. An empty text means "not given".

    Attributes:
      names: words after the command: the two cells or runs of `diff`.
      imports: the user's own files or modules that register components.
      filter: `axis=label[|label...]`, all of which must hold.
    """

    names: tuple[str, ...] = ()
    grid: str = ""
    root: str = ""
    imports: tuple[str, ...] = ()
    filter: tuple[str, ...] = ()
    json: bool = False
    chip: str = ""
    limit: int = 40
    by: str = "eval/loss"
    group: str = ""
    agg: str = "mean±ci"
    format: str = "markdown"
    retry_failed: bool = False
    rerun: bool = False
    max_parallel: int = 0
    shard: str = ""
    fail_fast: bool = False
    timeout: float = 0.0
    launcher: str = "local"
    watch: float = 0.0
    every: float = 10.0
    wait: bool = True
    accelerators: str = ""
    slurm: tuple[str, ...] = ()
    image: str = ""
    topology: str = ""
    slices: int = 1
    queue: str = ""
    volume: str = ""
    env: tuple[str, ...] = ()
    zone: str = ""
    remote_root: str = ""

    def need_grid(self) -> str:
        """The grid's file.

        Raises:
          ConfigError: `--grid` was not given.
        """
        if not self.grid:
            raise ConfigError("--grid: is required, e.g. --grid=smoke or --grid=configs/grids/x.py")
        return self.grid

    def need_root(self) -> Path:
        """The grid's directory.

        Raises:
          ConfigError: `--root` was not given.
        """
        if not self.root:
            raise ConfigError("--root: is required, e.g. --root=runs/smoke")
        return Path(self.root).expanduser()
