"""Every test runs on 8 CPU devices; without them the session fails, it does not skip."""

from __future__ import annotations

import hashlib
import os
import platform
import random
import sys
from pathlib import Path
from typing import Any

import pytest

DEVICES = 8
REPOSITORY = Path(__file__).resolve().parent.parent


def _machine() -> str:
    """Returns a word for this processor: XLA's CPU programs are compiled for its instructions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256((platform.machine() + flags).encode()).hexdigest()[:8]


def _prepare_environment() -> None:
    """Sets what jax reads once, at its import; subprocesses of tests inherit it."""
    xla_flags = os.environ.get("XLA_FLAGS", "").split()
    if not any("xla_force_host_platform_device_count" in flag for flag in xla_flags):
        xla_flags.append(f"--xla_force_host_platform_device_count={DEVICES}")
    # Tests compile hundreds of programs and run each for a moment: half the suite's time is LLVM
    # optimising. The program is the same; how it becomes machine code is simpler. `.ci/run` trains
    # the short quickstart XLA's usual way.
    for flag, value in (
        ("xla_backend_optimization_level", "0"),
        ("xla_llvm_disable_expensive_passes", "true"),
        ("xla_cpu_use_fusion_emitters", "false"),
        ("xla_cpu_parallel_codegen_split_count", "1"),
    ):
        if not any(flag in given for given in xla_flags):
            xla_flags.append(f"--{flag}={value}")
    if "PYTEST_XDIST_WORKER" in os.environ:
        # Several workers share the cores: one thread for each matmul, not one for each core.
        if not any("xla_cpu_multi_thread_eigen" in flag for flag in xla_flags):
            xla_flags.append("--xla_cpu_multi_thread_eigen=false")
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ.setdefault(name, "1")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ["XLA_FLAGS"] = " ".join(xla_flags)
    os.environ.setdefault("NPROC", str(4 * DEVICES))  # moejax/sharding/cpu.py
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # Entries are keyed by program and never changed, so workers may share them; one that is read
    # half written fails to decompress and is compiled again.
    cache = REPOSITORY / ".cache" / "jax" / _machine()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    # One compiled expert kernel for all workers and sessions, and for subprocesses of tests,
    # whatever cache they are given for their data.
    os.environ.setdefault("MOEJAX_NATIVE_CACHE", str(REPOSITORY / ".cache" / "native"))
    os.environ.setdefault("MPLBACKEND", "Agg")


if "jax" in sys.modules:
    raise pytest.UsageError("jax was imported before tests/conftest.py could ask for 8 CPU devices")
_prepare_environment()


def _cpu_devices() -> list[Any]:
    import jax

    found = jax.devices("cpu")
    if len(found) < DEVICES:
        raise pytest.UsageError(
            f"the tests need {DEVICES} CPU devices, found {len(found)}; "
            f"nearest valid: XLA_FLAGS=--xla_force_host_platform_device_count={DEVICES}"
        )
    return found


@pytest.fixture(scope="session", autouse=True)
def _eight_devices() -> None:
    """Fails every test of the session when a collected file imported jax and devices are missing.

    A fixture, because an error raised while collecting reaches xdist's controller as a crash.
    """
    if "jax" in sys.modules:
        _cpu_devices()


@pytest.fixture(scope="session")
def devices() -> list[Any]:
    """Returns 8 CPU devices; imports jax."""
    return _cpu_devices()[:DEVICES]


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> Any:
    """Returns a NumPy generator seeded by the test's own name, so that order does not matter."""
    import numpy as np

    return np.random.default_rng(list(request.node.name.encode()))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Seeds the global generators before each test."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
