"""Reports that several tests look at, written once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from run_factory import edit_json, make_run, save

from moejax.analysis.report import write_report

SMALL = {"layers": 2, "experts": 4, "steps": 60, "trace_tokens": 400}


@pytest.fixture(scope="session")
def quartet(tmp_path_factory) -> Path:
    """The main case, dense, top-k, top-p and hetero: a directory with `runs/` and `report/`."""
    root = tmp_path_factory.mktemp("quartet")
    for kind in ("dense", "top_k", "top_p", "hetero_top_p"):
        make_run(root / "runs", kind, **SMALL)
    write_report([root / "runs"], root / "report")
    return root


@pytest.fixture(scope="session")
def zoo(tmp_path_factory) -> Path:
    """Runs with one fault each, beside a healthy one."""
    root = tmp_path_factory.mktemp("zoo")
    runs = root / "runs"
    make_run(runs, "top_k", name="healthy", **SMALL)
    make_run(runs, "top_p", name="running", state="running", **SMALL)
    make_run(runs, "top_p", name="failed", state="failed", reason="non-finite at step 36", **SMALL)
    _nan_losses(make_run(runs, "top_k", name="nan", **SMALL))
    corrupt = make_run(runs, "top_k", name="corrupt", **SMALL) / "metrics.jsonl"
    lines = corrupt.read_bytes().splitlines(keepends=True)
    corrupt.write_bytes(
        b"".join([lines[0], b"\x00\x01 rubbish\n", *lines[1:], b'{"step": 99, "tr'])
    )
    other = make_run(runs, "top_k", name="other-tokenizer", **SMALL)
    edit_json(other / "data.json", tokenizer_hash="ffff", tokenizer="bpe")
    make_run(runs, "hetero_top_p", name="other-shape", **{**SMALL, "layers": 3, "experts": 6})
    make_run(runs, "dense", name="longer", **SMALL | {"steps": 120})
    no_trace = make_run(runs, "top_p", name="no-trace", **SMALL)
    for path in (no_trace / "trace").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    empty_layer = make_run(runs, "top_k", name="layer-without-tokens", **SMALL)
    (path,) = (empty_layer / "routing").iterdir()
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    arrays["count_LE"] = arrays["count_LE"] * np.array([[0], [1]])
    save(path, arrays)
    (runs / "just-made").mkdir()
    bare = runs / "bare"
    bare.mkdir()
    (bare / "metrics.jsonl").write_text("")
    write_report([*sorted(runs.iterdir())], root / "report")
    return root


def _nan_losses(run: Path) -> None:
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(
        text.replace('"eval/loss": 2', '"eval/loss": NaN, "x": 2').replace(
            '"eval/loss": 3', '"eval/loss": NaN, "x": 3'
        )
    )
    edit_json(run / "final.json", eval={"loss": None})
