"""A real Slurm on this machine: the job script finds its processes, survives a killed one, ends.

Needs root and Debian's packages; without them the test fails and says so.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = "apt-get install --no-install-recommends slurmctld slurmd slurm-client munge"
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
NodeName={host} CPUs=8 RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
TRAIN = [
    "--config=configs/lm.py:size=nano,moe=hetero_top_p,quick=true",
    "--config.train.steps=40",
    "--config.train.batch_size=8",
    "--config.evaluation.batch_size=8",
    "--config.checkpoint.every=5",
    "--config.log.tensorboard=false",
]


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture
def slurm(tmp_path):
    """The environment in which `sbatch` and the like reach a Slurm of one node."""
    missing = [name for name in ("slurmctld", "slurmd", "sbatch", "munged") if not which(name)]
    assert not missing, f"{', '.join(missing)}: not installed; {PACKAGES}"
    assert os.geteuid() == 0, "slurmd needs root"
    home = tmp_path / "slurm"
    for name in ("slurmd", "slurmctld"):
        (home / name).mkdir(parents=True)
    config = home / "slurm.conf"
    host = socket.gethostname().partition(".")[0]
    config.write_text(CONFIG.format(host=host, home=home, ports=free_ports(2)))
    environment = os.environ | {"SLURM_CONF": str(config)}
    shutil.chown("/run/munge", "munge", "munge")
    subprocess.run(["runuser", "-u", "munge", "--", "munged", "--force"], check=False)
    daemons = [
        subprocess.Popen([which(name), "-D"], env=environment) for name in ("slurmctld", "slurmd")
    ]
    try:
        deadline = time.monotonic() + 60
        while "idle" not in call(["sinfo", "-h", "-o", "%t"], environment):
            assert time.monotonic() < deadline, (home / "slurmctld.log").read_text()[-2000:]
            time.sleep(0.5)
        yield environment
    finally:
        for daemon in daemons:
            daemon.terminate()
        for daemon in daemons:
            daemon.wait()


def which(name):
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def call(command, environment):
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.stdout


def steps(run):
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


def process_of(rank, workdir):
    """The pid of a task of the job by its Slurm rank."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:  # gone meanwhile
            continue
        ours = b"experiments.train" in command and str(workdir).encode() in command
        if ours and b"python" in command.split(b"\0")[0] and b"SLURM_PROCID=%d" % rank in variables:
            return int(entry.name)
    return None


@pytest.mark.all
def test_a_job_of_two_processes_survives_the_loss_of_one(slurm, tmp_path):
    flags = os.environ.get("XLA_FLAGS", "").split()
    flags = [flag for flag in flags if "device_count" not in flag]
    environment = slurm | {
        "MOEJAX_CACHE": str(tmp_path / "cache"),
        "PYTHON": str(REPOSITORY / ".venv" / "bin" / "python"),
        "JAX_PLATFORMS": "cpu",
    }
    runs = {"slurm": tmp_path / "slurm_run", "alone": tmp_path / "alone_run"}
    job = ["sbatch", "--wait", "--ntasks=2", f"--output={tmp_path}/job.log", "--export=ALL"]
    script = str(REPOSITORY / "tools" / "launch" / "slurm.sh")
    mesh = ["--config.mesh.fsdp=2", "--config.mesh.expert=4", "--heartbeat_seconds=10"]
    four = " ".join([*flags, "--xla_force_host_platform_device_count=4"])
    with subprocess.Popen(
        [*job, script, *TRAIN, *mesh, f"--workdir={runs['slurm']}"],
        env=environment | {"XLA_FLAGS": four},
        cwd=REPOSITORY,
    ) as waiting:
        deadline = time.monotonic() + 400
        while max(steps(runs["slurm"]), default=0) < 8:
            assert waiting.poll() is None and time.monotonic() < deadline, log_of(tmp_path)
            time.sleep(0.2)
        victim = process_of(1, runs["slurm"])
        assert victim is not None, "no second process to kill"
        os.kill(victim, signal.SIGKILL)
        assert waiting.wait(timeout=400) == 0, log_of(tmp_path)
    log = log_of(tmp_path)
    assert "starting again" in log and "resumed at step" in log, log
    done = subprocess.run(
        [environment["PYTHON"], "-m", "experiments.train", *TRAIN, f"--workdir={runs['alone']}"],
        env=environment | {"XLA_FLAGS": " ".join(flags)},
        cwd=REPOSITORY,
        check=False,
    )
    assert done.returncode == 0
    together, alone = steps(runs["slurm"]), steps(runs["alone"])
    assert together.keys() == alone.keys() == set(range(1, 41))
    for step, loss in alone.items():
        assert together[step] == pytest.approx(loss, rel=1e-4), f"step {step}"


def log_of(directory):
    path = directory / "job.log"
    return path.read_text()[-4000:] if path.exists() else "no job.log"
