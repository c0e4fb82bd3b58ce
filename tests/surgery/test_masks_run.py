"""Masks trained by the ordinary trainer, made real, and opened by the tools that open runs."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from surgery_runs import experiment, write_run, write_text

from moejax.config import read_json
from moejax.probe import open_run, open_text
from moejax.probe.interventions import make_losses
from moejax.probe.interventions.sweep import Evaluator
from moejax.probe.tracing import TraceOptions, open_rows
from moejax.sharding import mesh
from moejax.surgery.masks import Masking, harden, masked, masks_of
from moejax.surgery.rundir import write_converted
from moejax.train import run as train

REPOSITORY = Path(__file__).resolve().parent.parent.parent
STEPS = 60
HOW = Masking(masks=2, groups=6, target=0.5, warmup="20", gain=1000.0, lr=1e-3, steps=str(STEPS))


@pytest.fixture
def one_device(monkeypatch):
    monkeypatch.setattr(mesh, "mesh_devices", lambda: jax.devices()[:1])


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    base = tmp_path_factory.mktemp("masks")
    return open_run(write_run(base / "dense", experiment(write_text(base / "text"), None, None)))


def losses(run):
    """Nats of each validation sequence, and hidden units per token of each MoE layer."""
    rows = open_rows(run, open_text(run, "validation"), TraceOptions(tokens=512))
    restored = run.restore()
    nll_S, _, width_L = Evaluator(run, rows, make_losses(run.model))(restored, None)
    return nll_S, width_L, restored


@pytest.mark.slow
def test_masks_are_trained_and_made_real(dense, one_device, tmp_path):
    before, _, restored = losses(dense)
    tree = {"params": restored.params, "router_state": restored.router_state}
    model, made = masked(dense.experiment.model, tree, HOW.rule(20), HOW.groups)
    changes = {"train.steps": STEPS, "optimizer.lr": HOW.lr, "evaluation.at_start": True,
               "evaluation.every": 30, "checkpoint.every": STEPS}  # fmt: skip
    converted = write_converted(
        tmp_path / "masked", dense, 0, model, made, kind="mask", seed=0, options=HOW,
        changes=changes,
    )  # fmt: skip
    start = open_run(tmp_path / "masked")
    at_start, width_L, _ = losses(start)
    np.testing.assert_allclose(at_start, before, rtol=1e-5)
    np.testing.assert_array_equal(width_L, [24, 24])

    final = train(converted, tmp_path / "masked").final
    rows = [json.loads(line) for line in (tmp_path / "masked/metrics.jsonl").open()]
    share = [row["eval/routing/active_width"] / 24 for row in rows if "eval/loss" in row]
    assert share[0] == 1.0 and abs(share[-1] - HOW.target) < 0.2
    assert "train/aux/learned_masks" in rows[-2] and math.isfinite(final["eval"]["loss"])

    trained = open_run(tmp_path / "masked")
    want, width_L, restored = losses(trained)
    tree = {"params": restored.params, "router_state": restored.router_state}
    assert not all(mask.all() for mask in masks_of(trained.experiment.model, tree).values())
    cut, left, report = harden(trained.experiment.model, tree)
    write_converted(
        tmp_path / "real", trained, restored.step, cut, left, kind="harden", seed=0, options=HOW
    )
    real = open_run(tmp_path / "real")
    found, real_L, _ = losses(real)
    np.testing.assert_allclose(found, want, rtol=1e-5)
    np.testing.assert_allclose(real_L + [one.always for one in report], width_L, rtol=1e-6)
    record = read_json(tmp_path / "real/surgery.json")
    assert record["after"]["total_parameters"] < record["before"]["total_parameters"]


def command(*arguments):
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.all
def test_the_commands(dense, tmp_path):
    """mask, harden, trace, prune, the study and the report, as a user runs them."""
    masked_run, real = tmp_path / "runs/masked", tmp_path / "runs/real"
    said = command(
        "tools.convert", "mask", f"--from={dense.root}", f"--to={masked_run}", "--masks=2",
        "--groups=6", f"--steps={STEPS}", "--warmup=20", "--lr=1e-3",
    )  # fmt: skip
    assert "logits differ by" in said and "trained: validation loss" in said
    said = command("tools.convert", "mask", f"--from={masked_run}", f"--to={real}", "--harden")
    assert "layer  0:" in said and "token-specific" in said
    command("tools.trace", f"--run={masked_run}", "--tokens=512")
    said = command(
        "tools.convert", "prune", f"--from={masked_run}", f"--to={tmp_path / 'runs/pruned'}",
        "--trace=validation", "--rate=0.3", "--spread=global", "--router=keep",
    )  # fmt: skip
    assert "8 of 12 experts kept" in said
    said = command(
        "tools.prune", f"--run={masked_run}", "--tokens=512", "--rates=30%", "--router=keep",
        "--timed",
    )  # fmt: skip
    assert "tokens scored" in said
    command("tools.evaluate", str(tmp_path / "runs"), f"--out={tmp_path / 'report'}")
    page = (tmp_path / "report/report.html").read_text()
    assert 'id="pruning"' in page and 'id="masks"' in page


def test_a_masking_is_options_and_a_rule():
    rule = HOW.rule(20)
    assert (rule.masks, rule.warmup, rule.target) == (2, 20, 0.5)
    assert dataclasses.asdict(HOW)["steps"] == "60"
