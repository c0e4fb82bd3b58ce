"""A checkpoint traced: the same numbers as the trainer's own, the same bytes, one-line errors."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import probe_runs
import pytest

from moejax.analysis.traces import EMPTY_SLOT, Trace, read_labels, read_trace
from moejax.config import ConfigError
from moejax.probe import OpenedRun, TraceOptions, open_run, open_text, write_traces
from moejax.train import StorageError

OPTIONS = TraceOptions(tokens=4096, probs=True)


def write(run: OpenedRun, folder: Path, *steps: int | None) -> list[Path]:
    text = open_text(run, "validation")
    return write_traces(run, text, steps or [None], OPTIONS, folder, lambda line: None)


@pytest.fixture(scope="module")
def folder(trained: OpenedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Traces of both checkpoints over the validation windows."""
    folder = tmp_path_factory.mktemp("validation")
    assert write(trained, folder, 2, 4) == [folder / "2.npz", folder / "4.npz"]
    return folder


@pytest.fixture(scope="module")
def newest(folder: Path) -> Trace:
    return read_trace(folder / "4.npz")


@pytest.mark.parametrize("step", [2, 4])
def test_it_equals_the_trace_that_the_trainer_wrote(
    step: int, folder: Path, trained: OpenedRun
) -> None:
    own = read_trace(trained.root / "trace" / f"{step}.npz").arrays()
    got = read_trace(folder / f"{step}.npz").arrays()
    assert len(own) == 13 and own.keys() < got.keys()
    for name, array in own.items():
        if name == "loss_T":
            np.testing.assert_allclose(got[name], array, rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(got[name], array, err_msg=name)


def test_the_mean_loss_is_that_of_the_evaluation(newest: Trace, trained: OpenedRun) -> None:
    final = json.loads((trained.root / "final.json").read_text())
    assert newest.loss_T is not None
    assert np.isnan(newest.loss_T).any()
    assert np.nanmean(newest.loss_T) == pytest.approx(final["eval"]["loss"], rel=1e-5)
    assert np.isfinite(newest.loss_T).sum() == final["eval"]["tokens"]


def test_the_same_command_writes_the_same_bytes(
    folder: Path, trained: OpenedRun, tmp_path: Path
) -> None:
    """Once more from the start; the newest checkpoint is the default."""
    assert write(open_run(trained.root), tmp_path) == [tmp_path / "4.npz"]
    for name in ("4.npz", "labels.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert (folder / "2.npz").read_bytes() != (folder / "4.npz").read_bytes()


@pytest.mark.slow
def test_on_several_devices_it_is_the_same_trace(
    newest: Trace, trained: OpenedRun, tmp_path: Path
) -> None:
    run = open_run(trained.root, devices=2)
    assert run.mesh is not None and run.mesh.size == 2
    got = read_trace(write(run, tmp_path)[0]).arrays()
    for name, array in newest.arrays().items():
        if array.dtype.kind == "f":
            np.testing.assert_allclose(got[name], array, rtol=2e-3, atol=2e-3, err_msg=name)
        else:
            assert (got[name] == array).mean() > 0.999, name


def test_a_right_prediction_costs_little(newest: Trace, trained: OpenedRun) -> None:
    """The likeliest of V tokens has at least 1/V, and one that has half is the likeliest."""
    assert newest.loss_T is not None
    right_T = newest.predicted_T == newest.target_T
    scored_T = np.isfinite(newest.loss_T)
    most = np.log(trained.experiment.model.vocab_size)
    assert (right_T & scored_T).any() and (~right_T & scored_T).any()
    assert newest.loss_T[right_T & scored_T].max() <= most + 1e-5
    assert newest.loss_T[~right_T & scored_T].min() >= np.log(2) - 1e-5


def test_sequences_are_documents_within_rows(newest: Trace) -> None:
    assert newest.sequence_T is not None and newest.position_T is not None
    starts_T = np.diff(newest.sequence_T, prepend=-1) != 0
    np.testing.assert_array_equal(starts_T, newest.position_T == 0)
    np.testing.assert_array_equal(newest.sequence_T, np.cumsum(starts_T) - 1)


def test_the_labels_say_what_the_ids_are(folder: Path, trained: OpenedRun) -> None:
    labels, trace = read_labels(folder / "labels.json"), read_trace(folder / "4.npz")
    dataset = trained.dataset
    assert labels.domains == ("song", "tale") and labels.languages == ("und",)
    assert labels.tokenizer_sha256 == dataset.tokenizer_hash
    assert len(labels.pieces) == dataset.vocab_size
    assert [row["licence"] for row in labels.sources] == ["your own"] * 10
    assert trace.token_T is not None and trace.sequence_T is not None
    first = trace.token_T[trace.sequence_T == 0]
    text = dataset.tokenizer.decode(first)
    assert "".join(labels.piece(int(t)) for t in first) == text.replace("\n", "\\u000a")


# ---- what cannot be traced is one line -----------------------------------------------------------


@pytest.fixture
def copy(trained: OpenedRun, tmp_path: Path) -> Path:
    """A copy of the run that a test may spoil."""
    shutil.copytree(trained.root, tmp_path / "copy")
    return tmp_path / "copy"


def refused(error: type[Exception], action: Callable[[], Any], *words: str) -> None:
    with pytest.raises(error) as caught:
        action()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_a_step_that_is_not_there_names_the_nearest(trained: OpenedRun, tmp_path: Path) -> None:
    refused(ConfigError, lambda: write(trained, tmp_path, 4, 1), "--step=1", "nearest 2", "2, 4")
    assert list(tmp_path.iterdir()) == []


def test_no_run_and_no_checkpoint(copy: Path, tmp_path: Path) -> None:
    refused(ConfigError, lambda: open_run(tmp_path / "copi"), "did you mean 'copy'")
    refused(ConfigError, lambda: open_run(tmp_path), "has no config.json")
    here = len(jax.devices())
    refused(ConfigError, lambda: open_run(copy, devices=99), f"nearest valid value {here}")
    shutil.rmtree(copy / "checkpoints")
    refused(ConfigError, lambda: write(open_run(copy), tmp_path), "holds no checkpoint")
    assert not (copy / "checkpoints").exists()


def test_a_config_of_another_version_is_named(copy: Path) -> None:
    record = json.loads((copy / "config.json").read_text())
    del record["config"]["model"]["attention"]["name"]
    (copy / "config.json").write_text(json.dumps(record))
    refused(ConfigError, lambda: open_run(copy), "config.json", "model.attention.name")


def test_another_tokenizer_or_text_is_refused(copy: Path, tmp_path: Path) -> None:
    record = json.loads((copy / "data.json").read_text())
    for key, word in (("tokenizer_hash", "another tokenizer"), ("manifest_hash", "another text")):
        (copy / "data.json").write_text(json.dumps(record | {key: "0" * 64}))
        refused(ConfigError, lambda: write(open_run(copy), tmp_path), "data.json", word)


def test_an_unknown_text_is_named(trained: OpenedRun) -> None:
    refused(ConfigError, lambda: open_text(trained, "validaton"), "did you mean 'validation'")


def test_a_damaged_checkpoint_is_passed_over_and_left_alone(copy: Path, tmp_path: Path) -> None:
    (copy / "checkpoints/4/header/metadata").write_text("")
    run, said = open_run(copy), []
    assert run.restore(None, said.append).step == 2
    assert len(said) == 1 and "step 4 is damaged" in said[0]
    assert run.steps() == [2, 4] and not (copy / "checkpoints.damaged").exists()
    refused(StorageError, lambda: run.restore(4, said.append), "no whole checkpoint among [4]")


def test_a_save_in_flight_is_left_alone(copy: Path) -> None:
    """Whoever opens a run for training clears the rest of a dead save away; a reader must not."""
    flying = copy / "checkpoints" / "6.orbax-checkpoint-tmp"
    shutil.copytree(copy / "checkpoints/4", flying)
    assert open_run(copy).restore(None, print).step == 4
    assert (flying / "header/metadata").exists()


def test_sizes_are_bounded(trained: OpenedRun) -> None:
    TraceOptions(tokens=1 << 20).check(trained)
    for tokens, near in ((0, "1"), (1 << 40, str(1 << 22))):
        options = TraceOptions(tokens=tokens)
        refused(ConfigError, lambda o=options: o.check(trained), f"nearest valid value {near}")
    many = dataclasses.replace(probe_runs.VARIANTS["hash"], experts=8192)
    wide, _ = probe_runs.untrained(trained, ("many",), many=many)
    TraceOptions(tokens=1 << 18).check(wide)
    options = TraceOptions(tokens=1 << 18, probs=True)
    refused(ConfigError, lambda: options.check(wide), "probabilities", str(1 << 16))


def test_a_folder_holds_traces_of_the_same_tokens(
    folder: Path, trained: OpenedRun, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "some")
    text = open_text(trained, "validation")

    def fewer(*steps: int) -> None:
        options = dataclasses.replace(OPTIONS, tokens=32)
        write_traces(trained, text, steps, options, tmp_path / "some", lambda line: None)

    refused(ConfigError, lambda: fewer(4), "other tokens or slots (2.npz)")
    assert read_trace(tmp_path / "some/4.npz").num_tokens > 32
    (tmp_path / "some/2.npz").unlink()
    fewer(4)
    assert read_trace(tmp_path / "some/4.npz").num_tokens == 32


def test_only_the_first_slots_are_kept(
    folder: Path, newest: Trace, trained: OpenedRun, tmp_path: Path
) -> None:
    """The model is the same, whatever is counted: all but experts, counts and widths is equal."""
    text = open_text(trained, "validation")
    options = dataclasses.replace(OPTIONS, slots=2)
    (path,) = write_traces(trained, text, [4], options, tmp_path / "two", lambda line: None)
    made, labels = read_trace(path), read_labels(path.parent / "labels.json")
    assert labels.slots == 2 and read_labels(folder / "labels.json").slots == 0
    assert newest.weight_LTK is not None and made.weight_LTK is not None
    assert newest.active_LT is not None and (newest.active_LT > 2).any()
    np.testing.assert_array_equal(made.expert_LTK, newest.expert_LTK[..., :2])
    np.testing.assert_array_equal(made.weight_LTK, newest.weight_LTK[..., :2])
    np.testing.assert_array_equal(made.active_LT, np.minimum(newest.active_LT, 2))
    for layer, token in np.ndindex(made.active_LT.shape):
        filled = [e for e in newest.expert_LTK[layer, token, :2] if e != EMPTY_SLOT]
        assert made.width_LT[layer, token] == sum(made.width_LE[layer, e] for e in filled)
    for name in ("loss_T", "predicted_T", "probs_LTE", "entropy_LT", "token_T"):
        np.testing.assert_array_equal(getattr(made, name), getattr(newest, name), err_msg=name)
    more = dataclasses.replace(OPTIONS, slots=5)
    refused(ConfigError, lambda: more.check(trained), "--slots=5", "nearest valid value 4")
    shutil.copytree(folder, tmp_path / "all")
    write = (trained, text, [4], options, tmp_path / "all", lambda line: None)
    refused(ConfigError, lambda: write_traces(*write), "other tokens or slots (2.npz)")
