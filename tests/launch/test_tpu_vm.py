"""The TPU VM scripts against a stand-in for gcloud, which runs each worker's command for real.

Two workers are two home directories. What is not tested is gcloud itself, ssh and TPUs.
"""

import os
import shlex
import shutil
import signal
import subprocess

import pytest
from launched import (
    EIGHT_DEVICES,
    PYTHON,
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

SCRIPTS = sorted((REPOSITORY / "tools" / "launch").glob("*.sh"))
GCLOUD = """#!/bin/bash
# gcloud compute tpus tpu-vm ssh|scp ...: logs its words, acts in $WORKERS/0 and $WORKERS/1.
printf '%q ' "$@" >>"$WORKERS/gcloud.log"; echo >>"$WORKERS/gcloud.log"
[[ "$1 $2 $3" == "compute tpus tpu-vm" && " $* " == *" --zone=zone-a "* ]] || exit 9
which="0 1"
for word; do
  case $word in
    --worker=all) ;;
    --worker=*) which=${word#*=} ;;
    --command=*) command=${word#*=} ;;
  esac
done
for i in $which; do
  cd "$WORKERS/$i" || exit 9
  # On a slice JAX asks the VM's metadata who it is; here, Slurm's variables.
  export HOME=$PWD HOSTNAME=worker-$i SLURM_PROCID=$i SLURM_LOCALID=$i SLURM_JOB_ID=1
  export SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2 SLURM_STEP_NUM_NODES=2
  case $4 in
    scp) cp "$5" . || exit ;;
    ssh) bash -c "$command" || exit ;;
  esac
done
"""
STANDIN = """#!/bin/bash
# Instead of python: says what it was told, ends with the code of `--end=`, else waits for SIGTERM.
[[ $1 != -c ]] || { echo installed; exit; }
echo "start: $(printf '<%s>' "$@")"
last=${!#}
[[ $last != --end=* ]] || exit "${last#--end=}"
trap 'sleep 1; echo saved; exit 143' TERM
echo waits
while :; do sleep 0.1; done
"""


class Slice:
    """A slice called `s` of two workers."""

    def __init__(self, home):
        self.workers = home / "workers"
        self.checkout = home / "checkout"
        for name in ("0", "1", "bin"):
            (self.workers / name).mkdir(parents=True)
        gcloud = executable(self.workers / "bin" / "gcloud", GCLOUD)
        self.variables = os.environ | {
            "WORKERS": str(self.workers),
            "PATH": f"{gcloud.parent}:{os.environ['PATH']}",
        }
        self.variables.pop("PYTHON", None)

    def command(self, action, *flags, train=()):
        script = self.checkout / "tools" / "launch" / "tpu_vm.sh"
        tail = ["--", *train] if train else []
        return [str(script), action, "s", "--zone=zone-a", *flags, *tail]

    def call(self, action, *flags, train=(), **variables):
        return subprocess.run(
            self.command(action, *flags, train=train),
            env=self.variables | variables,
            capture_output=True,
            text=True,
            check=False,
        )

    def log(self, worker):
        path = self.workers / str(worker) / "moejax.log"
        return path.read_text() if path.exists() else ""

    def story(self):
        return "\n".join(f"== worker {i}\n{self.log(i)[-3000:]}" for i in (0, 1))


def executable(path, text):
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def tpu(tmp_path):
    """A slice, and a checkout of what is in the working tree here; no run is left behind."""
    one = Slice(tmp_path)
    unwanted = shutil.ignore_patterns("__pycache__", ".*")
    for name in ("configs", "experiments", "moejax", "tools"):
        shutil.copytree(REPOSITORY / name, one.checkout / name, ignore=unwanted)
    commit = ["commit", "--quiet", "--message=all"]
    for command in (["init", "--quiet"], ["add", "."], commit):
        identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
        subprocess.run(["git", "-C", str(one.checkout), *identity, *command], check=True)
    yield one
    if (one.workers / "0" / "moejax").exists():
        one.call("stop")


@pytest.fixture
def standin(tpu):
    python = executable(tpu.workers / "standin", STANDIN)
    flags = [f"--env=PYTHON={python}", "--env=RETRIES=3", "--env=PAUSE_SECONDS=0.1"]
    done = tpu.call("setup", *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("installed") == 2
    return flags


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_the_scripts_are_correct_bash(path):
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert os.access(path, os.X_OK)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(path)], check=True)


