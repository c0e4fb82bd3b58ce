"""A run that several tests probe, trained once for all test processes; none may change it."""

from __future__ import annotations

import fcntl
import os

import jax
import probe_runs
import pytest

from moejax.probe import OpenedRun, open_run
from moejax.sharding import mesh
from moejax.train import run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> OpenedRun:
    """A dense layer, and one of unequal experts, a shared one, and a top-p router."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    root = base / "probed"
    with open(base / "probed.lock", "w") as lock, pytest.MonkeyPatch.context() as patch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (base / "probed.done").exists():
            patch.setattr(mesh, "mesh_devices", lambda: jax.devices()[:1])
            run(probe_runs.experiment(probe_runs.write_text(root)), root / "run")
            (base / "probed.done").touch()
    return open_run(root / "run")
