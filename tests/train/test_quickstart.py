"""The quickstart, killed and typed again, finishes the same job with the same numbers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import runs

REPOSITORY = Path(__file__).resolve().parents[2]
KINDS = ("dense", "top_k", "top_p", "hetero_top_p")
STEPS = 12


def command(out: Path) -> list[str]:
    return [sys.executable, "-m", "experiments.quickstart", "--quick", f"--out={out}"]


def reached(out: Path, kind: str, step: int) -> bool:
    path = out / kind / "status.json"
    return path.exists() and json.loads(path.read_text())["step"] >= step


def stop_at(out: Path, environment: dict[str, str], kind: str, step: int, signum: int) -> int:
    """Runs the quickstart, signals it once a run has reached a step, returns its exit code."""
    with subprocess.Popen(
        command(out), cwd=REPOSITORY, env=environment, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 600
        while not reached(out, kind, step) and process.poll() is None:
            assert time.monotonic() < deadline, "the quickstart does not advance"
            time.sleep(0.01)
        process.send_signal(signum)
    return process.returncode


@pytest.mark.slow
def test_killed_quickstart(tmp_path: Path) -> None:
    environment = runs.environment(MOEJAX_CACHE=tmp_path / "cache")
    out = tmp_path / "killed"
    assert stop_at(out, environment, "dense", 1, signal.SIGKILL) == -signal.SIGKILL
    assert stop_at(out, environment, "top_k", 2, signal.SIGTERM) in (143, -signal.SIGTERM)
    assert stop_at(out, environment, "hetero_top_p", 1, signal.SIGKILL) == -signal.SIGKILL
    for directory in (out, tmp_path / "straight"):
        done = subprocess.run(
            command(directory),
            cwd=REPOSITORY,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip().endswith(str(directory / "report.html"))
        assert (directory / "report.html").stat().st_size > 10_000
    for kind in KINDS:
        runs.assert_same_run(tmp_path / "straight" / kind, out / kind, STEPS)
