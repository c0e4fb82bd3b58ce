"""Damaged, unfinished and mismatched checkpoints: used never, reported always."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import standin

import runs
from moejax.data import DataConfig, Dataset
from moejax.train import Experiment, StorageError, run
from moejax.train.checkpoint import Checkpoints
from moejax.train.clock import Clock
from moejax.train.layout import make_layout
from moejax.train.state import TrainState

STEPS = 12


def state(value: float = 1.0, width: int = 3) -> TrainState:
    return TrainState(
        step=jnp.int32(4),
        trainable={"w": jnp.full((width, 300), value), "v": jnp.arange(3, dtype=jnp.int32)},
        frozen={},
        router_state={},
        opt_state=(jnp.full((width, 300), -value),),
        rng=jnp.zeros(2, jnp.uint32),
    )


def abstract(value: TrainState) -> TrainState:
    return jax.eval_shape(lambda: value)


def open_at(directory: Path, own: TrainState | None = None, keep: int = 3) -> Checkpoints:
    layout = make_layout(abstract(own or state()), {}, None)
    return Checkpoints(directory / "checkpoints", directory / "damaged", keep, layout)


def save_three(directory: Path) -> Path:
    checkpoints = open_at(directory)
    for step in (2, 4, 6):
        checkpoints.save(state(float(step)), Clock(step=step, flops=step / 3))
    checkpoints.close()
    return directory / "checkpoints" / "6"


def save_now(checkpoints: Checkpoints, step: int) -> None:
    checkpoints.save(state(float(step)), Clock(step=step))
    checkpoints.wait()


def largest(directory: Path) -> Path:
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(newest: Path) -> None:
    victim = largest(newest / "state")
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])


def flip_a_bit(newest: Path) -> None:
    victim = largest(newest / "state")
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(bytes(content))


def empty_header(newest: Path) -> None:
    (newest / "header" / "metadata").write_text("")


def half_a_header(newest: Path) -> None:
    path = newest / "header" / "metadata"
    path.write_text(path.read_text()[:40])


def without_arrays(newest: Path) -> None:
    shutil.rmtree(newest / "state")


def empty_directory(newest: Path) -> None:
    shutil.rmtree(newest)
    newest.mkdir()


def other_values(newest: Path) -> None:
    """A whole, readable state that is not the one the header describes."""
    shutil.rmtree(newest / "state")
    shutil.copytree(newest.parent / "4" / "state", newest / "state")


DAMAGES: list[Callable[[Path], None]] = [
    truncate,
    flip_a_bit,
    empty_header,
    half_a_header,
    without_arrays,
    empty_directory,
    other_values,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_falls_back_loudly_to_the_older_checkpoint(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    damage(save_three(tmp_path))
    said: list[str] = []
    checkpoints = open_at(tmp_path)
    restored = checkpoints.restore_newest(said.append)
    assert restored is not None
    found, clock = restored
    assert clock == Clock(step=4, flops=4 / 3)
    assert runs.tree_bytes(found) == runs.tree_bytes(state(4.0))
    assert len(said) == 1
    assert "step 6 is damaged" in said[0]
    assert "falling back to step 4" in said[0]
    # The damaged one is out of the way, kept as evidence, and its step can be saved again.
    assert (tmp_path / "damaged" / "6").is_dir()
    checkpoints.save(state(6.0), Clock(step=6))
    checkpoints.close()
    assert open_at(tmp_path).steps() == [2, 4, 6]


def test_never_starts_over_by_itself_when_every_checkpoint_is_damaged(tmp_path: Path) -> None:
    newest = save_three(tmp_path)
    for step in (2, 4, 6):
        flip_a_bit(newest.parent / str(step))
    said: list[str] = []
    with pytest.raises(StorageError, match=r"none of the checkpoints .* is whole"):
        open_at(tmp_path).restore_newest(said.append)
    assert len(said) == 3
    with pytest.raises(StorageError, match="holds damaged ones"):  # and not the second time either
        open_at(tmp_path).restore_newest(said.append)


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_save_that_dies_before_its_commit_is_never_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    """Orbax commits header, state and the whole by renaming; die before each of the three."""
    save_three(tmp_path)
    allowed = [None] * renames
    rename = os.rename

    def dies(source: Any, target: Any, **kwargs: Any) -> None:
        if "orbax" in str(source) and not allowed:
            raise OSError(5, "died here")
        if "orbax" in str(source):
            allowed.pop()
        rename(source, target, **kwargs)

    dying = open_at(tmp_path)
    monkeypatch.setattr(os, "rename", dies)
    with pytest.raises(StorageError, match="died here"):
        save_now(dying, 8)
    monkeypatch.undo()
    assert (tmp_path / "checkpoints" / "8.orbax-checkpoint-tmp").exists()

    checkpoints = open_at(tmp_path)
    assert checkpoints.steps() == [2, 4, 6]
    restored = checkpoints.restore_newest(print)
    assert restored is not None
    assert runs.tree_bytes(restored[0]) == runs.tree_bytes(state(6.0))
    checkpoints.save(state(8.0), Clock(step=8))
    checkpoints.close()
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["4", "6", "8"]


@pytest.mark.parametrize("width", [2, 4])
def test_another_model_is_refused_by_the_name_of_the_leaf(tmp_path: Path, width: int) -> None:
    save_three(tmp_path)
    checkpoints = open_at(tmp_path, state(width=width))
    with pytest.raises(StorageError, match=r"does not match the model.*trainable\.w") as caught:
        checkpoints.restore_newest(print)
    assert "\n" not in str(caught.value)
    assert checkpoints.steps() == [2, 4, 6]
    checkpoints.close()


def test_a_missing_and_an_extra_leaf_are_named(tmp_path: Path) -> None:
    save_three(tmp_path)
    changed = state()
    changed.trainable["u"] = changed.trainable.pop("v")
    with pytest.raises(StorageError, match=r"trainable\.u is not in the checkpoint"):
        open_at(tmp_path, changed).restore_newest(print)


def test_a_newer_format_is_refused_not_called_damaged(tmp_path: Path) -> None:
    newest = save_three(tmp_path)
    path = newest / "header" / "metadata"
    header = json.loads(path.read_text())
    header["format_version"] = 99
    path.write_text(json.dumps(header))
    with pytest.raises(StorageError, match="format version 99; this moejax reads 2"):
        open_at(tmp_path).restore_newest(print)


def test_keeps_the_newest(tmp_path: Path) -> None:
    checkpoints = open_at(tmp_path, keep=2)
    for step in range(1, 6):
        checkpoints.save(state(), Clock(step=step))
    checkpoints.wait()
    assert checkpoints.steps() == [4, 5]
    checkpoints.close()


def test_the_saved_state_is_the_one_given_although_its_buffers_are_donated(tmp_path: Path) -> None:
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    checkpoints = open_at(tmp_path)
    current = state(0.0)
    for _ in range(3):
        current = step(current)
    wanted = runs.tree_bytes(current)
    checkpoints.save(current, Clock(step=3))
    for _ in range(50):
        current = step(current)
    jax.block_until_ready(current)
    checkpoints.wait()
    restored = checkpoints.restore_newest(print)
    assert restored is not None
    assert runs.tree_bytes(restored[0]) == wanted
    checkpoints.close()


def train(
    experiment: Experiment, workdir: Path, text: tuple[DataConfig, Dataset], **kwargs: Any
) -> None:
    run(experiment, workdir, dataset=text[1], model=standin.standin(experiment), **kwargs)


def test_a_run_with_a_damaged_checkpoint_ends_with_the_same_numbers(
    text: tuple[DataConfig, Dataset], tmp_path: Path
) -> None:
    experiment = standin.experiment(text[0], steps=STEPS)
    train(experiment, tmp_path / "a", text)
    with pytest.raises(runs.Killed):
        train(experiment, tmp_path / "b", text, progress=runs.KillAt(10))
    flip_a_bit(tmp_path / "b" / "checkpoints" / "8")
    train(experiment, tmp_path / "b", text)
    runs.assert_same_run(tmp_path / "a", tmp_path / "b", STEPS)
    assert "WARNING: the checkpoint of step 8 is damaged" in (tmp_path / "b/log.txt").read_text()


def test_metrics_lost_behind_the_trainers_back_are_noticed(
    text: tuple[DataConfig, Dataset], tmp_path: Path
) -> None:
    experiment = standin.experiment(text[0], steps=STEPS)
    with pytest.raises(runs.Killed):
        train(experiment, tmp_path, text, progress=runs.KillAt(6))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join(lines[:2]))
    with pytest.raises(StorageError, match=r"holds 2 lines up to step 4.*saved with 4"):
        train(experiment, tmp_path, text)


def test_a_save_that_fails_in_its_thread_fails_the_run(
    text: tuple[DataConfig, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orbax.checkpoint import checkpoint_manager

    experiment = standin.experiment(text[0], steps=STEPS)

    def no_space(self: Any, step: int, *args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_manager.CheckpointManager, "_finalize", no_space)
    with pytest.raises(StorageError, match="No space left on device"):
        train(experiment, tmp_path, text)
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 4)
    monkeypatch.undo()
    train(experiment, tmp_path, text)  # the disk has space again: the same call finishes
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "done"
