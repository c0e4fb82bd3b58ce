"""Signals and numerical accidents: one save, one clear line, the documented exit code."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import standin

import runs
from moejax.data import DataConfig, Dataset
from moejax.train import Experiment, Interrupted, NonFiniteError, run
from moejax.train.progress import Progress, StepReport
from moejax.train.signals import StopSignal

STEPS = 12
Text = tuple[DataConfig, Dataset]


class SignalAt(Progress):
    """Sends this process a signal when a step is reported or a phase begins."""

    def __init__(self, when: int | str, signals: tuple[int, ...]) -> None:
        super().__init__()
        self.when = when
        self.signals = signals
        self.notes: list[str] = []

    def step(self, report: StepReport) -> None:
        super().step(report)
        self._maybe(report.step)

    def phase(self, text: str) -> None:
        self._maybe(text)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def _maybe(self, now: int | str) -> None:
        if now == self.when:
            self.when = ""
            for signum in self.signals:
                signal.raise_signal(signum)


def status(workdir: Path) -> dict[str, Any]:
    return dict(json.loads((workdir / "status.json").read_text()))


def train(experiment: Experiment, workdir: Path, text: Text, **kwargs: Any) -> Any:
    model = kwargs.pop("model", standin.standin(experiment))
    return run(experiment, workdir, dataset=text[1], model=model, **kwargs)


@pytest.fixture(scope="module")
def straight(text: Text, tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Path]:
    experiment = standin.experiment(text[0], steps=STEPS)
    workdir = tmp_path_factory.mktemp("straight")
    train(experiment, workdir, text)
    return experiment, workdir


@pytest.mark.parametrize(
    "when, signum, code, saved",
    [
        (6, signal.SIGTERM, 143, 7),  # step 7 was on its way; off any checkpoint cadence
        (6, signal.SIGINT, 130, 7),
        (2, signal.SIGTERM, 143, 3),
        (6, signal.SIGUSR2, 143, 7),
        ("evaluating", signal.SIGTERM, 143, 5),  # the evaluation at step 5 is abandoned
        ("compiling", signal.SIGTERM, 143, None),  # nothing done yet: nothing to save
        ("initialising", signal.SIGINT, 130, None),
    ],
)
def test_a_signal_saves_once_and_the_rest_comes_out_the_same(
    text: Text,
    straight: tuple[Experiment, Path],
    tmp_path: Path,
    when: int | str,
    signum: int,
    code: int,
    saved: int | None,
) -> None:
    experiment, reference = straight
    with pytest.raises(Interrupted) as caught:
        train(experiment, tmp_path, text, progress=SignalAt(when, (signum,)))
    assert caught.value.exit_code == code
    assert "\n" not in str(caught.value)
    now = status(tmp_path)
    assert (now["state"], now["exit_code"]) == ("interrupted", code)
    steps = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    assert (steps[-1] if steps else None) == saved
    if when == "evaluating":
        assert not any("eval/loss" in line for line in runs.metrics(tmp_path))
    train(experiment, tmp_path, text)
    runs.assert_same_run(reference, tmp_path, STEPS)


def test_further_sigterms_do_not_disturb_the_save(
    text: Text, straight: tuple[Experiment, Path], tmp_path: Path, capfd: Any
) -> None:
    experiment, reference = straight
    signals = (signal.SIGTERM, signal.SIGTERM, signal.SIGTERM)
    with pytest.raises(Interrupted, match="SIGTERM: state saved at step 7"):
        train(experiment, tmp_path, text, progress=SignalAt(6, signals))
    assert capfd.readouterr().err.count("already stopping, ignored") == 2
    train(experiment, tmp_path, text)
    runs.assert_same_run(reference, tmp_path, STEPS)


def test_the_third_interrupt_leaves_at_once(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    with StopSignal() as stop:
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
        assert stop.requested
    assert codes == [130]
    said = capfd.readouterr().err
    assert "once more exits now without saving" in said
    assert "nothing saved" in said


def test_handlers_are_put_back(text: Text, straight: tuple[Experiment, Path]) -> None:
    before = [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)]
    train(straight[0], straight[1], text)
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before


def poisoned(text: Text, experiment: Experiment) -> tuple[Any, int]:
    """A model that is NaN for a token that first appears at a known step, and that step."""
    from moejax.data import TrainStream

    stream = TrainStream(text[1], seed=experiment.seed, batch_size=4, seq_len=16)
    seen: set[int] = set()
    for step in range(STEPS):
        fresh = set(np.unique(stream.batch(step)["tokens"]).tolist()) - seen
        if fresh and step >= 4:
            return standin.standin(experiment, poison=min(fresh)), step + 1
        seen |= fresh
    raise AssertionError("the corpus has no token that appears late")


def test_a_non_finite_step_ends_the_run_and_keeps_the_state(text: Text, tmp_path: Path) -> None:
    experiment = standin.experiment(text[0], steps=STEPS)
    model, bad = poisoned(text, experiment)
    with pytest.raises(NonFiniteError, match=f"^non-finite at step {bad}$") as caught:
        train(experiment, tmp_path, text, model=model)
    assert caught.value.exit_code == 3
    now = status(tmp_path)
    assert (now["state"], now["reason"], now["exit_code"]) == (
        "failed",
        f"non-finite at step {bad}",
        3,
    )
    lines = runs.metrics(tmp_path)
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, bad + 1))
    assert lines[-1]["train/total_loss"] is None  # flushed, and NaN is not JSON
    steps = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    assert steps[-1] < bad
    # The same command replays the same accident: nothing of the bad step was kept.
    with pytest.raises(NonFiniteError, match=f"^non-finite at step {bad}$"):
        train(experiment, tmp_path, text, model=model)


def test_a_failing_data_source_fails_the_run(
    text: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moejax.data import TrainStream

    original: Callable[..., Any] = TrainStream.iterate

    def dies(self: TrainStream, start: int = 0, rows: Any = slice(None)) -> Any:
        for step, batch in original(self, start, rows):
            if step == 6:
                raise MemoryError("worker out of memory")
            yield step, batch

    monkeypatch.setattr(TrainStream, "iterate", dies)
    experiment = standin.experiment(text[0], steps=STEPS)
    with pytest.raises(MemoryError):
        train(experiment, tmp_path, text)
    now = status(tmp_path)
    assert (now["state"], now["exit_code"]) == ("failed", 1)
    assert now["reason"] == "MemoryError: worker out of memory"
