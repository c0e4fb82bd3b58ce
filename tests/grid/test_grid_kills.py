"""Real trainings of a real grid by the real command, killed at random moments: the same results."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from grid_roots import wait_until

from moejax.grid import attempts
from moejax.grid.places import Places
from moejax.grid.record import load

REPOSITORY = Path(__file__).resolve().parents[2]
GRID = """
from moejax.grid import Sweep, axis


def get_grid():
    return Sweep(
        base="configs/lm.py:size=nano,moe={moe},quick",
        treatments=axis("{moe}", ["dense", "top_p"]),
        seeds=(0,),
        overrides={"train.steps": 24, "checkpoint.every": 6, "log.heartbeat_seconds": 0.5},
    )
"""


FAULTS = """
from moejax.grid import Sweep, cases


def get_grid():
    faults = {
        ("nan",): {"optimizer.lr": 1e30, "optimizer.clip_norm": 0.0},
        ("bad",): {"data.corpus": "files:/nowhere/*.txt"},
        ("none",): {},
    }
    return Sweep(
        base="configs/lm.py:size=nano,moe=dense,quick",
        treatments=cases(("fault",), faults),
        overrides={"train.steps": 12},
    )
"""


def environment():
    """This process' variables for training on one CPU device, as on a laptop."""
    flags = os.environ.get("XLA_FLAGS", "").split()
    kept = [flag for flag in flags if "host_platform_device_count" not in flag]
    return os.environ | {"XLA_FLAGS": " ".join(kept)}


def metrics(run):
    """All lines without what depends on the wall clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    clock = ("time/", "perf/")
    return [{k: v for k, v in line.items() if not k.startswith(clock)} for line in lines]


class Command:
    """`experiments.grid` on one root, as a user calls it."""

    def __init__(self, grid, root):
        self.grid, self.root = grid, root

    def start(self, log):
        words = [f"--grid={self.grid}", f"--root={self.root}", "--max-parallel=1"]
        return subprocess.Popen(
            [sys.executable, "-m", "experiments.grid", "run", *words],
            cwd=REPOSITORY,
            env=environment(),
            stdout=log,
            stderr=log,
        )

    def finish(self, log):
        assert self.start(log).wait(timeout=500) == 0, Path(log.name).read_text()[-3000:]

    def call(self, command, *flags):
        words = [sys.executable, "-m", "experiments.grid", command, f"--root={self.root}", *flags]
        return subprocess.run(
            words,
            cwd=REPOSITORY,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )

    def cells(self):
        return {cell.name: cell.directory for cell in load(self.root).cells}

    def history(self):
        places = Places(self.root)
        return {name: attempts.read(places, at) for name, at in self.cells().items()}


def results(command):
    """All numbers of all cells that may not depend on how often they were disturbed."""
    found = {}
    for name, directory in command.cells().items():
        final = json.loads((command.root / directory / "final.json").read_text())
        final.pop("time")
        found[name] = (final, metrics(command.root / directory))
    return found


def kill_at_random(command, log, kills, longest, seed):
    moments = random.Random(seed)
    finished = set()
    for number in range(kills):
        before = attempts_so_far(command)
        driver = command.start(log)
        if number % 2 == 0:  # however slow the machine is, these hit a cell that has begun
            wait_until(
                lambda driver=driver, before=before: (
                    driver.poll() is not None or attempts_so_far(command) > before
                ),
                seconds=120,
            )
        time.sleep(moments.uniform(0.0, longest))
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        if (command.root / "grid.json").exists():
            now = {name for name, past in command.history().items() if done(past)}
            assert finished <= now
            finished = now
    return finished


def attempts_so_far(command):
    if not (command.root / "grid.json").exists():
        return 0
    return sum(len(history) for history in command.history().values())


def done(history):
    return any(one.outcome == attempts.DONE for one in history)


def undisturbed_and_killed(tmp_path, grid, kills, longest):
    with open(tmp_path / "log.txt", "a") as log:
        alone, killed = Command(grid, tmp_path / "alone"), Command(grid, tmp_path / "killed")
        alone.finish(log)
        kill_at_random(killed, log, kills, longest, seed=kills)
        killed.finish(log)
    assert results(killed) == results(alone)
    for name, history in killed.history().items():
        assert [one.outcome for one in history].count(attempts.DONE) <= 1, name
        assert not any(done(history[:i]) for i in range(1, len(history))), f"{name} ran twice"
        log_text = Places(killed.root).log(killed.cells()[name]).read_text()
        assert "was done already" not in log_text and "in use by" not in log_text
    return alone, killed


@pytest.mark.slow
def test_three_kills_of_the_driver_change_no_number(tmp_path):
    grid = tmp_path / "two_cells.py"
    grid.write_text(GRID)
    _, killed = undisturbed_and_killed(tmp_path, grid, kills=3, longest=20.0)
    assert sum(len(history) for history in killed.history().values()) > 2


@pytest.mark.all
def test_twenty_kills_of_the_driver_of_smoke_give_the_same_table(tmp_path):
    alone, killed = undisturbed_and_killed(tmp_path, "smoke", kills=20, longest=25.0)
    for flags in (["--by=eval/loss"], ["--by=eval/loss", "--format=latex"]):
        tables = [command.call("table", *flags) for command in (alone, killed)]
        assert tables[0].returncode == 0, tables[0].stderr
        assert tables[0].stdout == tables[1].stdout


@pytest.mark.slow
def test_real_faults_of_single_cells_leave_the_others_alone(tmp_path):
    grid = tmp_path / "faults.py"
    grid.write_text(FAULTS)
    command = Command(grid, tmp_path / "root")
    with open(tmp_path / "log.txt", "a") as log:
        assert command.start(log).wait(timeout=500) == 6, Path(log.name).read_text()[-3000:]
    done = command.call("status", "--json")
    assert done.returncode == 6, done.stderr
    states = {record["axes"]["fault"]: record for record in json.loads(done.stdout)}
    assert {fault: one["state"] for fault, one in states.items()} == {
        "nan": "failed", "bad": "failed", "none": "done",
    }  # fmt: skip
    assert "non-finite at step" in states["nan"]["reason"]
    assert "/nowhere" in states["bad"]["reason"]


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path):
    grid = tmp_path / "two_cells.py"
    grid.write_text(GRID)
    command = Command(grid, tmp_path / "root")
    with open(tmp_path / "log.txt", "a") as log:
        driver = command.start(log)
        wait_until(lambda: list(command.root.glob("*/metrics.jsonl")), 120)
        driver.send_signal(signal.SIGINT)
        assert driver.wait(timeout=60) == 130
        first = command.history()[next(iter(command.cells()))]
        assert [(one.outcome, one.exit_code) for one in first] == [("preempted", 143)]
        command.finish(log)
