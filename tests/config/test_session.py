"""The whole suite's promise (tests/conftest.py): 8 CPU devices, or the session fails."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).resolve().parent.parent / "conftest.py"
NEEDS_JAX = "import jax\ndef test_it():\n    assert len(jax.devices()) == 8\n"
LAZY = "def test_it(devices):\n    assert len(devices) == 8\n"
WITHOUT_JAX = "import sys\ndef test_it():\n    assert 'jax' not in sys.modules\n"


def run_session(tmp_path, test, flags, *args):
    shutil.copy(CONFTEST, tmp_path / "conftest.py")
    (tmp_path / "test_it.py").write_text(test)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "XLA_", "JAX_"))}
    if flags is not None:
        env["XLA_FLAGS"] = flags
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *args, "test_it.py"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_eight_devices_are_made_in_a_worker(tmp_path):
    done = run_session(tmp_path, NEEDS_JAX, None, "-n1")
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0


@pytest.mark.slow
def test_other_flags_may_stand_beside_ours(tmp_path):
    done = run_session(tmp_path, LAZY, "--xla_cpu_multi_thread_eigen=true")
    assert "1 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    "test, args",
    [
        pytest.param(NEEDS_JAX, ("-n0",), id="import"),
        pytest.param(LAZY, ("-n0",), id="fixture", marks=pytest.mark.slow),
        pytest.param(NEEDS_JAX, ("-n2",), id="xdist", marks=pytest.mark.slow),
    ],
)
def test_fewer_devices_fail_the_session(tmp_path, test, args):
    done = run_session(tmp_path, test, "--xla_force_host_platform_device_count=2", *args)
    assert done.returncode == 1, done.stdout
    assert "the tests need 8 CPU devices, found 2" in done.stdout + done.stderr
    assert "passed" not in done.stdout
    assert "skipped" not in done.stdout


def test_a_test_without_jax_does_not_pay_for_it(tmp_path):
    done = run_session(tmp_path, WITHOUT_JAX, None)
    assert "1 passed" in done.stdout, done.stdout + done.stderr
