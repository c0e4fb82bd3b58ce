"""Every suite runs from end to end at toy size; its times mean nothing and are not looked at."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import pytest

from tools.benchmarks import language_models, one_hot, peers_torch
from tools.benchmarks.context import Context
from tools.benchmarks.layers import LayerShape
from tools.benchmarks.suites import SUITES, gpu, suite_of
from tools.benchmarks.targets import TARGETS
from tools.benchmarks.timing import interleave

pytestmark = pytest.mark.slow
LARGE = language_models.experiment


def small_experiment(backend, **model):
    large = LARGE(backend, **model)
    moe = large.model.moe
    if moe is not None:
        moe = dataclasses.replace(moe, widths=dataclasses.replace(moe.widths, mean=16))
    return dataclasses.replace(
        large,
        model=dataclasses.replace(
            large.model, vocab_size=300, d_model=32, num_layers=2, ffn_width=32, moe=moe
        ),
        data=dataclasses.replace(large.data, seq_len=16, limit_bytes=60_000),
        train=dataclasses.replace(large.train, batch_size=4),
    )


def shrink(suite, monkeypatch):
    """Toy sizes for everything that a suite takes its sizes from."""
    module = importlib.import_module(f"tools.benchmarks.suites.{suite}")
    small = LayerShape(64, 32, 16, 8, 2)
    monkeypatch.setattr("tools.benchmarks.gemm.SIZE", 32)
    for name, value in {
        "SHAPES": {"toy": small},
        "SHAPE": dataclasses.replace(small, experts=16) if suite == "skew" else small,
        "BASE": small,
        "TOKENS": (32,),
        "MORE": (),
        "BATCHES": 2,
        "WIDTH": 32,
        "WIDTHS": tuple(16 * units for units in (1, 1, 2, 2, 3, 4, 6, 8)),
        "UNIT": 16,
        "experiment": small_experiment,
    }.items():
        if hasattr(module, name):
            monkeypatch.setattr(module, name, value)
    if suite == "moe_layer":
        shapes = [dataclasses.replace(layer, shape=small) for layer in module.LAYERS]
        shapes[1] = dataclasses.replace(
            shapes[1], shape=dataclasses.replace(small, experts=16, k=6)
        )
        monkeypatch.setattr(module, "LAYERS", tuple(shapes))


@pytest.mark.parametrize("suite", [name for name in SUITES if name != "gpu"])
def test_a_suite_measures_what_it_announces_and_every_target_of_its_own(
    suite, monkeypatch, tmp_path
):
    monkeypatch.setenv("MOEJAX_CACHE", str(tmp_path))
    cached = jax.config.jax_enable_compilation_cache
    shrink(suite, monkeypatch)
    context = Context(suite, ("no_such", "tiles"), peers=False)
    work = suite_of(suite)(context)
    timings = interleave(work.candidates, rounds=1, warm_up=0, pause=0)
    rows = work.rows + [one.row(suite, timings) for one in work.comparisons]
    keys = [(row["suite"], row["case"], row["backend"], row["metric"]) for row in rows]
    assert rows and len(set(keys)) == len(keys)
    assert all(row["shape"] for row in rows)
    asked = {
        target.key for target in TARGETS if target.suite == suite and target.backend != "native"
    }
    assert asked <= set(keys)
    absent = [row for row in rows if row["backend"] == "no_such"]
    assert all(row["ratio"] is None and "no back end" in row["note"] for row in absent)
    assert all(row["ratio"] is None or row["ratio"] > 0 for row in rows)
    assert all(isinstance(note, dict) for note in work.notes.values())
    assert jax.config.jax_enable_compilation_cache is cached


def one_hot_peer(factor, given):
    """In place of torch's block and its step: our weights by another way to the same layer."""

    def step(arrays, x_TD, dy_TD):
        given.append((x_TD, dy_TD))
        weights = {name: jnp.asarray(array) for name, array in arrays.items()}
        weights["down"] *= factor

        def layer(x_TD):
            return one_hot.one_hot_moe(weights, x_TD, k=2, factor=4.0, group=64)

        y_TD, pull_back = jax.vjp(layer, x_TD.astype(jnp.float32))
        return lambda: (y_TD, *pull_back(dy_TD.astype(jnp.float32)))

    return step


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_the_gpu_suite_compares_with_a_peer_of_the_same_output_and_no_other(factor, monkeypatch):
    given = []
    monkeypatch.setattr(gpu, "check_gpu", lambda: None)
    monkeypatch.setattr(gpu, "SHAPES", (LayerShape(64, 32, 16, 8, 2), LayerShape(64, 32, 8, 8, 2)))
    monkeypatch.setattr(gpu, "MATMULS", ("ragged_dot", "no_such"))
    monkeypatch.setattr(peers_torch, "without_gpu", lambda: "")
    monkeypatch.setattr(peers_torch, "hf_moe", lambda kind, arrays, *_, **__: arrays)
    monkeypatch.setattr(peers_torch, "step", one_hot_peer(factor, given))
    work = gpu.workload(Context("gpu", ("tiles",)))
    timings = interleave(work.candidates, rounds=1, warm_up=0, pause=0)
    rows = work.rows + [one.row("gpu", timings) for one in work.comparisons]
    keys = [(row["case"], row["backend"], row["metric"]) for row in rows]
    assert len(set(keys)) == len(keys) == 2 * (1 + 3 + 3)
    assert {row["basis"] for row in rows} == {"wall"}
    for (_, backend, metric), row in zip(keys, rows, strict=True):
        lost = backend == "no_such" or (metric == gpu.TORCH_GROUPED and factor != 1)
        assert (row["ratio"] is None) is lost
    wrong = [row for row in rows if row["note"].startswith("mismatch")]
    assert len(wrong) == (0 if factor == 1 else 2)
    assert sum("torch" in candidate.name for candidate in work.candidates) == 2 - len(wrong)
    assert all(array.dtype == gpu.DTYPE for pair in given for array in pair)
