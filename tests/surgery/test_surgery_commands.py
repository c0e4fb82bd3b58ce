"""`tools.convert upcycle` and `moefy`: runs that all other tools open, and one-line errors."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from surgery_samples import MODEL, parameters

from moejax.config import ConfigError, read_json
from moejax.data import DataConfig
from moejax.interop.rundir import open_model
from moejax.probe import open_run
from moejax.surgery import Upcycling, upcycle
from moejax.surgery.rundir import calibration_text, settings, with_own_tokenizer, write_converted
from moejax.train import Experiment, TrainConfig
from moejax.train.evaluate import EvaluationConfig
from moejax.train.log import LogConfig
from moejax.train.newrun import fill, new_run

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A dense run before its first step, on a small part of the embedded text, as bytes."""
    root = tmp_path_factory.mktemp("surgery")
    data = DataConfig(limit_bytes=20_000, seq_len=16, cache_dir=str(root / "cache"))
    model = dataclasses.replace(MODEL, vocab_size=data.vocab_size)
    params = jax.tree.map(np.copy, parameters(data.vocab_size))
    experiment = Experiment(
        model=model, name="dense", seed=7, data=data,
        train=TrainConfig(batch_size=4, steps=3),
        evaluation=EvaluationConfig(every=3, batch_size=4, max_tokens=256, trace_tokens=64),
        log=LogConfig(tensorboard=False),
    )  # fmt: skip
    with new_run(root / "dense") as run:
        fill(run, experiment, params, {"segments": {"0": {"0": {}}}}, state="imported")
    return root / "dense"


@pytest.mark.slow
def test_a_converted_run_says_what_it_is(dense, tmp_path):
    run = open_run(dense)
    restored = run.restore()
    how = Upcycling(copies=2, k=1)
    model, tree = upcycle(run.experiment.model, restored.params, how, seed=4)
    kept = jax.tree.map(np.copy, tree)
    write_converted(
        tmp_path / "made", run, restored.step, model, tree,
        kind="upcycle", seed=4, options=how, record={"more": 1},
        arrays={"expert_LF": np.zeros((2, 3), np.int32)},
        changes=settings(["train.steps=9", "config.optimizer.lr=1e-4", "name=mine"]),
    )  # fmt: skip
    record = read_json(tmp_path / "made" / "surgery.json")
    assert record["kind"] == "upcycle" and record["seed"] == 4 and record["more"] == 1
    assert record["source"] == {
        "run": str(dense), "name": "dense", "step": 0, "kind": "trained",
    }  # fmt: skip
    assert record["options"]["copies"] == 2
    assert record["after"]["total_parameters"] > record["before"]["total_parameters"]
    assert record["after"]["active_parameters"] == record["before"]["active_parameters"]
    with np.load(tmp_path / "made" / "surgery.npz") as arrays:
        assert arrays["expert_LF"].shape == (2, 3)
    assert read_json(tmp_path / "made" / "status.json")["state"] == "converted"
    again = open_run(tmp_path / "made")
    assert again.experiment.model == model and again.experiment.train.steps == 9
    assert again.experiment.optimizer.lr == 1e-4 and again.experiment.name == "mine"
    assert again.experiment.seed == 7 + 1 + 4  # another order of the text
    jax.tree.map(np.testing.assert_array_equal, again.restore().params, kept["params"])
    assert open_model(tmp_path / "made").model == model
    with pytest.raises(ConfigError, match="is not empty"):
        write_converted(tmp_path / "made", run, 0, model, kept, kind="upcycle", seed=0, options=how)


@pytest.mark.slow
def test_a_conversion_that_fails_leaves_nothing(dense, tmp_path):
    run = open_run(dense)
    model, tree = upcycle(run.experiment.model, run.restore().params, Upcycling(copies=2))
    with pytest.raises(ConfigError, match=r"config\.train\.stepps: unknown key.*steps"):
        write_converted(
            tmp_path / "made", run, 0, model, tree, kind="upcycle", seed=0, options=Upcycling(),
            changes=settings(["train.stepps=9"]),
        )  # fmt: skip
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("given", ["train.steps", "=3", "model.d_model=4", "seed=1"])
def test_settings_that_are_none(given):
    with pytest.raises(ConfigError, match=f"--set={given}: "):
        settings([given])


