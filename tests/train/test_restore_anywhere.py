"""A checkpoint of any mesh restores on any other, bit for bit, and training goes on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import one_process
import pytest

import runs
from moejax.data import DataConfig, Dataset
from moejax.sharding import mesh as mesh_module
from moejax.train import StorageError, run
from moejax.train.checkpoint import Checkpoints
from moejax.train.clock import Clock
from moejax.train.digest import digests
from moejax.train.layout import Layout, make_layout
from moejax.train.programs import make_lowerings

Text = tuple[DataConfig, Dataset]
MESHES: dict[str, dict[str, int]] = {
    "one device": {},
    "fsdp 8": {"fsdp": 8},
    "expert 4, fsdp 2": {"expert": 4, "fsdp": 2},
    "tensor 2": {"tensor": 2},
}
CLOCK = Clock(step=7, tokens=11, flops=1 / 3, seconds=0.1, evaluated_step=5, metrics_lines=9)


@pytest.fixture(autouse=True)
def all_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh_module, "mesh_devices", jax.devices)


def experiment(text: Text, workdir: Path, mesh: dict[str, int], steps: int = 16) -> Any:
    words = text[0].corpus.removeprefix("files:").removesuffix("/*.txt")
    return one_process.experiment(one_process.Job(str(workdir), words, steps, mesh))


@pytest.fixture(scope="module")
def layouts(text: Text) -> dict[str, Layout]:
    """How each mesh holds the state of seven unequal experts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mesh_module, "mesh_devices", jax.devices)
        made = {}
        for name, mesh in MESHES.items():
            plan = make_lowerings(experiment(text, Path("unused"), mesh))
            placements = plan.model.placements() if plan.mesh is not None else {}
            made[name] = make_layout(plan.abstract, placements, plan.mesh)
        return made


@pytest.fixture(scope="module")
def wanted(layouts: dict[str, Layout]) -> Any:
    """A state in config order of which every bit is random, Adam's and the router's included."""
    rng = np.random.default_rng(0)

    def fill(leaf: Any) -> np.ndarray:
        content = rng.integers(0, 256, leaf.size * leaf.dtype.itemsize, np.uint8)
        return content.view(leaf.dtype).reshape(leaf.shape)

    return jax.tree.map(fill, layouts["one device"].stored)


def on(layout: Layout, wanted: Any) -> Any:
    """The state as a run on that mesh holds it."""

    def put(array: np.ndarray, leaf: Any) -> jax.Array:
        return jax.device_put(array, leaf.sharding)

    return layout.hold(jax.tree.map(put, wanted, layout.stored))


def open_at(directory: Path, layout: Layout) -> Checkpoints:
    return Checkpoints(directory / "checkpoints", directory / "damaged", 3, layout)


@pytest.mark.parametrize("saved_on", MESHES)
def test_every_mesh_reads_what_another_has_saved(
    saved_on: str, layouts: dict[str, Layout], wanted: Any, tmp_path: Path
) -> None:
    names = {jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(wanted)}
    for part in ("router_state", ".mu", ".nu", "rng", "experts"):
        assert any(part in name for name in names), part
    checkpoints = open_at(tmp_path, layouts[saved_on])
    checkpoints.save(on(layouts[saved_on], wanted), CLOCK)
    checkpoints.close()
    for name, layout in layouts.items():
        reader = open_at(tmp_path, layout)
        said: list[str] = []
        found = reader.restore_newest(said.append)
        reader.close()
        assert found is not None and said == []
        state, clock = found
        assert clock == CLOCK
        for got, leaf in zip(jax.tree.leaves(state), jax.tree.leaves(layout.held), strict=True):
            assert leaf.sharding is None or got.sharding.is_equivalent_to(leaf.sharding, got.ndim)
        got = layout.store(state)
        for (path, want), leaf in zip(
            jax.tree.leaves_with_path(wanted), jax.tree.leaves(got), strict=True
        ):
            where = f"{name}: {jax.tree_util.keystr(path)}"
            assert np.asarray(leaf).tobytes() == want.tobytes(), where


def test_a_wrong_tree_lists_the_first_differences(
    layouts: dict[str, Layout], wanted: Any, tmp_path: Path
) -> None:
    saved = open_at(tmp_path, layouts["fsdp 8"])
    saved.save(on(layouts["fsdp 8"], wanted), CLOCK)
    saved.close()
    other = dataclasses.replace(layouts["one device"].stored, router_state={})
    with pytest.raises(StorageError, match=r"router_state\S* is not in the model") as caught:
        open_at(tmp_path, make_layout(other, {}, None)).restore_newest(print)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_the_first_format_is_refused(
    layouts: dict[str, Layout], wanted: Any, tmp_path: Path
) -> None:
    saved = open_at(tmp_path, layouts["one device"])
    saved.save(on(layouts["one device"], wanted), CLOCK)
    saved.close()
    path = tmp_path / "checkpoints/7/header/metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 1}))
    with pytest.raises(StorageError, match="format version 1; this moejax reads 2"):
        open_at(tmp_path, layouts["one device"]).restore_newest(print)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool", "float16"])
def test_a_digest_sees_every_change_and_no_mesh(dtype: str, layouts: Any) -> None:
    rng = np.random.default_rng(0)
    array = jnp.asarray(rng.integers(0, 2, (8, 4, 6)), dtype)
    (digest,) = digests([array])
    mesh = layouts["expert 4, fsdp 2"].held.step.sharding.mesh
    for spec in (("fsdp", "expert"), (None, "expert", "fsdp"), (("expert", "fsdp"),), ()):
        place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
        assert digests([jax.device_put(array, place)]) == [digest]
    host = np.asarray(array)
    changed = host.copy()
    changed[3, 2, 1] = 1 - changed[3, 2, 1]
    swapped = host.copy()
    swapped[0], swapped[1] = host[1], host[0]
    others = [changed, swapped, host.reshape(4, 8, 6).swapaxes(0, 1), host[:7]]
    assert len({digest, *digests([jnp.asarray(other) for other in others])}) == 5


@pytest.mark.slow
def test_training_goes_on_on_other_meshes(text: Text, tmp_path: Path) -> None:
    expert, tensor = MESHES["expert 4, fsdp 2"], MESHES["tensor 2"]
    a, b = tmp_path / "a", tmp_path / "b"
    run(experiment(text, a, {}), a, dataset=text[1])
    for mesh, step in (({}, 5), (expert, 10)):
        with pytest.raises(runs.Killed):
            run(experiment(text, b, mesh), b, dataset=text[1], progress=runs.KillAt(step))
    run(experiment(text, b, tensor), b, dataset=text[1])
    lines = zip(runs.metrics(a), runs.metrics(b), strict=True)
    for want, got in lines:
        assert want.keys() == got.keys()
        key = "eval/loss" if "eval/loss" in want else "train/loss"
        np.testing.assert_allclose(got[key], want[key], rtol=1e-5, err_msg=str(want["step"]))
        assert want["tokens"] == got["tokens"]
    log = (b / "log.txt").read_text()
    assert "resumed at step 4" in log and "resumed at step 8" in log
    assert "mesh: {} -> {'fsdp': 2, 'expert': 4}" in log
    assert "not bitwise comparable with attempt 2: mesh: " in log