def test_dry_run_prints_the_commands_and_calls_nothing(tpu):
    train = ["--config=configs/lm.py:size=nano,moe=top_p", "--workdir=/a b"]
    done = tpu.call("run", "--project=p", "--dry-run", "--env=A=b c", train=train)
    assert done.returncode == 0
    assert not (tpu.workers / "gcloud.log").exists()
    printed = [shlex.split(line) for line in done.stdout.splitlines()]
    ssh = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "s"]
    where = ["--zone=zone-a", "--project=p"]
    assert [line[:7] for line in printed] == [[*ssh, "--worker=all"], [*ssh, "--worker=0"]]
    assert [line[8:] for line in printed] == [where, where]
    there = [shlex.split(line[7].removeprefix("--command=")) for line in printed]
    begin = ["cd", "moejax", "&&", "env", "A=b c", "bash", "tools/launch/tpu_worker.sh"]
    assert there == [[*begin, "start", *train], [*begin, "log"]]


@pytest.mark.parametrize(
    "words, complaint",
    [
        ([], "ACTION: expected setup"),
        (["train", "s"], "train: expected setup"),
        (["run", "--zone=z"], "NAME of the slice: is missing"),
        (["run", "s", "--zone=z"], "flags of experiments.train are missing"),
        (["run", "s", "--config=c.py"], "stand after --"),
        (["run", "s", "--env=A", "--", "--config=c.py"], "expected --env=NAME=VALUE"),
        (["run", "s", "zone"], "zone: unexpected"),
        (["stop", "s", "--", "--config=c.py"], "takes no flags"),
    ],
)
def test_wrong_use_is_one_line(words, complaint):
    script = REPOSITORY / "tools" / "launch" / "tpu_vm.sh"
    done = subprocess.run([script, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and complaint in done.stderr
    assert done.stderr.count("\n") == 1 and not done.stdout


@pytest.mark.slow
def test_flags_arrive_as_they_were_given(tpu, standin):
    train = ["--config=a b.py:x='1',y=\"2\"", "--config.z=$HOME; `ls` \\ *", "--new=\n", "--end=0"]
    done = tpu.call("run", *standin, train=train)
    assert done.returncode == 0, done.stderr
    told = "".join(f"<{word}>" for word in ["-m", "experiments.train", *train])
    assert f"start: {told}" in done.stdout
    assert f"start: {told}" in tpu.log(1)


@pytest.mark.slow
@pytest.mark.parametrize("code, attempts", [(3, 1), (2, 1), (134, 3), (5, 3)])
def test_only_what_may_end_better_is_tried_again(tpu, standin, code, attempts):
    done = tpu.call("run", *standin, train=[f"--end={code}"])
    assert done.returncode == code, done.stdout
    assert [tpu.log(i).count("start:") for i in (0, 1)] == [attempts, attempts]
    assert f"worker-1: ended with code {code}" in tpu.call("status").stdout


@pytest.mark.slow
def test_stop_waits_until_the_state_is_saved(tpu, standin):
    assert tpu.call("start", *standin, train=["--config=c.py"]).returncode == 0
    wait_until(lambda: all("waits" in tpu.log(i) for i in (0, 1)), 30, tpu.story)
    assert "worker-0: runs" in tpu.call("status").stdout
    for action, train in (("start", ["--config=c.py"]), ("setup", [])):
        refused = tpu.call(action, *standin, train=train)
        assert refused.returncode == 1 and "a run goes on here" in refused.stderr
    assert tpu.call("stop").returncode == 0
    assert ["saved" in tpu.log(i) for i in (0, 1)] == [True, True]
    assert tpu.call("log").returncode == 143
    assert tpu.call("start", *standin, train=["--end=0"]).returncode == 0


@pytest.mark.all
def test_a_run_survives_the_loss_of_a_process_and_of_the_connection(tpu, tmp_path):
    run = tmp_path / "run"
    # A killed process is noticed after the heartbeat; until then new attempts meet the old run.
    flags = [f"--env=PYTHON={PYTHON}", "--env=PAUSE_SECONDS=2"]
    assert tpu.call("setup", *flags).returncode == 0
    variables = environment(tmp_path, devices=4) | {"JAX_COORDINATOR_PORT": str(free_ports(1)[0])}
    train = [*TRAIN, *EIGHT_DEVICES, "--heartbeat_seconds=10", f"--workdir={run}"]
    follower = subprocess.Popen(
        tpu.command("run", *flags, train=train),
        env=tpu.variables | variables,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    wait_until(lambda: max(losses(run), default=0) >= 3, 200, tpu.story)
    os.killpg(follower.pid, signal.SIGKILL)  # the connection
    follower.wait()
    wait_until(lambda: max(losses(run), default=0) >= 8, 200, tpu.story)
    victim = training_process(run, "SLURM_PROCID=1")
    assert victim is not None, "no second process to kill"
    os.kill(victim, signal.SIGKILL)
    again = tpu.call("log")
    assert again.returncode == 0, tpu.story()
    assert "starting again" in tpu.log(0) and "starting again" in tpu.log(1), tpu.story()
    assert "resumed at step" in again.stdout and "done: 40 steps" in again.stdout
    assert_same_losses(run, train_alone(tmp_path))
