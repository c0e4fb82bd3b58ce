"""Every suite runs from end to end at toy size; its times mean nothing and are not looked at."""

import dataclasses
import importlib

import pytest

from tools.benchmarks import language_models
from tools.benchmarks.context import Context
from tools.benchmarks.layers import LayerShape
from tools.benchmarks.suites import SUITES, suite_of
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
def test_a_suite_measures_what_it_announces_and_every_target_of_its_own(suite, monkeypatch):
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
