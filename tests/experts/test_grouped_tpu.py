"""What a TPU would run, compiled here for a v5e that is not there (no TPU is needed).

Ideal is one grouped matmul: every row times one matrix. A gated FFN has 3 of them forward and 6
backward, 2 of which are computed again when the forward pass is not at hand.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags
from ffn_battery import battery, ffn_subject

REPOSITORY = Path(__file__).resolve().parent.parent.parent
E = 16  # of tpu_programs.py
pytestmark = pytest.mark.all


def need(*packages):
    """No skip: a test that skips where its packages are missing proves nothing."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        pytest.fail(f'missing: {", ".join(missing)}; pip install "moejax[tpu]"', pytrace=False)


def compiled(name):
    """Programs by name; another process, because XLA_FLAGS of these tests are for the CPU."""
    need("libtpu", "tokamax")
    env = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    # A TPU program cannot be read back from the cache without a TPU.
    env |= {"JAX_ENABLE_COMPILATION_CACHE": "false", "PYTHONPATH": str(REPOSITORY)}
    script = Path(__file__).with_name("tpu_programs.py")
    done = subprocess.run(
        [sys.executable, script, name], cwd=REPOSITORY, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line["program"]: line for line in lines}


def near(value, ideal):
    return ideal <= value < 1.05 * ideal


@pytest.mark.parametrize("name", ["megablox", "tokamax"])
def test_a_kernel_computes_every_product_and_none_is_dense(name):
    programs = compiled(name)
    for product in ("nt", "nn", "tn"):
        assert programs[product]["kernels"] == 1
        assert near(programs[product]["flops"], 1), programs[product]
    assert programs["layer"]["kernels"] == 9
    assert near(programs["layer"]["flops"], 9), programs["layer"]


def test_the_weight_gradient_of_ragged_dot_is_dense():
    """Why a TPU does not get it, and how the test above would look if megablox were not there."""
    programs = compiled("ragged_dot")
    assert near(programs["nt"]["flops"], 1) and near(programs["nn"]["flops"], 1)
    assert programs["tn"]["kernels"] == 0
    assert near(programs["tn"]["flops"], E)
    assert near(programs["layer"]["flops"], 6 + 3 * E)


def test_auto_is_megablox_on_a_tpu():
    """`backend` and `grouped_matmul` at their defaults: only the devices say that it is a TPU."""
    programs = compiled("auto")
    for name in ("layer", "layer, four chips"):
        assert programs[name]["kernels"] == 9, programs[name]
        assert near(programs[name]["flops"], 9), programs[name]
    assert programs["layer, remat"]["kernels"] == 11
    assert near(programs["layer, remat"]["flops"], 11)
    hybrid = programs["layer, hybrid"]
    assert hybrid["steps"] == 3 and hybrid["kernels"] == 3 * 9
    assert near(hybrid["flops"], 9 * hybrid["bound"]), hybrid


@pytest.mark.parametrize("spec", ["uniform", "explicit"])
def test_tokamax_equals_the_oracle_on_a_cpu(spec):
    need("tokamax")
    if not flags.FLAGS.is_parsed():  # tokamax would read the command line, which is pytest's
        flags.FLAGS.mark_as_parsed()
    battery(ffn_subject(spec, "grouped", "tokamax"))
