"""Exact resume of the five real kinds: straight == killed and resumed, bit for bit."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import standin

import runs
from configs import lm
from moejax.config import build
from moejax.data import DataConfig, Dataset, TrainStream
from moejax.train import Experiment, run
from moejax.train.checkpoint import CheckpointConfig
from moejax.train.evaluate import EvaluationConfig
from moejax.train.log import LogConfig

REPOSITORY = Path(__file__).resolve().parents[2]
ENVIRONMENT = runs.environment(PYTHONPATH=REPOSITORY)
STEPS = 12
KINDS = ("dense", "top_k", "top_p", "hetero_top_k", "hetero_top_p")
Text = tuple[DataConfig, Dataset]


def experiment(kind: str, data: DataConfig) -> Experiment:
    """Other tests train with these same shapes, to share what the compile cache holds."""
    made = build(Experiment, lm.get_config(f"size=nano,quick=true,moe={kind}"))
    return dataclasses.replace(
        made,
        data=data,
        train=dataclasses.replace(made.train, batch_size=4, steps=STEPS),
        evaluation=EvaluationConfig(every=5, batch_size=4, max_tokens=128, trace_tokens=64),
        checkpoint=CheckpointConfig(every=4, minutes=0.0),
        log=LogConfig(tensorboard=False),
    )


SLOW = ("top_k", "top_p", "hetero_top_k", "hetero_top_p")
"""Compiling them takes long; `test_resume` kills a small MoE, the stand-in, at many moments."""


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.slow) if k in SLOW else k for k in KINDS]
)
def test_killed_and_resumed_equals_straight(kind: str, text: Text, tmp_path: Path) -> None:
    """Killed at step 11: resumes at 8, which is inside an epoch, and crosses an epoch's end."""
    chosen = experiment(kind, text[0])
    stream = TrainStream(text[1], seed=chosen.seed, batch_size=4, seq_len=text[0].seq_len)
    assert (8 * 4) % stream.windows_per_epoch != 0
    assert 8 * 4 < stream.windows_per_epoch < STEPS * 4
    run(chosen, tmp_path / "straight", dataset=text[1])
    with pytest.raises(runs.Killed):
        run(chosen, tmp_path / "killed", dataset=text[1], progress=runs.KillAt(11))
    run(chosen, tmp_path / "killed", dataset=text[1])
    runs.assert_same_run(tmp_path / "straight", tmp_path / "killed", STEPS)
    lines = runs.metrics(tmp_path / "straight")
    assert len(lines) == STEPS + 3
    assert any(key.startswith("train/routing/") for key in lines[0]) == (kind != "dense")


def test_batches_do_not_depend_on_where_the_stream_starts(text: Text) -> None:
    stream = TrainStream(text[1], seed=0, batch_size=4, seq_len=16)
    ahead = stream.iterate(0)
    straight = [next(ahead)[1] for _ in range(STEPS)]
    resumed = stream.iterate(7)
    for step in range(7, STEPS):
        runs.assert_same_bits(straight[step], next(resumed)[1])


def real_command(workdir: Path, data: DataConfig, *, steps: int) -> list[str]:
    return [
        *(sys.executable, "-m", "experiments.train"),
        "--config=configs/lm.py:size=nano,quick,moe=hetero_top_p",
        f"--config.data.corpus={data.corpus}",
        f"--config.data.cache_dir={data.cache_dir}",
        "--config.data.limit_bytes=0",
        f"--config.data.validation_fraction={data.validation_fraction}",
        f"--config.train.steps={steps}",
        "--config.evaluation.every=30",
        "--config.checkpoint.every=7",
        "--config.log.heartbeat_seconds=0.0",
        f"--workdir={workdir}",
    ]


def quick_command(workdir: Path, data: DataConfig, *, steps: int) -> list[str]:
    """A process that trains the stand-in model: real kills at the price of an import."""
    return [sys.executable, str(Path(standin.__file__)), str(workdir), str(steps), data.cache_dir]


def last_step(workdir: Path) -> int:
    path = workdir / "status.json"
    return int(json.loads(path.read_text())["step"]) if path.exists() else 0


def kill_after(arguments: list[str], workdir: Path, step: int, seconds: float) -> bool:
    """Runs a command and SIGKILLs it some seconds after `step`; False if it finished before."""
    with subprocess.Popen(
        arguments, cwd=REPOSITORY, env=ENVIRONMENT, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 300
        while last_step(workdir) < step and process.poll() is None:
            assert time.monotonic() < deadline, "the run does not advance"
            time.sleep(0.005)
        time.sleep(seconds)
        finished = process.poll() is not None
        process.send_signal(signal.SIGKILL)
    return not finished


def finish(arguments: list[str]) -> None:
    done = subprocess.run(
        arguments, cwd=REPOSITORY, env=ENVIRONMENT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_real_kill_9(text: Text, tmp_path: Path) -> None:
    steps = 120
    assert kill_after(quick_command(tmp_path / "b", text[0], steps=steps), tmp_path / "b", 40, 0.0)
    assert json.loads((tmp_path / "b" / "status.json").read_text())["state"] == "running"
    finish(quick_command(tmp_path / "b", text[0], steps=steps))
    finish(quick_command(tmp_path / "a", text[0], steps=steps))
    runs.assert_same_run(tmp_path / "a", tmp_path / "b", steps)
    assert "resumed at step" in (tmp_path / "b" / "log.txt").read_text()


@pytest.mark.parametrize(
    "command, kills",
    [
        pytest.param(quick_command, 5, marks=pytest.mark.slow),
        pytest.param(quick_command, 12, marks=pytest.mark.all),
        pytest.param(real_command, 3, marks=pytest.mark.slow),
        pytest.param(real_command, 6, marks=pytest.mark.all),
    ],
)
def test_kill_9_at_random_moments(command: Any, kills: int, text: Text, tmp_path: Path) -> None:
    """Kills during start, compile, steps, saves and evaluations; then one attempt gets through."""
    steps, kills = 400, int(os.environ.get("MOEJAX_KILLS", kills))
    begin = time.monotonic()
    finish(command(tmp_path / "a", text[0], steps=steps))
    # On a fast machine the whole run takes seconds: a longer wait would kill nothing.
    longest = min(10.0, 0.4 * (time.monotonic() - begin))
    chance = random.Random(0)
    killed = 0
    for _ in range(kills):
        at_start = chance.random() < 0.4
        wanted = 0 if at_start else last_step(tmp_path / "b") + chance.randrange(1, 30)
        wait = chance.uniform(0, longest) if at_start else chance.uniform(0, 0.2)
        killed += kill_after(
            command(tmp_path / "b", text[0], steps=steps), tmp_path / "b", wanted, wait
        )
    assert killed > kills // 2
    finish(command(tmp_path / "b", text[0], steps=steps))
    runs.assert_same_run(tmp_path / "a", tmp_path / "b", steps)
