"""Ways to start cells, behind one small interface.

`local` runs them here and `slurm` hands them to a batch system: both return handles to watch.
`print`, `kubernetes` and `tpu` are printers (`printed.Printer`): they write out what somebody else
is to start.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from moejax.grid.claims import Job


@dataclasses.dataclass(frozen=True)
class Spec:
    """One cell to start.

    Attributes:
      name: for people.
      directory: of the run, below the root.
      argv: flags of `experiments.train`, without `--workdir`.
      workdir: the run directory, absolute.
      token: of the claim in whose name it runs; "" where nothing is started.
    """

    name: str
    directory: str
    argv: tuple[str, ...]
    workdir: str
    token: str = ""


class Handle(Protocol):
    """A cell that was started."""

    directory: str

    @property
    def job(self) -> Job | None:
        """Of a batch system, which goes on with it when this process ends."""


class Launcher(Protocol):
    """Starts cells, tells when they have ended, ends them. How they ended is in their files."""

    name: str

    def free(self) -> int:
        """How many more cells may be submitted now."""

    def submit(self, specs: Sequence[Spec]) -> Sequence[Handle]:
        """Starts cells; a handle for each."""

    def ended(self, handle: Handle) -> bool:
        """Whether the cell's process is over, which is then in its history."""

    def stop(self, handle: Handle, *, kill: bool = False) -> None:
        """Tells a cell to save and end; with `kill` ends it at once."""

    def job_active(self, job: Job) -> bool | None:
        """Whether a batch job waits or runs; None if that cannot be asked from here."""
