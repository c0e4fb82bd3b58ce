"""What people see and other tools read: progress, TensorBoard, W&B, profile, peak, log."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import standin

import runs
from moejax.config import ConfigError
from moejax.config.counts import flops_per_token
from moejax.data import DataConfig, Dataset
from moejax.train import flops, programs, run
from moejax.train.checkpoint import CheckpointConfig
from moejax.train.knob_table import knob_table
from moejax.train.log import LogConfig, RunLog
from moejax.train.profile import parse_steps
from moejax.train.progress import PlainProgress, Progress, StepReport, clock_text, make_progress
from moejax.train.suite import run_suite

Text = tuple[DataConfig, Dataset]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def drive(progress: Progress) -> None:
    progress.plan({"[a]": 20, "b": 20})
    progress.data("tokenising train", 3, 10)
    for name in ("[a]", "b"):
        progress.begin(name, 20, 5)
        progress.phase("compiling")
        progress.note("a [bold]note[/bold]")
        for step in range(6, 21):
            progress.step(StepReport(step, 2.5, 1234.0, 2.0, 0.31, "measured GEMM peak"))
        progress.end()
    progress.close()


def test_plain_lines_hold_no_control_characters() -> None:
    stream = io.StringIO()
    progress = make_progress(0.0, stream)
    assert isinstance(progress, PlainProgress)
    drive(progress)
    text = stream.getvalue()
    assert "\x1b" not in text
    assert "\r" not in text
    first = text.splitlines()[2]
    assert first == (
        "[[a]] step 6/20  loss 2.5000  1,234 tok/s  MFU 31.0% of measured GEMM peak  "
        "ETA 0:28  all runs 1:08"
    )
    assert text.splitlines()[0] == "data: tokenising train 30%"


def test_plain_lines_are_seconds_apart_but_the_last_is_always_there() -> None:
    stream = io.StringIO()
    drive(PlainProgress(stream, 3600.0))
    steps = [line for line in stream.getvalue().splitlines() if " step " in line]
    assert len(steps) == 4  # the first and the last of each run


def test_bars_on_a_terminal() -> None:
    stream = Terminal()
    drive(make_progress(0.0, stream))
    text = stream.getvalue()
    assert "[a]" in text
    assert "all runs" in text
    assert "a [bold]note[/bold]" in text  # names and notes are no markup
    assert "MFU 31.0%" in text


def test_clock_text() -> None:
    assert [clock_text(s) for s in (0, 75, 4000)] == ["0:00", "1:15", "1:06:40"]
    assert Progress().eta() == Progress().overall_eta() == "--:--"


def scalars(directory: Path) -> dict[tuple[str, int], float]:
    """What TensorBoard shows: a file that starts at step k hides earlier points from k on."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[tuple[str, int], float] = {}
    for path in sorted(directory.iterdir()):
        data, offset = path.read_bytes(), 0
        while offset < len(data):
            size = int.from_bytes(data[offset : offset + 8], "little")
            event = Event.FromString(data[offset + 12 : offset + 12 + size])
            offset += 16 + size
            if event.HasField("session_log"):
                found = {key: value for key, value in found.items() if key[1] < event.step}
            for value in event.summary.value:
                found[value.tag, event.step] = value.simple_value
    return found


def test_tensorboard_does_not_double_back(text: Text, tmp_path: Path) -> None:
    experiment = standin.experiment(text[0], steps=8, log=LogConfig())
    model = standin.standin(experiment)
    with pytest.raises(runs.Killed):
        run(experiment, tmp_path, dataset=text[1], model=model, progress=runs.KillAt(7))
    run(experiment, tmp_path, dataset=text[1], model=model)
    found = scalars(tmp_path / "tb")
    assert len(list((tmp_path / "tb").iterdir())) == 2
    losses = {step: value for (tag, step), value in found.items() if tag == "train/loss"}
    wanted = {
        line["step"]: line["train/loss"] for line in runs.metrics(tmp_path) if "train/loss" in line
    }
    assert losses == pytest.approx(wanted)
    assert ("eval/loss", 8) in found


def test_wandb_is_optional_and_resumes_the_same_run(
    text: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = standin.experiment(
        text[0], steps=4, log=LogConfig(tensorboard=False, wandb="offline")
    )
    model = standin.standin(experiment)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"wandb is not installed; pip install 'moejax\[wandb\]'"):
        run(experiment, tmp_path, dataset=text[1], model=model)

    calls: list[dict[str, Any]] = []
    logged: list[int] = []
    fake = types.ModuleType("wandb")
    handle = types.SimpleNamespace(
        log=lambda numbers, step: logged.append(step), finish=lambda: None
    )
    fake.init = lambda **kwargs: calls.append(kwargs) or handle  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with pytest.raises(runs.Killed):
        run(experiment, tmp_path, dataset=text[1], model=model, progress=runs.KillAt(2))
    run(experiment, tmp_path, dataset=text[1], model=model)
    assert calls[0]["id"] == calls[1]["id"]
    assert calls[0]["mode"] == "offline"
    assert calls[0]["resume"] == "allow"
    assert calls[0]["config"]["seed"] == 3
    assert logged[-1] == 4


