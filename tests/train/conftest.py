"""Fixtures of the trainer's tests."""

from __future__ import annotations

import pytest
import standin

from moejax.data import DataConfig, Dataset


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataConfig, Dataset]:
    """A tiny corpus, built once."""
    return standin.make_dataset(tmp_path_factory.mktemp("corpus"))
