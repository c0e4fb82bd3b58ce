"""Fixtures of the tests of fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tuned_runs as tuned

from moejax.finetune.methods import ESFT
from moejax.train import run


@pytest.fixture(scope="session")
def tuned_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a tiny trained base, made once; nothing writes to it."""
    with pytest.MonkeyPatch.context() as patch:
        tuned.on_a_laptop(patch)
        return tuned.make_base(tmp_path_factory.mktemp("tuned"))


@pytest.fixture(scope="session")
def tuned_selected(tuned_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of its experts trained for six steps, at a rate that does good."""
    root = tmp_path_factory.mktemp("tuned") / "selected"
    with pytest.MonkeyPatch.context() as patch:
        tuned.on_a_laptop(patch)
        run(tuned.tuned_experiment(tuned_base, ESFT(tuned.CHOSEN), lr=0.1), root)
    return root


@pytest.fixture(scope="module")
def laptop() -> Iterator[None]:
    """The trainer on the devices of a laptop."""
    with pytest.MonkeyPatch.context() as patch:
        tuned.on_a_laptop(patch)
        yield


@pytest.fixture(scope="module")
def base(tuned_base: Path) -> Path:
    """The tiny trained base; modules with a base of their own say so."""
    return tuned_base
