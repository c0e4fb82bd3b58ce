"""A run that learns a task beside general text, and the program that scores it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import probe_runs
import pytest

from moejax.config import read_json
from moejax.data import task_data
from moejax.probe import open_run
from moejax.sharding import mesh
from moejax.train import run

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def tool(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "tools.task", *arguments],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])},
    )


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    file = tmp_path_factory.mktemp("lines") / "t.jsonl"
    rows = [{"prompt": f"day {n}?", "answer": f"mat {n % 7}"} for n in range(80)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, lines):
    """Four steps on a task : general = 1 : 1; the trainer takes it as any text."""
    folder = tmp_path_factory.mktemp("tuned")
    base = dataclasses.replace(probe_runs.write_text(folder), seq_len=48)
    experiment = probe_runs.experiment(task_data(base, f"task:files:{lines}"), ("dense",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mesh, "mesh_devices", lambda: jax.devices()[:1])
        run(experiment, folder / "run")
    return open_run(folder / "run")


@pytest.mark.slow
def test_a_run_trains_on_a_mixture_and_is_scored(tuned, lines):
    recorded = read_json(tuned.root / "data.json")
    assert recorded["corpus"] == "task"
    metrics = [json.loads(line) for line in (tuned.root / "metrics.jsonl").read_text().splitlines()]
    answers = tuned.dataset.validation.packing(48).learned_W.sum()
    assert {line["eval/tokens"] for line in metrics if "eval/tokens" in line} == {int(answers)}
    done = tool("score", f"--run={tuned.root}", "--general_tokens=256", "--generate=2")
    assert done.returncode == 0, done.stderr
    name = tuned.root / "tasks"
    (path,) = name.iterdir()
    record = read_json(path)
    assert str(path) in done.stdout and f"{record['answer_loss']['mean']:.4f}" in done.stdout
    assert record["task"] == f"task:files:{lines}" and record["generated"] == 2
    assert record["general_corpus"].startswith("files:")
    assert record["general_tokens"] <= 256


@pytest.mark.slow
def test_the_tool_lists_and_shows(lines):
    done = tool("list", f"--task=task:files:{lines}")
    assert done.returncode == 0, done.stderr
    counted = [line.split()[-4:] for line in done.stdout.splitlines() if "task:files" in line][1:]
    assert len(counted) == 3 and sum(int(row[0].replace(",", "")) for row in counted) == 80
    shown = tool("show", f"--task=task:files:{lines}", "--examples=2", "--split=validation")
    assert shown.stdout.count("User: day") == 2 == shown.stdout.count("Assistant: mat")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "error: '': one of list, show, score"),
        (("scroe",), "did you mean 'score'"),
        (("show",), "--task: is required"),
        (("list", "--task=files:x.jsonl"), "spelled 'task:files:x.jsonl'"),
        (("score", "--task=law"), "--run: is required"),
    ],
)
def test_bad_commands_are_one_line(arguments, message):
    done = tool(*arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and message in done.stderr
