"""Fixtures of the trainer's tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import standin

from moejax.data import DataConfig, Dataset
from moejax.train.session import Session


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataConfig, Dataset]:
    """A tiny corpus, built once."""
    return standin.make_dataset(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session", autouse=True)
def compiled_once() -> Iterator[None]:
    """Runs of one process share compiled programs; tests with subprocesses compile for real."""
    compile_really = Session._compile
    programs: dict[str, Any] = {}

    def compile_once(self: Session, step: Any, model: Any, *args: Any) -> Any:
        config = self.experiment
        model_key = model if isinstance(model, standin.StandIn) else config.model
        parts = (model_key, config.optimizer, config.schedule, config.train)
        key = repr((*parts, config.data.seq_len, config.evaluation.batch_size))
        if key not in programs:
            programs[key] = compile_really(self, step, model, *args)
        self.progress.phase("compiling")
        return programs[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "_compile", compile_once)
        yield
