"""Reports that several tests look at, written once for all test processes."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from run_factory import edit_json, make_run, save

from moejax.analysis.report import write_report

SMALL = {"layers": 2, "experts": 4, "steps": 60, "trace_tokens": 400}


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Callable[[str, Callable[[Path], None]], Path]:
    """`shared(name, build)`: a directory that the first process to ask for it builds."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent

    def get(name: str, build: Callable[[Path], None]) -> Path:
        with open(base / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            done = base / f"{name}.done"
            if not done.exists():
                build(base / name)
                done.touch()
        return base / name

    return get


@pytest.fixture(scope="session")
def quartet(shared) -> Path:
    """The main case, dense, top-k, top-p and hetero: a directory with `runs/` and `report/`."""

    def build(root: Path) -> None:
        for kind in ("dense", "top_k", "top_p", "hetero_top_p"):
            make_run(root / "runs", kind, **SMALL)
        write_report([root / "runs"], root / "report", pictures=False)

    return shared("quartet", build)


@pytest.fixture(scope="session")
def zoo(shared) -> Path:
    """Runs with a fault or two each."""
    return shared("zoo", _build_zoo)


def _build_zoo(root: Path) -> None:
    runs = root / "runs"
    make_run(runs, "top_p", name="running", state="running", **SMALL)
    shape = {"layers": 3, "experts": 6, "state": "failed", "reason": "non-finite at step 36"}
    make_run(runs, "hetero_top_p", name="failed", **SMALL | shape)
    _nan_losses(make_run(runs, "top_k", name="nan", **SMALL))
    corrupt = make_run(runs, "dense", name="corrupt", **SMALL | {"steps": 120}) / "metrics.jsonl"
    lines = corrupt.read_bytes().splitlines(keepends=True)
    torn = [lines[0], b"\x00\x01 rubbish\n", *lines[1:], b'{"step": 99, "tr']
    corrupt.write_bytes(b"".join(torn))
    other = make_run(runs, "dense", name="other-tokenizer", **SMALL)
    edit_json(other / "data.json", tokenizer_hash="ffff", tokenizer="bpe")
    no_trace = make_run(runs, "top_p", name="no-trace", **SMALL)
    for path in (no_trace / "trace").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    (path,) = (no_trace / "routing").iterdir()
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    arrays["count_LE"] = arrays["count_LE"] * np.array([[0], [1]])  # a layer without tokens
    save(path, arrays)
    (runs / "just-made").mkdir()
    bare = runs / "bare"
    bare.mkdir()
    (bare / "metrics.jsonl").write_text("")
    write_report([*sorted(runs.iterdir())], root / "report", pictures=False)


def _nan_losses(run: Path) -> None:
    metrics = (run / "metrics.jsonl").read_text()
    for digit in "23":
        metrics = metrics.replace(f'"eval/loss": {digit}', f'"eval/loss": NaN, "x": {digit}')
    (run / "metrics.jsonl").write_text(metrics)
    edit_json(run / "final.json", eval={"loss": None})
