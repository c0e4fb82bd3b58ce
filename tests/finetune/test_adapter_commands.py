"""`tools.adapter` as a user calls it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tuned_runs as tuned

from moejax.finetune.adapter import read_adapter

REPOSITORY = Path(__file__).resolve().parents[2]


def call(*words: str | Path, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tools.adapter", *map(str, words)],
        cwd=REPOSITORY,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.mark.slow
def test_info_tells_of_several_and_whether_they_fit(base: Path, tuned_selected: Path) -> None:
    adapter = read_adapter(tuned_selected)
    said = call(
        "info", f"--adapter={tuned_selected}", f"--adapter={adapter.directory}", f"--base={base}"
    ).splitlines()
    assert len(said) == 4 and said[1] == said[3] == f"  fits step 4 of {base}"
    for line in (said[0], said[2]):
        assert f"{adapter.parameters()} parameters, {adapter.num_bytes} bytes" in line
        assert f"base {adapter.base_hash}" in line


@pytest.mark.slow
def test_merge_makes_a_run_with_the_trained_parameters(
    base: Path, tuned_selected: Path, tmp_path: Path
) -> None:
    call("merge", f"--adapter={tuned_selected}", f"--base={base}", f"--to={tmp_path / 'merged'}")
    ours, theirs = tuned.restored(tmp_path / "merged"), tuned.restored(tuned_selected)
    assert ours.keys() == theirs.keys()
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in theirs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words, said",
    [
        (("inof",), "known: info, merge, spectrum"),
        (("info",), "--adapter: is required by info"),
        (("merge", "--adapter={run}"), "--to: is required"),
        (("merge", "--adapter={run}", "--base={run}", "--to=x"), "belongs to another base"),
        (("info", "--adapter=nothing"), "no such directory"),
    ],
)
def test_wrong_use_is_one_line(tuned_selected: Path, words: tuple[str, ...], said: str) -> None:
    error = call(*(word.format(run=tuned_selected) for word in words), code=2)
    assert said in error and len(error.strip().splitlines()) == 1
