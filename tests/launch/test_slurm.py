"""A real Slurm on this machine: the job script finds its processes, survives the loss of one, goes
back in the queue, ends.

Needs root and Debian's packages; without them the test fails and says so.
"""

import os
import shutil
import signal
import socket
import subprocess
import time

import pytest
from launched import (
    EIGHT_DEVICES,
    REPOSITORY,
    TRAIN,
    assert_same_losses,
    environment,
    free_ports,
    losses,
    train_alone,
    training_process,
    wait_until,
)

pytestmark = pytest.mark.all

PACKAGES = "apt-get install --no-install-recommends slurmctld slurmd slurm-client munge"
SCRIPT = str(REPOSITORY / "tools" / "launch" / "slurm.sh")
CONFIG = """
ClusterName=test
SlurmctldHost={host}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
ProctrackType=proctrack/linuxproc
ReturnToService=2
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.pid
SlurmdSpoolDir={home}/slurmd
StateSaveLocation={home}/slurmctld
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd.log
SlurmUser=root
TaskPlugin=task/none
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} CPUs=8 RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=urgent Nodes=ALL PriorityTier=10 MaxTime=INFINITE State=UP
"""
STANDIN = """#!/bin/bash
# Instead of python: tells how it was started, ends with the code of `--end=`, or at SIGTERM.
echo "start ${SLURM_RESTART_COUNT:-0} of task $SLURM_PROCID: $*"
last=${!#}
[[ $last != --end=* ]] || exit "${last#--end=}"
[[ ${SLURM_RESTART_COUNT:-0} == 0 ]] || exit 0
trap 'echo written; exit 143' TERM
while :; do sleep 0.1; done
"""


