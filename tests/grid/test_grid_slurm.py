"""Grids on a real Slurm of one node: arrays, the queue, preemption, and drivers that come and go.

Needs root, Debian's packages and the extra `slurm`; without them the tests fail and say so.
"""

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from grid_roots import HERE, STANDIN, cell, wait_until

from moejax.config import ConfigError
from moejax.grid import attempts
from moejax.grid.claims import Claims
from moejax.grid.driver import Driver, Pace, Policy
from moejax.grid.launchers.slurm import Slurm
from moejax.grid.load import load_grid

pytestmark = pytest.mark.all

PACKAGES = "apt-get install --no-install-recommends slurmctld slurmd slurm-client munge"
REPOSITORY = HERE.parents[1]
PACE = Pace(poll=0.1, recheck=0.5, heartbeat=0.5)
CONFIG = """
ClusterName=grid
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
SlurmctldParameters=preempt_send_user_signal
KillWait=10
NodeName={host} CPUs=4 RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP GraceTime=30
PartitionName=urgent Nodes=ALL PriorityTier=10 MaxTime=INFINITE State=UP
"""


def which(name):
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def call(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def slurm(tmp_path_factory):
    """A Slurm of one node with four cores; `urgent` takes the node from `main`."""
    missing = [name for name in ("slurmctld", "slurmd", "sbatch", "munged") if not which(name)]
    assert not missing, f"{', '.join(missing)}: not installed; {PACKAGES}"
    assert os.geteuid() == 0, "slurmd needs root"
    home = tmp_path_factory.mktemp("slurm")
    for name in ("slurmd", "slurmctld"):
        (home / name).mkdir()
    config = home / "slurm.conf"
    host = socket.gethostname().partition(".")[0]
    config.write_text(CONFIG.format(host=host, home=home, ports=free_ports(2)))
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(config)
    shutil.chown("/run/munge", "munge", "munge")
    subprocess.run(["runuser", "-u", "munge", "--", "munged", "--force"], check=False)
    daemons = [subprocess.Popen([which(name), "-D"]) for name in ("slurmctld", "slurmd")]
    try:
        log = home / "slurmctld.log"
        wait_until(
            lambda: "idle" in call("sinfo", "-h", "-o", "%t"), 60, lambda: log.read_text()[-2000:]
        )
        yield
    finally:
        call("scancel", "--user=root")
        for daemon in daemons:
            daemon.terminate()
        for daemon in daemons:
            daemon.wait()
        os.environ.pop("SLURM_CONF")
        if before is not None:
            os.environ["SLURM_CONF"] = before


@pytest.fixture
def grid(root):
    """Makes a root; no job is left behind."""
    yield root
    call("scancel", "--user=root")
    wait_until(lambda: not call("squeue", "-h").strip(), 60)


def launcher(root, **options):
    options = {"train": STANDIN, "cwd": str(REPOSITORY), "ask_seconds": 0.3} | options
    return Slurm(root.places, **options)


def drive(root, policy=Policy(), cells=None, **options):  # noqa: B008 (a frozen dataclass)
    chosen = root.cells if cells is None else cells
    return Driver(chosen, root.places, launcher(root, **options), root.display, policy, PACE).run()


def story(root):
    logs = sorted(root.places.slurm.rglob("*.out")) if root.places.slurm.exists() else []
    texts = [f"== {path}\n{path.read_text()[-1500:]}" for path in logs]
    states = [f"{name}: {state}" for name, state in root.states().items()]
    return "\n".join([call("squeue"), *states, *map(str, root.ledger()), *texts])


def queued(root):
    """The job of the first cell, when it is in the queue again, and sent off at once."""
    claim = Claims(root.places).holder(root.cells[0].directory)
    assert claim is not None and claim.job is not None
    shown = call("scontrol", "-o", "show", "job", claim.job.number)
    pairs = dict(pair.split("=", 1) for pair in shown.split() if "=" in pair)
    if pairs.get("JobState") == "PENDING" and pairs.get("Restarts") == "1":
        # Slurm holds a job for two minutes when it comes back; a test need not wait so long. (At
        # once is too soon for slurmd: it may still be killing the job that it is told to start.)
        call("scontrol", "update", f"JobId={claim.job.number}", "StartTime=now+5")
        return True
    return False


def submit(root, **options):
    """Submits everything and lets the driver go."""
    assert drive(root, Policy(wait=False), **options) == 7
    assert all(kind in ("claimed", "running") for kind in root.kinds().values())


def outcomes(root):
    """How each attempt at the first cell ended."""
    return [one.outcome for one in attempts.read(root.places, root.cells[0].directory)]


def wait_for(root, fact, seconds=90):
    wait_until(fact, seconds, lambda: story(root))


def test_an_array_runs_and_the_exit_code_tells_the_truth(grid):
    root = grid(cell("a"), cell("b", fault="nan"), cell("c"), cell("d", fault="bad"))
    assert drive(root, parallel=2) == 6, story(root)
    assert root.kinds() == {"a": "done", "b": "failed", "c": "done", "d": "failed"}
    assert root.states()["b"].reason == "non-finite at step 3: loss nan"
    assert "did you mean" in root.states()["d"].reason
    assert root.states()["a"].launcher == "slurm"
    assert not list(root.places.claims.iterdir()) and not list(root.places.beats.iterdir())
    root.cells = (cell("a"), cell("b"), cell("c"), cell("d"))
    assert drive(root, Policy(failed=True)) == 0, story(root)
    root.never_twice()


def test_no_more_of_an_array_run_at_a_time_than_allowed(grid):
    root = grid(*(cell(f"s{i}", steps=20, pause=0.05) for i in range(3)))
    assert drive(root, parallel=1) == 0, story(root)
    ends = {line["cell"]: line["time"] for line in root.ledger("done")}
    begins = sorted((line["time"], line["cell"]) for line in root.ledger("start"))
    for (_, before), (begin, _) in itertools.pairwise(begins):
        assert ends[before] <= begin


def test_jobs_go_on_without_a_driver_and_the_next_one_waits_for_them(grid):
    root = grid(cell("a", steps=150, pause=0.02), cell("b", steps=150, pause=0.02))
    submit(root)
    wait_for(root, lambda: len(root.ledger("start")) == 2)
    assert root.states()["a"].state == "running" and root.states()["a"].job
    assert drive(root) == 0, story(root)
    assert len(root.ledger("start")) == 2  # it waited, and ran nothing itself
    root.never_twice()


def test_a_job_that_gets_the_signal_saves_goes_back_in_the_queue_and_finishes(grid):
    root = grid(cell("a", steps=200, pause=0.02), cell("b"))
    submit(root)
    wait_for(root, lambda: root.states()["a"].step > 20)
    number = Claims(root.places).holder(root.cells[0].directory).job.number
    # What --signal=USR2@90 does before the time limit.
    call("scancel", "--signal=USR2", number)
    wait_for(root, lambda: queued(root))
    state = root.states()["a"]
    assert state.state == "claimed" and state.job == number and state.attempt == 1
    assert drive(root) == 0, story(root)  # it finds the job in the queue and waits
    first, second = [line for line in root.ledger("start") if line["cell"].startswith("a-")]
    assert second["step"] > 20 and first["step"] == 0
    wait_for(root, lambda: outcomes(root) == ["preempted", "done"])
    root.never_twice()


def test_a_preempted_job_saves_and_comes_back(grid):
    root = grid(cell("a", steps=300, pause=0.02), cell("b"))
    submit(root, options=["exclusive=user"])
    wait_for(root, lambda: root.states()["a"].step > 20)
    call("sbatch", "-p", "urgent", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1")
    wait_for(root, lambda: queued(root))
    assert drive(root) == 0, story(root)
    steps = [line["step"] for line in root.ledger("start") if line["cell"].startswith("a-")]
    assert len(steps) == 2 and steps[1] > 20
    root.never_twice()


def test_the_driver_that_submits_may_be_killed(grid):
    root = grid(cell("a", steps=150, pause=0.02), cell("b", steps=150, pause=0.02))
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from grid_roots import *; from test_grid_slurm import drive\n"
        "root = Root(Path(sys.argv[2]), cell('a', steps=150, pause=0.02), "
        "cell('b', steps=150, pause=0.02))\n"
        "drive(root)\n"
    )
    driver = subprocess.Popen(
        [sys.executable, "-c", code, str(HERE), str(root.places.root)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    wait_for(root, lambda: len(root.ledger("start")) == 2)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    time.sleep(0.5)
    assert root.kinds() == {"a": "running", "b": "running"}
    assert drive(root) == 0, story(root)
    root.never_twice()
    assert len(root.ledger("start")) == 2


def test_a_signal_to_the_driver_cancels_the_jobs_and_they_save(grid):
    root = grid(cell("a", steps=1000, pause=0.02), cell("b", steps=1000, pause=0.02))

    class Interrupter(type(root.display)):
        def show(self, states, eta):
            if all(state.step > 5 for state in states.values()):
                os.kill(os.getpid(), signal.SIGINT)

    pace = Pace(poll=0.1, show=0.2, recheck=0.5, heartbeat=0.5)
    driver = Driver(root.cells, root.places, launcher(root), Interrupter(), Policy(), pace)
    assert driver.run() == 130
    assert not call("squeue", "-h").strip()
    assert root.kinds() == {"a": "preempted", "b": "preempted"}
    for one in root.cells:
        checkpoint = root.places.workdir(one.directory) / "checkpoint.json"
        assert json.loads(checkpoint.read_text())["step"] > 5


def test_what_sbatch_refuses_is_one_line_and_nothing_stays_claimed(grid):
    root = grid(cell("a"))
    with pytest.raises(ConfigError, match=r"sbatch refused: .*artition") as told:
        drive(root, options=["partition=nowhere"])
    assert "\n" not in str(told.value)
    assert root.kinds() == {"a": "pending"}


REAL = """
from moejax.grid import Sweep, axis


def get_grid():
    return Sweep(
        base="configs/lm.py:size=nano,moe={moe},quick=true",
        treatments=axis("{moe}", ["top_p"]),
        seeds=(0, 1),
        overrides={
            "train.steps": 30,
            "checkpoint.every": 5,
            "log.tensorboard": False,
            "log.heartbeat_seconds": 0.5,
        },
    )
"""


def test_real_trainings_run_and_survive_the_signal(grid, tmp_path):
    (tmp_path / "real.py").write_text(REAL)
    cells = load_grid(str(tmp_path / "real.py")).cells
    root = grid(*cells)
    train = (sys.executable, "-m", "experiments.train")
    submit(root, train=train)
    wait_for(root, lambda: root.states()[cells[0].name].step > 6, 400)
    number = Claims(root.places).holder(cells[0].directory).job.number
    call("scancel", "--signal=USR2", number)
    wait_for(root, lambda: queued(root), 120)
    assert drive(root, train=train) == 0, story(root)
    wait_for(root, lambda: outcomes(root) == ["preempted", "done"])
    assert "resumed at step" in root.places.log(cells[0].directory).read_text()
    workdir: Path = root.places.workdir(cells[0].directory)
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, 31))