@pytest.mark.slow
def test_a_calibration_text_has_as_many_tokens_as_asked_for(dense):
    run = open_run(dense)
    for tokens, rows in ((100, (2, 4, 16)), (10, (1, 1, 16))):
        batches = calibration_text(run, "train", tokens, seed=0)
        assert np.stack([batch["tokens"] for batch in batches]).shape == rows
    (one,) = calibration_text(run, "validation", 20, seed=0)
    assert (one["segment_ids"] > 0).sum() <= 32
    with pytest.raises(ConfigError, match="unknown text"):
        calibration_text(run, "vaildation", 20, seed=0)


def test_files_of_a_pretrained_tokenizer_come_along(tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        (theirs / name).write_text(name)
    data = DataConfig(tokenizer="pretrained", tokenizer_file=str(theirs / "tokenizer.json"))
    moved = with_own_tokenizer(data, tmp_path / "ours")
    shutil.rmtree(theirs)
    assert Path(moved.tokenizer_file).read_text() == "tokenizer.json"
    assert {path.name for path in (tmp_path / "ours").iterdir()} == {
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    plain = DataConfig()
    assert with_own_tokenizer(plain, tmp_path / "none") == plain


def command(module, *argv, fails=False):
    """Output of a program; its one line on stderr if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, argv)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=600,
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"},
    )  # fmt: skip
    assert done.returncode == (2 if fails else 0), done.stderr
    return done.stderr if fails else done.stdout


@pytest.mark.all
def test_the_commands_make_runs_that_all_tools_open(dense, tmp_path):
    up, cut = tmp_path / "up", tmp_path / "cut"
    said = command("tools.convert", "upcycle", f"--from={dense}", f"--to={up}", "--copies=3",
                   "--k=2", "--pieces=2", "--every=2", "--set=train.steps=2")  # fmt: skip
    assert "at its first step: loss" in said and "step 0 of" in said
    found = read_json(up / "surgery.json")["agreement"]
    assert found["largest"] < 1e-4 and abs(found["loss_before"] - found["loss_after"]) < 1e-5
    said = command("tools.convert", "moefy", f"--from={dense}", f"--to={cut}", "--experts=6",
                   "--k=2", "--tokens=128", "--epochs=2", "--split=coactivation")  # fmt: skip
    assert "all 6 experts on: loss" in said and "2 of 6 experts on: loss" in said
    record = read_json(cut / "surgery.json")
    assert record["all_on"]["largest"] < 1e-4 < record["chosen"]["largest"]
    assert [row["layer"] for row in record["layers"]] == [0, 1]
    assert 0 < record["layers"][0]["router"]["captured"] <= record["layers"][0]["router"]["oracle"]
    said = command("experiments.train", f"--workdir={up}")
    assert "done: 2 steps" in said
    command("tools.trace", f"--run={cut}", "--tokens=64", "--probs")
    command("tools.evaluate", up, cut, f"--out={tmp_path / 'report'}", "--pictures=false")
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert {run["name"] for run in report["runs"]} == {"up", "cut"}


@pytest.mark.slow
def test_mistakes_are_one_line(dense, tmp_path):
    new = f"--to={tmp_path / 'new'}"
    for argv, said in (
        (["upcicle"], "upcicle: known: import, export, verify, upcycle, moefy, prune, mask"),
        (["moefy", new], "--from: is required by moefy"),
        (["moefy", f"--from={dense}", new, "--copies=2"], "Unknown command line flag 'copies'"),
        (["moefy", f"--from={dense}", new, "--experts=7"], "experts=7: does not divide"),
        (["upcycle", f"--from={dense}x", new], "no such run directory"),
        (["upcycle", f"--from={dense}", f"--to={dense}"], "is not empty"),
        (["upcycle", f"--from={dense}", new, "--step=3"], "has no checkpoint of it; nearest 0"),
    ):
        error = command("tools.convert", *argv, fails=True)
        assert said in error and len(error.splitlines()) == 1, error
    assert not (tmp_path / "new").exists()
    told = command("tools.convert", "moefy", "--help")
    assert "--split" in told and "--copies" not in told and "MoEfication" in told
