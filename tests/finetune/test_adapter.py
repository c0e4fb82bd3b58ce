"""Adapters: alone on the disk, onto their base on any mesh, and onto no other."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tuned_runs as tuned

from moejax.config import ConfigError
from moejax.finetune.adapter import applied, read_adapter
from moejax.finetune.methods import ESFT, LoRA
from moejax.interop.safetensors import SafetensorsFile, write_safetensors
from moejax.probe import open_run
from moejax.sharding import mesh
from moejax.train import run
from moejax.train.layout import make_layout
from moejax.train.shapes import on_mesh

CHOSEN = {str(tuned.MOE): (0, 6)}

pytestmark = pytest.mark.usefixtures("laptop")


@pytest.fixture(
    scope="module", params=["esft", "router", pytest.param("lora", marks=pytest.mark.slow)]
)
def trained(
    request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A fine-tuned run of each kind; `router` also trains what keeps state."""
    if request.param == "esft":
        selected: Path = request.getfixturevalue("tuned_selected")
        return selected
    method: Any = {
        "router": ESFT(CHOSEN, router=True, norms=True),
        "lora": LoRA(rank=2),
    }[request.param]
    root = tmp_path_factory.mktemp("adapters") / request.param
    run(tuned.tuned_experiment(base, method, steps=2, lr=0.01, keep_best=False), root)
    return root


def test_base_and_adapter_are_the_trained_model_bit_for_bit(base: Path, trained: Path) -> None:
    adapter = read_adapter(trained)
    found = applied(adapter, open_run(base))
    ours = tuned.leaves({"params": found.params, "router_state": found.router_state})
    theirs = tuned.restored(trained)
    assert ours.keys() == theirs.keys()
    for name, leaf in theirs.items():
        assert ours[name].tobytes() == leaf.tobytes(), name
    assert any(
        leaf.tobytes() != theirs[name].tobytes() for name, leaf in tuned.restored(base).items()
    )


def test_an_adapter_holds_what_was_trained_and_nothing_else(base: Path, trained: Path) -> None:
    adapter = read_adapter(trained)
    record = tuned.final(trained)["finetune"]
    assert adapter.parameters() == record["trainable_parameters"]
    assert adapter.num_bytes == record["adapter_bytes"]
    assert adapter.num_bytes < 4 * adapter.parameters() + 8192
    stateful = [name for name in adapter.arrays() if name.startswith("router_state/")]
    routes = trained.name in ("router", "lora")  # lora adapts the router's matrix too
    assert bool(stateful) == routes


def test_an_adapter_goes_onto_another_mesh(
    base: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mesh, "mesh_devices", jax.devices)
    opened = open_run(base, devices=8)
    found = applied(read_adapter(trained), opened)
    one = tuned.leaves(open_run(trained).restore().params)
    abstract = on_mesh(jax.eval_shape(lambda: found.params), opened.mesh)
    layout = make_layout(abstract, opened.model.placements(), opened.mesh)
    spread = tuned.leaves(layout.store(found.params))
    for name, leaf in one.items():
        if trained.name == "lora":  # a product of factors, which devices round in their own way
            np.testing.assert_allclose(spread[name], leaf, atol=1e-6, err_msg=name)
        else:
            assert spread[name].tobytes() == leaf.tobytes(), name


@pytest.mark.parametrize("trained", ["router"], indirect=True)
def test_several_adapters_of_one_base(base: Path, trained: Path, tuned_selected: Path) -> None:
    """A second adapter changes nothing about the first, or the base."""
    before = tuned.restored(base)
    opened = open_run(base)
    first, second, again = (
        tuned.leaves(applied(read_adapter(place), opened).params)
        for place in (tuned_selected, trained, tuned_selected)
    )
    assert all(first[name].tobytes() == again[name].tobytes() for name in first)
    others = {name for name in first if first[name].tobytes() != second[name].tobytes()}
    assert len(others) > 3, "its experts, router and norms"
    after = tuned.restored(base)
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)


@pytest.mark.parametrize("trained", ["esft"], indirect=True)
def test_an_adapter_for_another_base_is_refused(trained: Path, tmp_path: Path) -> None:
    other = tuned.make_base(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match="belongs to another base") as refused:
        applied(read_adapter(trained), open_run(other))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("trained", ["esft"], indirect=True)
def test_damaged_adapters_are_refused(base: Path, trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "adapter"
    shutil.copytree(trained / "adapter", copy)
    file, record = copy / "adapter.safetensors", copy / "adapter.json"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    opened = open_run(base)
    with pytest.raises(ConfigError, match="damaged"):
        applied(read_adapter(copy), opened)

    known = json.loads(record.read_text())
    source = SafetensorsFile(trained / "adapter" / "adapter.safetensors")
    arrays = {name: source.read(name) for name in source.tensors}
    name = sorted(arrays)[0]

    def rewrite(changed: dict[str, np.ndarray]) -> None:
        shapes = {key: (array.shape, "F32") for key, array in changed.items()}
        write_safetensors(file, shapes, changed.items(), {})
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        record.write_text(json.dumps(known | {"sha256": digest}))

    rewrite({key: array for key, array in arrays.items() if key != name})
    with pytest.raises(ConfigError, match=f"lacks {name}"):
        applied(read_adapter(copy), opened)
    rewrite(arrays | {name: arrays[name][:-1]})
    with pytest.raises(ConfigError, match="in this model"):
        applied(read_adapter(copy), opened)
    rewrite(arrays | {"segments/9/0/ffn/experts/gate_XUD": arrays[name]})
    with pytest.raises(ConfigError, match="has no segments/9"):
        applied(read_adapter(copy), opened)
    file.rename(copy / "elsewhere")
    with pytest.raises(ConfigError, match=r"has adapter.json and no adapter.safetensors"):
        read_adapter(copy)
    (copy / "elsewhere").rename(file)
    record.write_text(json.dumps(known | {"format_version": 99}))
    with pytest.raises(ConfigError, match="format_version 99"):
        read_adapter(copy)
    with pytest.raises(ConfigError, match="no such"):
        read_adapter(tmp_path / "nothing")