class Slurm:
    """Commands of a Slurm of one node, and one job with its log."""

    def __init__(self, home, variables):
        self.log = home / "job.log"
        self.variables = variables

    def submit(self, *arguments, options=("--ntasks=2",), **variables):
        """The number of a job of `tools/launch/slurm.sh`."""
        command = ["sbatch", "--parsable", f"--output={self.log}", *options, SCRIPT, *arguments]
        return self.call(*command, **variables).strip()

    def call(self, *command, **variables):
        done = subprocess.run(
            command,
            env=self.variables | variables,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout

    def state(self, job):
        """What `scontrol show job` says, as a dictionary."""
        pairs = self.call("scontrol", "-o", "show", "job", job).split()
        return dict(pair.split("=", 1) for pair in pairs if "=" in pair)

    def wait(self, job, state, seconds=60, restarts="0"):
        def there():
            now = self.state(job)
            return now["JobState"] == state and now["Restarts"] == restarts

        wait_until(there, seconds, lambda: f"{self.state(job)}\n{self.story()}")

    def story(self):
        return self.log.read_text()[-4000:] if self.log.exists() else "no job.log"

    def start_now(self, job):
        """Slurm holds a job for two minutes when it comes back; a test need not wait."""
        self.call("scontrol", "update", f"JobId={job}", "StartTime=now")


@pytest.fixture
def slurm(tmp_path):
    """A Slurm of one node; `urgent` takes the node from `main`."""
    missing = [name for name in ("slurmctld", "slurmd", "sbatch", "munged") if not which(name)]
    assert not missing, f"{', '.join(missing)}: not installed; {PACKAGES}"
    assert os.geteuid() == 0, "slurmd needs root"
    home = tmp_path / "slurm"
    for name in ("slurmd", "slurmctld"):
        (home / name).mkdir(parents=True)
    config = home / "slurm.conf"
    host = socket.gethostname().partition(".")[0]
    config.write_text(CONFIG.format(host=host, home=home, ports=free_ports(2)))
    variables = os.environ | {"SLURM_CONF": str(config)}
    shutil.chown("/run/munge", "munge", "munge")
    subprocess.run(["runuser", "-u", "munge", "--", "munged", "--force"], check=False)
    daemons = [
        subprocess.Popen([which(name), "-D"], env=variables) for name in ("slurmctld", "slurmd")
    ]
    one = Slurm(tmp_path, variables)
    try:
        wait_until(
            lambda: "idle" in one.call("sinfo", "-h", "-o", "%t"),
            60,
            lambda: (home / "slurmctld.log").read_text()[-2000:],
        )
        yield one
    finally:
        for daemon in daemons:
            daemon.terminate()
        for daemon in daemons:
            daemon.wait()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return train_alone(tmp_path_factory.mktemp("alone"))


def which(name):
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def submit_training(slurm, run):
    flags = [*TRAIN, *EIGHT_DEVICES, "--heartbeat_seconds=10", f"--workdir={run}"]
    job = slurm.submit(*flags, **environment(run.parent, devices=4))
    wait_until(lambda: max(losses(run), default=0) >= 8, 400, slurm.story)
    return job


def test_a_job_of_two_processes_survives_the_loss_of_one(slurm, alone, tmp_path):
    run = tmp_path / "run"
    job = submit_training(slurm, run)
    victim = training_process(run, "SLURM_PROCID=1")
    assert victim is not None, "no second process to kill"
    os.kill(victim, signal.SIGKILL)
    slurm.wait(job, "COMPLETED", seconds=400)
    log = slurm.log.read_text()
    assert "starting again" in log and "resumed at step" in log, log
    assert_same_losses(run, alone)


def test_a_job_that_is_told_to_stop_goes_back_in_the_queue_and_finishes(slurm, alone, tmp_path):
    run = tmp_path / "run"
    job = submit_training(slurm, run)
    # What --signal=TERM@120 does before the time limit.
    slurm.call("scancel", "--signal=TERM", job)
    slurm.wait(job, "PENDING", seconds=100, restarts="1")
    stopped_at = max(losses(run))
    assert stopped_at < max(alone)
    assert "back in the queue" in slurm.log.read_text()
    slurm.start_now(job)
    slurm.wait(job, "COMPLETED", seconds=400, restarts="1")
    # The last step before, so that nothing was done twice.
    assert f"resumed at step {stopped_at}" in slurm.log.read_text()
    assert_same_losses(run, alone)


@pytest.fixture
def standin(tmp_path):
    """A job that only shows what the script does with it."""
    path = tmp_path / "standin"
    path.write_text(STANDIN)
    path.chmod(0o755)
    return {"PYTHON": str(path)}


def submit_standin(slurm, standin, *options):
    job = slurm.submit("--config=a b.py", options=["--ntasks=2", *options], **standin)
    wait_until(lambda: "start 0 of task 1" in slurm.story(), 60, slurm.story)
    assert "-m experiments.train --config=a b.py" in slurm.story()
    time.sleep(0.5)  # for its trap
    return job


def test_the_time_limit_is_a_reason_to_go_back_in_the_queue(slurm, standin):
    # Slurm rounds the limit up to a minute and looks at it every half minute.
    job = submit_standin(slurm, standin, "--time=1", "--signal=TERM@50")
    slurm.wait(job, "PENDING", seconds=100, restarts="1")
    slurm.start_now(job)
    slurm.wait(job, "COMPLETED", restarts="1")
    assert slurm.story().count("written") == 2


def test_a_preempted_job_saves_and_comes_back(slurm, standin):
    job = submit_standin(slurm, standin, "--exclusive")
    slurm.call("sbatch", "-p", "urgent", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1")
    slurm.wait(job, "PENDING", restarts="1")
    assert slurm.story().count("written") == 2
    slurm.start_now(job)
    slurm.wait(job, "COMPLETED", restarts="1")


def test_a_cancelled_job_does_not_come_back(slurm, standin):
    job = submit_standin(slurm, standin)
    slurm.call("scancel", job)
    slurm.wait(job, "CANCELLED")
    wait_until(lambda: slurm.story().count("written") == 2, 60, slurm.story)
    time.sleep(5)  # time for what must not happen
    slurm.wait(job, "CANCELLED", seconds=0)


@pytest.mark.parametrize("code, attempts", [(3, 1), (5, 2)])
def test_only_what_may_end_better_is_tried_again(slurm, standin, code, attempts):
    job = slurm.submit(f"--end={code}", options=["--ntasks=1"], RETRIES="2", **standin)
    slurm.wait(job, "FAILED")
    assert slurm.state(job)["ExitCode"] == f"{code}:0"
    assert slurm.story().count("start 0") == attempts
