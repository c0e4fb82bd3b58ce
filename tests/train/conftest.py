"""Fixtures of the trainer's tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import pytest
import standin

from moejax.data import DataConfig, Dataset
from moejax.sharding import mesh
from moejax.train import Experiment, session


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataConfig, Dataset]:
    """A tiny corpus, built once."""
    return standin.make_dataset(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module", autouse=True)
def one_device() -> Iterator[None]:
    """Runs without a mesh of their own have one of the tests' eight devices, as on a laptop."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mesh, "mesh_devices", lambda: jax.devices()[:1])
        yield


@pytest.fixture(scope="session", autouse=True)
def compiled_once() -> Iterator[None]:
    """Runs of one process share compiled programs; tests with subprocesses compile for real."""
    compile_really = session.compile_programs
    programs: dict[str, Any] = {}

    def compile_once(config: Experiment, model: Any = None) -> Any:
        model_key = model if isinstance(model, standin.StandIn) else config.model
        parts = (model_key, config.optimizer, config.schedule, config.train, config.mesh)
        seq_len, evaluation = config.data.seq_len, config.evaluation
        method = None if config.finetune is None else config.finetune.method
        key = repr(
            (*parts, method, seq_len, evaluation.batch_size, evaluation.traced_rows(seq_len))
        )
        if key not in programs:
            programs[key] = compile_really(config, model)
        return programs[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "compile_programs", compile_once)
        yield
