"""`tools.aot` with libtpu: real train steps compiled for pods, on a machine without a TPU.

FLOPs are compared with arithmetic that knows what this code recomputes
(`moejax.train.aot_model.step_flops`): products counted from the shapes in the compiled program,
grouped matmuls by the rows that balanced routing fills, attention's kernels by the same arithmetic.
"""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent.parent

pytestmark = pytest.mark.all

SMALL = [
    "--config=configs/lm.py:size=tiny,moe=top_k,device=tpu",
    "--config.model.d_model=256",
    "--config.model.attention.heads=2",  # of 128 dimensions: what the flash kernel wants
    "--config.model.moe.widths.mean=512",
    "--config.model.compute_dtype=bfloat16",
    "--config.train.batch_size=16",
    "--config.evaluation.batch_size=16",
]


@pytest.fixture(scope="module", autouse=True)
def _libtpu():
    if importlib.util.find_spec("libtpu") is None:
        pytest.fail('libtpu is not installed; install it with: pip install "moejax[tpu]"')


@pytest.fixture(scope="module")
def aot(tmp_path_factory):
    """Runs the tool in a process of its own: the tests' XLA_FLAGS are for CPU programs."""
    cache = tmp_path_factory.mktemp("cache")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("XLA_", "JAX_"))}

    def run(*flags, code=0):
        file = cache / "out.json"
        file.unlink(missing_ok=True)
        done = subprocess.run(
            [sys.executable, "-m", "tools.aot", *flags, f"--json={file}"],
            cwd=REPOSITORY,
            env=inherited | {"MOEJAX_CACHE": str(cache)},
            capture_output=True,
            text=True,
            timeout=1800,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return json.loads(file.read_text())["reports"][0]

    return run


def check(report, chips):
    assert report["chips"] == chips and report["problems"] == [] and report["fits"]
    assert report["flops"]["ratio"] == pytest.approx(1, abs=0.1)
    # Gradients and weights travel; so do tokens, to their experts and back.
    kinds = {row["kind"] for row in report["collectives"]}
    assert "all-gather" in kinds and kinds & {"reduce-scatter", "all-reduce"}
    state = report["state_bytes"]
    assert report["memory"]["argument"] == pytest.approx(sum(state.values()), rel=0.1)
    assert math.isclose(state["parameters"] * 2, state["optimizer"], rel_tol=0.01)
    assert 0 < report["roofline"]["mfu_serial"] < 1


def test_a_step_with_expert_parallelism_for_v5e_and_the_second_call_from_the_cache(aot):
    flags = [*SMALL, "--topology=v5e:2x2", "--mesh=fsdp=2,expert=2", "--config.model.remat=full"]
    first = aot(*flags)
    check(first, 4)
    assert not first["cached"]
    again = aot(*flags)
    assert again == first | {"cached": True}


def test_a_step_with_expert_parallelism_for_v5p(aot):
    # With expert=4 libtpu 0.0.42.1 aborts in an emitter of its own, on so small a reduction.
    flags = ["--topology=v5p:2x2x1", "--mesh=fsdp=2,expert=2", "--config.exchange.kind=all_to_all"]
    check(aot(*SMALL, *flags, "--config.exchange.overflow=drop", "--quick"), 4)


def test_two_slices_talk_over_the_slow_network(aot):
    flags = ["--topology=v5e:2x2", "--slices=2", "--mesh=data=2,fsdp=2,expert=2", "--quick"]
    report = aot(*SMALL, *flags)
    check(report, 8)
    assert any(row["slow"] for row in report["collectives"])
    assert report["roofline"]["dcn"] > 0


def test_what_does_not_fit_is_a_result(aot):
    report = aot(
        "--config=configs/lm.py:size=base,moe=top_k",
        "--topology=v5e:2x2",
        "--mesh=fsdp=4",
        "--quick",
        code=5,
    )
    assert not report["fits"] and "out of memory" in report["out_of_memory"].lower()
    assert report["hbm"]["used"] > report["hbm"]["chip"]
