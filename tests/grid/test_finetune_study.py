"""One command compares fine-tunings: base in, report out, and nothing twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from grid_files import REPOSITORY


def run(*words, code=0):
    """A command of the checkout; returns what it printed."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] += os.pathsep + os.environ.get("PYTHONPATH", "")
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=REPOSITORY, env=environment, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_wrong_use_is_one_line(tmp_path):
    out = f"--out={tmp_path / 'out'}"
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    for words, message in (
        ((f"--base={base}", out, "--set=seed=1"), "seed is what the comparison varies"),
        ((f"--base={base}", out, "--tasks=files:x.jsonl"), "task:files:x.jsonl"),
    ):
        printed = run("experiments.finetune_study", *words, "--plan", code=2)
        assert message in printed and printed.count("\n") == 1


@pytest.mark.slow
def test_a_study_from_base_to_report(tmp_path):
    lines = [
        json.dumps({"prompt": f"count from {n}", "answer": f"{n} {n + 1} {n + 2}"})
        for n in range(300)
    ]
    (tmp_path / "count.jsonl").write_text("\n".join(lines) + "\n")
    base = tmp_path / "base"
    run("experiments.train", "--config=configs/lm.py:size=nano,moe=top_k,quick",
        f"--workdir={base}")  # fmt: skip
    study = (
        "experiments.finetune_study", f"--base={base}", f"--out={tmp_path / 'out'}",
        "--grid=finetune:smoke", "--quick", f"--tasks=task:files:{tmp_path / 'count.jsonl'}",
        "--methods=esft_gate,lora",
    )  # fmt: skip
    printed = run(*study)
    assert "9 of 9 parts are done" in printed
    data = json.loads((tmp_path / "out" / "report" / "report.json").read_text())
    (claim,) = [one for one in data["claims"] if "has a lower task loss" in one["claim"]]
    assert claim["verdict"] == "cannot tell at this scale" and "1 seed" in claim["because"]
    drawn = {figure["key"] for figure in data["figures"] if not figure["empty"]}
    assert {"finetuning", "finetuning-experts", "finetuning-spectrum"} <= drawn
    assert not [note for note in data["notes"] if note["where"] == "fine-tuning"]
    again = run(*study)
    assert "9 of 9 parts are done" in again and "[" not in again
