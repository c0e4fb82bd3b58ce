"""A small run for the launchers' tests: its flags, its environment, and what it has logged."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
# Of the environment that runs the tests, wherever that is.
PYTHON = Path(sys.executable)
STEPS = 40
TRAIN = [
    "--config=configs/lm.py:size=nano,moe=hetero_top_p,quick=true",
    f"--config.train.steps={STEPS}",
    "--config.train.batch_size=8",
    "--config.evaluation.batch_size=8",
    "--config.checkpoint.every=5",
    "--config.log.tensorboard=false",
]
# The votes of moejax/train/votes.py go between the same two devices as a collective of the step: on
# a CPU the two programs would mix up if they overlapped.
EIGHT_DEVICES = ["--config.mesh.fsdp=2", "--config.mesh.expert=4"]


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def environment(home: Path, devices: int = 1) -> dict[str, str]:
    """Variables of a training process with so many CPU devices."""
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
    flags.append(f"--xla_force_host_platform_device_count={devices}")
    return {
        "JAX_PLATFORMS": "cpu",
        "MOEJAX_CACHE": str(home / "cache"),
        "PYTHON": str(PYTHON),
        "XLA_FLAGS": " ".join(flags),
    }


def train_alone(home: Path) -> dict[int, float]:
    """Losses of the run when nothing disturbs it, on one device."""
    run = home / "alone"
    command = [str(PYTHON), "-m", "experiments.train", *TRAIN, f"--workdir={run}"]
    subprocess.run(command, env=os.environ | environment(home), cwd=REPOSITORY, check=True)
    return losses(run)


def losses(run: Path) -> dict[int, float]:
    """Training loss of each step that a run directory has so far."""
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


def assert_same_losses(run: Path, alone: dict[int, float]) -> None:
    """Another mesh sums in another order, which is the tolerance."""
    found = losses(run)
    assert found.keys() == alone.keys() == set(range(1, STEPS + 1))
    for step, loss in alone.items():
        assert found[step] == pytest.approx(loss, rel=1e-4), f"step {step}"


def wait_until(fact: Callable[[], bool], seconds: float, story: Callable[[], str]) -> None:
    """Waits for a fact; after so many seconds the test fails and tells the story."""
    deadline = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < deadline, story()
        time.sleep(0.2)


def training_process(workdir: Path, variable: str) -> int | None:
    """The pid of a training process in `workdir` that has VARIABLE=VALUE in its environment."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:  # gone meanwhile
            continue
        ours = b"experiments.train" in command and str(workdir).encode() in command
        python = b"python" in command.split(b"\0")[0]
        if ours and python and variable.encode() in variables:
            return int(entry.name)
    return None
