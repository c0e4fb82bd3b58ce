"""What a Slurm job runs: a watcher around one `experiments.train`, in the name of a claim.

submitit pickles an instance of `Runner` and calls it in the job. It holds words and numbers only.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from typing import Any

from moejax.grid import attempts
from moejax.grid.claims import Claims, Job, Owner
from moejax.grid.places import Places
from moejax.grid.process import CellProcess

POLL_SECONDS = 0.2
SAVE = signal.SIGUSR2
"""What Slurm sends when a job has to go soon, and submitit's handler takes."""


@dataclasses.dataclass
class Runner:
    """Takes over the claim that the driver made when it submitted the job, and trains.

    Attributes:
      root, directory, token: the claim.
      command: what to run, `--workdir` included.
      cwd: the checkout.
      timeout: seconds for one attempt; 0: none.
    """

    root: str
    directory: str
    token: str
    command: tuple[str, ...]
    cwd: str
    timeout: float = 0.0
    _cell: CellProcess | None = dataclasses.field(default=None, init=False, repr=False)

    def __call__(self) -> str:
        """Runs the cell; returns how it ended, "" if somebody else has it by now."""
        import submitit  # the job runs inside of it

        environment = submitit.JobEnvironment()
        os.chdir(self.cwd)
        places = Places(self.root)
        claims = Claims(places, Owner.this())
        job = Job.mine("slurm", environment.job_id)
        if claims.take_over(self.directory, self.token, job) is None:
            print(f"the claim {self.token} on {self.directory} is gone: another driver took it")
            return ""
        # `checkpoint` runs inside the signal's handler, so the signal may only come while nothing
        # else happens here; in the cell's process it stays blocked: there SIGTERM says the same.
        signal.pthread_sigmask(signal.SIG_BLOCK, {SAVE})
        cell = self._cell = CellProcess(
            places,
            self.directory,
            self.command,
            self.cwd,
            launcher="slurm",
            timeout=self.timeout,
            variables=_variables(),
        )
        try:
            while not cell.poll():
                claims.beat()
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {SAVE})
                time.sleep(POLL_SECONDS)
                signal.pthread_sigmask(signal.SIG_BLOCK, {SAVE})
        except submitit.core.utils.UncompletedJobError:
            pass  # `checkpoint` saw that the cell is over: nothing is to be queued again
        claims.give_back(self.directory)
        claims.close()
        return str(cell.outcome)

    def checkpoint(self) -> Any:
        """Called by submitit at SIGUSR2: saves, and asks for the job to be queued again.

        None, and so not again, if the cell has just been done or has failed. The claim stays: it
        names the job, which Slurm still knows.
        """
        import submitit

        cell, self._cell = self._cell, None  # what is queued again is pickled
        if cell is not None:
            cell.stop()
            while not cell.poll():
                time.sleep(POLL_SECONDS)
            if cell.outcome != attempts.PREEMPTED:
                return None
        return submitit.helpers.DelayedSubmission(self)


def _variables() -> dict[str, str]:
    """The threads that Slurm gave the task; nothing where it gave a whole machine."""
    cores = os.environ.get("SLURM_CPUS_PER_TASK", "")
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {"NPROC": cores, **dict.fromkeys(names, cores)} if cores else {}
