"""Cells as a Slurm job array, submitted with submitit.

Slurm is the engine: jobs wait, run, are preempted and come back without any driver. Before the time
limit, and where the cluster sends a signal before preempting, a job gets SIGUSR2: the cell saves
and the job goes back in the queue. States are read from `squeue` and from files, so no accounting
data base is needed.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from typing import Any

from moejax.config.knobs import ConfigError
from moejax.grid.claims import Job
from moejax.grid.launchers import Spec
from moejax.grid.launchers.local import TRAIN
from moejax.grid.launchers.slurm_runner import Runner
from moejax.grid.launchers.squeue import ASK_SECONDS, Squeue
from moejax.grid.places import Places

INSTALL = "pip install 'moejax[slurm]'"
MAX_REQUEUES = 1000
"""After so many time limits submitit does not put a job back in the queue."""
DEFAULTS = {"time": "240", "cpus_per_task": "1"}
"""Minutes: a cell that needs more goes on after the limit."""


class SlurmCell:
    """A cell that is a job, or an element of an array of them."""

    def __init__(self, directory: str, job: Job) -> None:
        self.directory = directory
        self._job = job

    @property
    def job(self) -> Job:
        return self._job


class Slurm:
    """Submits all cells at once, as an array.

    Args:
      places: the root's, on a file system that all nodes see.
      parallel: how many of the array run at a time; 0: as many as Slurm likes.
      options: NAME=VALUE of sbatch, e.g. `partition=long`, `time=60`, `gpus_per_node=1`.
      timeout: seconds for one attempt at a cell; 0: none.
      train: the command that takes a cell's argv and `--workdir`.
      cwd: where it is run; default: here.
      ask_seconds: between two questions to Slurm.

    Raises:
      ConfigError: submitit or Slurm is missing, or an option has another form.
    """

    name = "slurm"

    def __init__(
        self,
        places: Places,
        *,
        parallel: int = 0,
        options: Sequence[str] = (),
        timeout: float = 0.0,
        train: Sequence[str] = TRAIN,
        cwd: str = "",
        ask_seconds: float = ASK_SECONDS,
    ) -> None:
        try:
            import submitit
        except ImportError as error:
            raise ConfigError(f"--launcher=slurm: needs submitit; {INSTALL}") from error
        self._places = places
        self._timeout = timeout
        self._train = tuple(train)
        self._cwd = cwd or os.getcwd()
        self._squeue = Squeue(ask_seconds)
        try:
            self._executor = submitit.SlurmExecutor(
                folder=places.slurm / "%j", max_num_timeout=MAX_REQUEUES
            )
        except RuntimeError as error:
            raise ConfigError("--launcher=slurm: there is no srun on this machine") from error
        parameters = _parameters(options, submitit.SlurmExecutor._valid_parameters())
        ours = {
            "array_parallelism": parallel or 10_000,
            "setup": [f"cd {shlex.quote(self._cwd)}"],
            "stderr_to_stdout": True,
        }
        self._executor.update_parameters(**{"job_name": "moejax-grid"} | parameters | ours)

    def free(self) -> int:
        return 1_000_000

    def submit(self, specs: Sequence[Spec]) -> list[SlurmCell]:
        runners = [
            Runner(
                root=str(self._places.root),
                directory=spec.directory,
                token=spec.token,
                command=(*self._train, *spec.argv, f"--workdir={spec.workdir}"),
                cwd=self._cwd,
                timeout=self._timeout,
            )
            for spec in specs
        ]
        import submitit

        try:
            with self._executor.batch():
                jobs = [self._executor.submit(runner) for runner in runners]
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError,
                subprocess.CalledProcessError) as error:  # fmt: skip
            said = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise ConfigError(
                f"--launcher=slurm: sbatch refused: {said[-1] if said else ''}"
            ) from error
        self._squeue.forget()
        return [
            SlurmCell(spec.directory, Job.mine(self.name, str(job.job_id)))
            for spec, job in zip(specs, jobs, strict=True)
        ]

    def ended(self, handle: Any) -> bool:
        return self.job_active(handle.job) is False

    def stop(self, handle: Any, *, kill: bool = False) -> None:
        """Cancels the job: Slurm sends SIGTERM, and SIGKILL after its KillWait."""
        command = ["scancel", *(["--signal=KILL", "--full"] if kill else []), handle.job.number]
        subprocess.run(command, capture_output=True, check=False)
        self._squeue.forget()

    def job_active(self, job: Job) -> bool | None:
        return self._squeue.active(job)


def _parameters(options: Sequence[str], known: set[str]) -> dict[str, Any]:
    """sbatch's options in submitit's form; what submitit does not know goes to sbatch as it is."""
    given = dict(DEFAULTS)
    for option in options:
        name, equals, value = option.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        if not equals or not name or not value:
            raise ConfigError(f"--slurm={option}: expected NAME=VALUE, e.g. --slurm=partition=long")
        given[name] = value
    parameters: dict[str, Any] = {}
    further: dict[str, str] = {}
    for name, value in given.items():
        if name not in known:
            further[name] = value
        else:
            parameters[name] = int(value) if value.isdigit() else value
    if not isinstance(parameters["time"], int):
        raise ConfigError(f"--slurm=time={parameters['time']}: expected minutes, e.g. time=240")
    if further:
        parameters["additional_parameters"] = further
    return parameters
