"""Cells as processes of this machine: disjoint cores for each, and one accelerator each."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moejax.config.knobs import ConfigError, nearest
from moejax.grid.claims import Job
from moejax.grid.launchers import Spec
from moejax.grid.launchers.squeue import Squeue
from moejax.grid.places import Places
from moejax.grid.process import CellProcess

TRAIN = (sys.executable, "-m", "experiments.train")
"""What runs a cell: to be started in the checkout."""
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
ACCELERATORS = ("cuda", "tpu")


class LocalCell:
    """A cell of this machine that was started, on one of the launcher's places."""

    job: Job | None = None

    def __init__(self, process: CellProcess, place: int) -> None:
        self.directory = process.directory
        self.process = process
        self.place = place


class Local:
    """A pool of places, each with its own cores and at most one accelerator.

    Args:
      places: the root's.
      parallel: how many cells run at a time; 0: one per accelerator, else one per two cores.
      accelerators: e.g. `cuda:0,1,2` or `tpu:0,1`; "": those that are here.
      timeout: seconds for one attempt at a cell; 0: none.
      train: the command that takes a cell's argv and `--workdir`.
      cwd: where it is run; default: here.

    Raises:
      ConfigError: more cells at a time than there are cores or accelerators.
    """

    name = "local"

    def __init__(
        self,
        places: Places,
        *,
        parallel: int = 0,
        accelerators: str = "",
        timeout: float = 0.0,
        train: Sequence[str] = TRAIN,
        cwd: str = "",
    ) -> None:
        self._places = places
        self._timeout = timeout
        self._train = tuple(train)
        self._cwd = cwd or os.getcwd()
        self._kind, self._devices = parse_accelerators(accelerators or accelerators_here())
        self._squeue = Squeue()
        cores = sorted(os.sched_getaffinity(0))
        self.parallel = parallel or len(self._devices) or max(1, len(cores) // 2)
        if self._devices and self.parallel > len(self._devices):
            raise ConfigError(
                f"--max-parallel={self.parallel}: one accelerator per cell, and there are "
                f"{len(self._devices)} ({self._kind}); nearest valid value {len(self._devices)}"
            )
        if self.parallel > len(cores):
            raise ConfigError(
                f"--max-parallel={self.parallel}: cells would fight for the {len(cores)} cores of "
                f"this process; nearest valid value {len(cores)}"
            )
        each = len(cores) // self.parallel
        # Equal shares, so that cells are comparable; a remainder stays free.
        self.cores = [cores[i * each : (i + 1) * each] for i in range(self.parallel)]
        self._free = list(range(self.parallel))

    @property
    def accelerated(self) -> bool:
        """Whether cells have an accelerator, and so their arrays in its memory."""
        return bool(self._devices)

    def free(self) -> int:
        return len(self._free)

    def submit(self, specs: Sequence[Spec]) -> list[LocalCell]:
        return [self._start(spec) for spec in specs]

    def ended(self, handle: Any) -> bool:
        if not handle.process.poll():
            return False
        if handle.place not in self._free:
            self._free.append(handle.place)
            self._free.sort()
        return True

    def stop(self, handle: Any, *, kill: bool = False) -> None:
        if kill:
            handle.process.kill()
        else:
            handle.process.stop()

    def job_active(self, job: Job) -> bool | None:
        return self._squeue.active(job)  # of a driver that used Slurm on the same root

    def _start(self, spec: Spec) -> LocalCell:
        place = self._free.pop(0)
        process = CellProcess(
            self._places,
            spec.directory,
            [*self._train, *spec.argv, f"--workdir={spec.workdir}"],
            self._cwd,
            launcher=self.name,
            timeout=self._timeout,
            cores=self.cores[place],
            variables=self._variables(place),
        )
        return LocalCell(process, place)

    def _variables(self, place: int) -> dict[str, str]:
        # XLA counts the cores it may run on; these libraries would start a thread for each other.
        variables = {name: str(len(self.cores[place])) for name in THREADS}
        if self._kind == "cuda":
            variables["CUDA_VISIBLE_DEVICES"] = self._devices[place]
        if self._kind == "tpu":
            variables |= {
                "TPU_VISIBLE_CHIPS": self._devices[place],
                "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
                "TPU_PROCESS_BOUNDS": "1,1,1",
            }
        return variables


def accelerators_here(devices: Path = Path("/dev")) -> str:
    """What `--accelerators` would say of this machine, from its device files; "": has none.

    Also "" where JAX or CUDA is told to leave them alone.
    """
    if os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        return ""
    for kind, pattern in (("cuda", r"nvidia\d+"), ("tpu", r"accel\d+")):
        count = sum(bool(re.fullmatch(pattern, path.name)) for path in devices.iterdir())
        listed = ",".join(map(str, range(count)))
        if kind == "cuda" and count:
            listed = os.environ.get("CUDA_VISIBLE_DEVICES", listed).strip()
        if listed and listed != "-1":
            return f"{kind}:{listed}"
    return ""


def parse_accelerators(text: str) -> tuple[str, list[str]]:
    """`cuda:0,1` -> ("cuda", ["0", "1"]).

    Raises:
      ConfigError: another form, an unknown kind, or an accelerator twice.
    """
    if not text:
        return "", []
    kind, _, listed = text.partition(":")
    devices = [device.strip() for device in listed.split(",") if device.strip()]
    if kind not in ACCELERATORS:
        hint = nearest(kind, ACCELERATORS) or f"; known: {', '.join(ACCELERATORS)}"
        raise ConfigError(f"--accelerators={text}: expected KIND:LIST, e.g. cuda:0,1{hint}")
    if not devices or not all(device.replace("-", "").isalnum() for device in devices):
        raise ConfigError(f"--accelerators={text}: expected numbers, e.g. {kind}:0,1")
    if len(set(devices)) < len(devices):
        raise ConfigError(f"--accelerators={text}: names one twice; one accelerator per cell")
    return kind, devices
