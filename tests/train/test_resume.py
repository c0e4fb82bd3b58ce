"""Exact resume with the stand-in model: wherever a run dies, the rest comes out the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import standin

import runs
from moejax.data import DataConfig, Dataset, TrainStream
from moejax.train import Experiment, TrainConfig, run
from moejax.train.progress import Progress, StepReport

STEPS = 12


@pytest.fixture(scope="module")
def straight(
    text: tuple[DataConfig, Dataset], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Experiment, Path]:
    experiment = standin.experiment(text[0], steps=STEPS)
    workdir = tmp_path_factory.mktemp("straight")
    run(experiment, workdir, dataset=text[1], model=standin.standin(experiment))
    return experiment, workdir


@pytest.mark.parametrize("kills", [(1,), (4,), (5,), (6,), (11,), (12,), (3, 5, 7, 9)])
def test_killed_and_resumed_equals_straight(
    text: tuple[DataConfig, Dataset],
    straight: tuple[Experiment, Path],
    tmp_path: Path,
    kills: tuple[int, ...],
) -> None:
    experiment, reference = straight
    model = standin.standin(experiment)
    for step in kills:
        with pytest.raises(runs.Killed):
            run(experiment, tmp_path, dataset=text[1], model=model, progress=runs.KillAt(step))
    result = run(experiment, tmp_path, dataset=text[1], model=model)
    assert not result.already_done
    runs.assert_same_run(reference, tmp_path, STEPS)
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["state"] == "done"
    assert status["attempt"] == len(kills) + 1


def test_epochs_end_off_the_checkpoints(text: tuple[DataConfig, Dataset]) -> None:
    """The test above means little if no epoch boundary lies inside the run."""
    stream = TrainStream(text[1], seed=3, batch_size=4, seq_len=16)
    assert stream.windows_per_epoch < STEPS * 4
    assert stream.windows_per_epoch % 4 != 0


def test_a_finished_run_is_left_alone(
    text: tuple[DataConfig, Dataset], straight: tuple[Experiment, Path]
) -> None:
    experiment, workdir = straight
    before = (workdir / "metrics.jsonl").read_bytes()
    result = run(experiment, workdir, dataset=text[1], model=standin.standin(experiment))
    assert result.already_done
    assert result.final == json.loads((workdir / "final.json").read_text())
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_a_torn_last_line_is_dropped_and_written_again(
    text: tuple[DataConfig, Dataset], straight: tuple[Experiment, Path], tmp_path: Path
) -> None:
    experiment, reference = straight
    model = standin.standin(experiment)
    with pytest.raises(runs.Killed):
        run(experiment, tmp_path, dataset=text[1], model=model, progress=runs.KillAt(6))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "tok')
    run(experiment, tmp_path, dataset=text[1], model=model)
    runs.assert_same_run(reference, tmp_path, STEPS)


def test_a_storm_of_kills_before_the_first_save_leaves_nothing_behind(
    text: tuple[DataConfig, Dataset], straight: tuple[Experiment, Path], tmp_path: Path
) -> None:
    experiment, reference = straight
    model = standin.standin(experiment)
    for _ in range(4):
        with pytest.raises(runs.Killed):
            run(experiment, tmp_path, dataset=text[1], model=model, progress=runs.KillAt(2))
        files = sorted(path.name for path in tmp_path.iterdir())
    assert len(files) < 12
    assert list((tmp_path / "checkpoints").iterdir()) == []
    run(experiment, tmp_path, dataset=text[1], model=model)
    runs.assert_same_run(reference, tmp_path, STEPS)


def test_metrics_are_fetched_one_step_late(
    text: tuple[DataConfig, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step t+1 is on its way before anybody waits for step t, except where the loop pauses."""
    taken: list[int] = []
    ahead: dict[int, int] = {}
    original = TrainStream.iterate

    def counted(self: TrainStream, start: int, rows: Any) -> Any:
        for step, batch in original(self, start, rows):
            taken.append(step + 1)
            yield step, batch

    class Watch(Progress):
        def step(self, report: StepReport) -> None:
            ahead[report.step] = taken[-1] - report.step

    monkeypatch.setattr(TrainStream, "iterate", counted)
    experiment = standin.experiment(text[0], steps=STEPS)
    model = standin.standin(experiment)
    run(experiment, tmp_path, dataset=text[1], model=model, progress=Watch())
    pauses = {4, 5, 8, 10, 12}
    assert ahead == {step: int(step not in pauses) for step in range(1, STEPS + 1)}


def test_accumulated_runs_resume_too(text: tuple[DataConfig, Dataset], tmp_path: Path) -> None:
    train = TrainConfig(batch_size=4, steps=6, accumulate=2)
    experiment = standin.experiment(text[0], train=train)
    model = standin.standin(experiment)
    run(experiment, tmp_path / "a", dataset=text[1], model=model)
    with pytest.raises(runs.Killed):
        run(experiment, tmp_path / "b", dataset=text[1], model=model, progress=runs.KillAt(5))
    run(experiment, tmp_path / "b", dataset=text[1], model=model)
    runs.assert_same_run(tmp_path / "a", tmp_path / "b", 6)
