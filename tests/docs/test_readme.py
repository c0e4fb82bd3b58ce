"""The README's code runs, and what it says about it is true."""

from __future__ import annotations

import importlib
import shlex
import subprocess
import sys

import documents
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections.config_flags import config_flags

from moejax.config import build
from moejax.experts import WidthPlan
from moejax.models import Transformer
from moejax.routing import ROUTERS
from moejax.train import Experiment

README = documents.REPOSITORY / "README.md"


def text_block(*words):
    """The one block of the README that holds all the words."""
    found = [b for b in documents.blocks(README.read_text()) if all(w in b.text for w in words)]
    assert len(found) == 1, f"{len(found)} blocks hold {words}"
    return found[0].text


@pytest.fixture
def own_registry(monkeypatch):
    """Routers that a document registers are gone after the test."""
    monkeypatch.setattr(ROUTERS, "_classes", dict(ROUTERS._classes))
    yield ROUTERS
    sys.modules.pop("min_p", None)


def test_the_library_snippet_runs_and_its_sharded_result_is_the_unsharded_one(
    tmp_path, monkeypatch, own_registry, devices
):
    monkeypatch.syspath_prepend(tmp_path)
    names, _ = documents.run(README, tmp_path)

    grads, grads_8 = jax.tree.leaves(names["grads"]), jax.tree.leaves(names["grads_8"])
    assert len(grads) == len(grads_8) == 4  # router, gate, up, down
    for one, eight in zip(grads, grads_8, strict=True):
        assert np.isfinite(one).all() and np.abs(one).max() > 0
        # One flipped decision at the threshold would show as 1e-3; rounding as 1e-7.
        np.testing.assert_allclose(eight, one, rtol=0, atol=1e-5 * np.abs(one).max())
    np.testing.assert_allclose(names["value_8"], names["value"], rtol=1e-6)
    # What the README says of jax.jit with NamedSharding.
    under_jit = jax.jit(names["loss"])(names["params_8"], names["x_8"])
    np.testing.assert_allclose(under_jit, names["value"], rtol=1e-6)
    assert len(names["x_8"].sharding.device_set) == len(devices) == 8
    assert not names["x_8"].is_fully_replicated

    layer, routing, ledger = names["layer"], names["routing"], names["ledger"]
    assert type(layer.config.router).registered_name == "min_p"
    assert own_registry.get("min_p") is type(layer.config.router)
    assert names["y"].shape == names["x"].shape and np.isfinite(names["y"]).all()
    assert ledger.balanced and int(ledger.requested) == int(routing.active_T.sum())


def test_the_experts_of_the_snippet_have_the_widths_it_says():
    source = text_block("class Net(nnx.Module)", 'WidthPlan("hybrid", mean=128, unit=64)')
    assert "4 experts 64 wide, 2 of 128, 2 of 256" in source
    widths = WidthPlan("hybrid", mean=128, unit=64).widths(8)
    assert widths == (64,) * 4 + (128,) * 2 + (256,) * 2


def test_the_readers_router_follows_its_rule(tmp_path, monkeypatch, own_registry):
    (tmp_path / "min_p.py").write_text(text_block("# min_p.py"))
    monkeypatch.syspath_prepend(tmp_path)
    router = importlib.import_module("min_p").MinP(ratio=0.5)

    scores_TE = jnp.array([[0.5, 0.3, 0.2], [0.2, 0.1, 0.7], [0.4, 0.4, 0.2]])
    chosen = router.select(scores_TE, {})
    np.testing.assert_array_equal(chosen.expert_TK, [[0, 1, 3], [2, 3, 3], [0, 1, 2]])


def test_a_config_uses_the_readers_router(tmp_path, own_registry):
    (tmp_path / "min_p.py").write_text(text_block("# min_p.py"))
    parser = config_flags.ConfigFileFlagParser("config")
    config = parser.parse(f"{tmp_path / 'min_p.py'}:size=nano,moe=top_k,quick=true")
    config.model.moe.router.ratio = 0.8
    experiment = build(Experiment, config)
    assert experiment.model.moe.router.ratio == 0.8
    assert experiment.model.moe.router.registered_name == "min_p"

    model = Transformer(experiment.model)
    params, state = model.init(jax.random.key(0))
    ids = jax.random.randint(jax.random.key(1), (2, 8), 0, experiment.model.vocab_size)
    ones = jnp.ones((2, 8), jnp.int32)
    batch = {"tokens": ids, "targets": ids, "positions": ones, "segment_ids": ones}
    batch["loss_mask"] = jnp.ones((2, 8))

    @jax.jit
    def evaluate(params):
        denominators = model.denominators(batch)
        _, out = model.loss(params, state, batch, None, denominators=denominators, train=False)
        return model.summarise(out)

    active = float(evaluate(params)["routing/active_experts"])
    assert 1 <= active <= experiment.model.moe.experts


@pytest.mark.slow
def test_the_readers_router_is_trained_by_the_readmes_command(tmp_path):
    (tmp_path / "min_p.py").write_text(text_block("# min_p.py"))
    command = text_block("--config=min_p.py").strip()
    command = command.replace("--config=min_p.py:", f"--config={tmp_path / 'min_p.py'}:quick=true,")
    command = command.replace("runs/min_p", str(tmp_path / "run"))
    words = [sys.executable, *shlex.split(command)[1:]]
    done = subprocess.run(
        words, cwd=documents.REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "final.json").is_file()