def test_profile_writes_a_trace(text: Text, tmp_path: Path) -> None:
    experiment = standin.experiment(text[0], steps=6)
    run(experiment, tmp_path, dataset=text[1], model=standin.standin(experiment), profile=(2, 3))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert "profile of steps up to 3 written" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("bad", ["3", "0:4", "5:4", "a:b", "1:2:3"])
def test_profile_argument(bad: str) -> None:
    assert parse_steps("") is None
    assert parse_steps("10:15") == (10, 15)
    with pytest.raises(ConfigError, match="--profile="):
        parse_steps(bad)


def test_log_txt_holds_no_escape_codes(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.txt", Progress())
    log.say("\x1b[31mred\x1b[0m")
    log.close()
    assert (tmp_path / "log.txt").read_text().endswith(" red\n")


def test_the_cpu_peak_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, name = flops.peak_flops(tmp_path)
    assert first > 0
    assert name == "measured GEMM peak"
    monkeypatch.setattr(flops, "measure_gemm", lambda: pytest.fail("measured twice"))
    assert flops.peak_flops(tmp_path) == (first, name)
    (tmp_path / "gemm_peak.json").write_text("{")  # a broken cache is only a cache
    monkeypatch.setattr(flops, "measure_gemm", lambda: 7.0)
    assert flops.peak_flops(tmp_path)[0] == 7.0


@pytest.mark.parametrize(
    "kind, peak",
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v4", 275e12),
        ("Something else", float("nan")),
    ],
)
def test_accelerator_peaks(
    kind: str, peak: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = types.SimpleNamespace(platform="x", device_kind=kind)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    found, name = flops.peak_flops(tmp_path)
    assert found == pytest.approx(peak, nan_ok=True)
    assert name


def test_flops_are_those_of_the_measured_widths(text: Text, tmp_path: Path) -> None:
    experiment = standin.experiment(text[0], steps=4)
    model = standin.standin(experiment)
    result = run(experiment, tmp_path, dataset=text[1], model=model)
    per_token = flops_per_token(model.shape(), 16, (8.0,))  # one expert of width 8 per token
    tokens = [line["tokens"] for line in runs.metrics(tmp_path) if "train/loss" in line]
    done = [line["compute/flops"] for line in runs.metrics(tmp_path) if "train/loss" in line]
    np.testing.assert_allclose(done, np.asarray(tokens) * per_token, rtol=1e-12)
    assert result.final["measured"]["flops_per_token"] == per_token
    assert result.final["compute"]["flops"] == done[-1]


def test_a_suite_shares_data_and_goes_on_where_it_was(
    text: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "Transformer", lambda c, parallel: standin.StandIn(c.vocab_size))
    small = standin.experiment(text[0], steps=3, checkpoint=CheckpointConfig(every=1))
    two = {
        f"seed{seed}": dataclasses.replace(small, name=f"seed{seed}", seed=seed) for seed in (0, 1)
    }
    stream = io.StringIO()
    with pytest.raises(runs.Killed):
        run_suite(two, tmp_path, runs.KillAt(2), ["test"])
    directories = run_suite(two, tmp_path, PlainProgress(stream, 0.0), ["test"])
    assert directories == [tmp_path / "seed0", tmp_path / "seed1"]
    assert "resumed at step 1" in stream.getvalue()
    before = (tmp_path / "seed1" / "final.json").read_bytes()
    again = io.StringIO()
    run_suite(two, tmp_path, PlainProgress(again, 0.0), ["test"])
    assert "2/2 seed1 was done already" in again.getvalue()
    assert (tmp_path / "seed1" / "final.json").read_bytes() == before


def test_knob_table_names_every_knob(text: Text) -> None:
    table = knob_table(standin.experiment(text[0]))
    assert "config.optimizer.lr = 0.05" in table
    assert "config.schedule.kind = 'wsd'" in table
    assert "(wsd | cosine | constant | steps | rsqrt)" in table


def test_status_and_environment_of_a_finished_run(text: Text, tmp_path: Path) -> None:
    experiment = standin.experiment(text[0], steps=3)
    argv = ["python", "train"]
    model = standin.standin(experiment)
    run(experiment, tmp_path, dataset=text[1], model=model, argv=argv)
    status = json.loads((tmp_path / "status.json").read_text())
    wanted = {"format_version": 1, "state": "done", "step": 3, "total_steps": 3, "attempt": 1}
    assert {key: status[key] for key in wanted} == wanted
    assert status["exit_code"] == 0
    assert status["heartbeat"] > 1.7e9
    env = json.loads((tmp_path / "env.json").read_text())
    assert env["argv"] == argv
    assert env["packages"]["jax"] == jax.__version__
    assert env["cores"] >= 1
    assert len(env["devices"]) == 8
    assert set(env["variables"]) >= {"XLA_FLAGS"}
