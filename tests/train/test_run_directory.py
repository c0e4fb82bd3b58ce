"""The run directory: locked, refuses another config, survives what a file system does."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import standin

import runs
from moejax.config import ConfigError, to_plain
from moejax.data import DataConfig, Dataset
from moejax.experts.exchange.config import ExchangeConfig
from moejax.sharding import MeshConfig
from moejax.train import Experiment, OccupiedError, StorageError, run
from moejax.train.checkpoint import CheckpointConfig
from moejax.train.lock import RunLock
from moejax.train.log import LogConfig
from moejax.train.rundir import MAY_CHANGE, claim, identify, identity_hash
from moejax.train.sinks.jsonl import MetricsFile, read_lines, truncate

Text = tuple[DataConfig, Dataset]


def train(experiment: Experiment, workdir: Path, text: Text, **kwargs: Any) -> Any:
    return run(experiment, workdir, dataset=text[1], model=standin.standin(experiment), **kwargs)


def test_an_occupied_directory_names_its_holder(text: Text, tmp_path: Path) -> None:
    with RunLock(tmp_path), pytest.raises(OccupiedError) as caught:
        train(standin.experiment(text[0]), tmp_path, text)
    message = str(caught.value)
    assert f"in use by pid {os.getpid()} on host {socket.gethostname()} since 20" in message
    assert "\n" not in message
    assert sorted(os.listdir(tmp_path)) == ["run.lock"]  # the loser wrote nothing


def test_a_lock_dies_with_its_owner(tmp_path: Path) -> None:
    """Whatever is left in the file, only the kernel's lock counts."""
    (tmp_path / "run.lock").write_text('{"host": "gone", "pid": 1, "since": "2020"}')
    with RunLock(tmp_path):
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()
    with RunLock(tmp_path):
        pass


def test_half_written_holder(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        (tmp_path / "run.lock").write_text('{"host": "go')
        with pytest.raises(OccupiedError, match="in use by another process"), RunLock(tmp_path):
            pass


def test_another_config_is_refused_with_the_difference(text: Text, tmp_path: Path) -> None:
    experiment = standin.experiment(text[0], steps=3)
    train(experiment, tmp_path, text)
    other = dataclasses.replace(
        experiment, seed=4, optimizer=dataclasses.replace(experiment.optimizer, lr=0.1)
    )
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ConfigError) as caught:
        train(other, tmp_path, text)
    assert "seed: 3 -> 4" in str(caught.value)
    assert "optimizer.lr: 0.05 -> 0.1" in str(caught.value)
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_command_that_failed_before_its_first_step_can_be_corrected(
    text: Text, tmp_path: Path
) -> None:
    experiment = standin.experiment(text[0], steps=3)
    wrong = dataclasses.replace(text[0], corpus="files:/nowhere/*.txt")
    with pytest.raises(ConfigError, match="matches no file"):
        run(dataclasses.replace(experiment, data=wrong), tmp_path)
    assert json.loads((tmp_path / "status.json").read_text())["exit_code"] == 2
    train(experiment, tmp_path, text)
    assert json.loads((tmp_path / "config.json").read_text())["config"]["data"]["corpus"] == (
        text[0].corpus
    )


def test_what_changes_no_number_may_change(text: Text, tmp_path: Path) -> None:
    experiment = standin.experiment(text[0], steps=6)
    train(experiment, tmp_path / "a", text)
    with pytest.raises(runs.Killed):
        train(experiment, tmp_path / "b", text, progress=runs.KillAt(5))
    eager = dataclasses.replace(
        experiment,
        checkpoint=CheckpointConfig(every=1, minutes=0.0, keep=5),
        log=LogConfig(tensorboard=False, console_seconds=1.0, heartbeat_seconds=0.0),
    )
    train(eager, tmp_path / "b", text)
    runs.assert_same_run(tmp_path / "a", tmp_path / "b", 6)
    a, b = (json.loads((tmp_path / x / "config.json").read_text()) for x in "ab")
    assert a["hash"] == b["hash"]
    assert b["config"]["checkpoint"]["every"] == 1


def test_the_keys_that_may_change_exist(text: Text) -> None:
    plain = to_plain(standin.experiment(text[0]))
    for key in MAY_CHANGE:
        group, _, name = key.partition(".")
        assert not name or name in plain[group], key
        assert group in plain, key
    assert identity_hash(plain) == identity_hash(plain | {"log": plain["log"] | {"wandb": "x"}})
    assert identity_hash(plain) != identity_hash(plain | {"log": plain["log"] | {"every": 7}})


@pytest.mark.parametrize("overflow, same", [("exact", True), ("drop", False)])
def test_the_mesh_may_change_unless_the_exchange_drops(
    text: Text, tmp_path: Path, overflow: str, same: bool
) -> None:
    plain = to_plain(standin.experiment(text[0], exchange=ExchangeConfig(overflow=overflow)))
    other = to_plain(
        standin.experiment(
            text[0],
            mesh=MeshConfig(fsdp=1, expert=4),
            exchange=ExchangeConfig("all_to_all", factor=1.5, overflow=overflow),
        )
    )
    assert (identity_hash(plain) == identity_hash(other)) is same
    run_dir = claim(tmp_path)
    identify(run_dir, plain)
    run_dir.metrics.write_text("trained\n")
    if same:
        assert identify(run_dir, other)
    else:
        with pytest.raises(ConfigError, match=r"mesh\.expert: 1 -> 4"):
            identify(run_dir, other)


@pytest.mark.parametrize("key", ["manifest_hash", "tokenizer_hash"])
def test_changed_data_is_refused(text: Text, tmp_path: Path, key: str) -> None:
    experiment = standin.experiment(text[0], steps=6)
    with pytest.raises(runs.Killed):
        train(experiment, tmp_path, text, progress=runs.KillAt(5))
    data = json.loads((tmp_path / "data.json").read_text())
    data[key] = "0" * 12
    (tmp_path / "data.json").write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=f"{key} was '000000000000' and is .* now"):
        train(experiment, tmp_path, text)


def test_a_workdir_that_is_no_place_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="is a file"):
        claim(tmp_path / "file")
    with pytest.raises(ConfigError, match="parent is a file"):
        claim(tmp_path / "file" / "run")
    with pytest.raises(ConfigError, match=r"not a run directory but holds 'thesis\.tex'"):
        claim(tmp_path / "full")
    with pytest.raises(ConfigError, match="--workdir"):
        claim("")
    os.symlink(tmp_path / "nowhere", tmp_path / "dangling")
    with pytest.raises(ConfigError, match="is a file"):
        claim(tmp_path / "dangling")
    assert claim(tmp_path / "a" / "b").root.is_dir()


def test_unwritable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *args: False)  # the tests may run as root
    with pytest.raises(ConfigError, match="is not writable"):
        claim(tmp_path)


def test_a_missing_config_beside_metrics_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ConfigError, match=r"is missing although metrics\.jsonl is there"):
        identify(claim(tmp_path), {"seed": 1})


def test_another_format_is_refused(tmp_path: Path) -> None:
    run_dir = claim(tmp_path)
    identify(run_dir, {"seed": 1})
    record = json.loads(run_dir.config.read_text()) | {"format_version": 9}
    run_dir.config.write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="format_version 9; this moejax reads 1"):
        identify(run_dir, {"seed": 1})


def test_a_full_disk_stops_with_one_line_and_can_go_on(
    text: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = standin.experiment(text[0], steps=6)
    write = MetricsFile.write

    def full(self: MetricsFile, line: dict[str, Any]) -> None:
        if line["step"] == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "metrics.jsonl")
        write(self, line)

    monkeypatch.setattr(MetricsFile, "write", full)
    with pytest.raises(StorageError, match="No space left on device; free some space") as caught:
        train(experiment, tmp_path, text)
    assert "\n" not in str(caught.value)
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 4)
    monkeypatch.undo()
    assert train(experiment, tmp_path, text).final["step"] == 6


def test_another_machine_is_said_to_be_not_bitwise_comparable(text: Text, tmp_path: Path) -> None:
    experiment = standin.experiment(text[0], steps=6)
    with pytest.raises(runs.Killed):
        train(experiment, tmp_path, text, progress=runs.KillAt(3))
    env = json.loads((tmp_path / "env.json").read_text())
    assert env["bitwise_comparable"] is True
    env["packages"]["jaxlib"] = "0.0.1"
    env["cores"] = 4096
    (tmp_path / "env.json").write_text(json.dumps(env))
    train(experiment, tmp_path, text)
    log = (tmp_path / "log.txt").read_text()
    assert "not bitwise comparable with attempt 1" in log
    assert "packages.jaxlib: 0.0.1 -> " in log
    assert "cores: 4096 -> " in log
    env = json.loads((tmp_path / "env.json").read_text())
    assert env["bitwise_comparable"] is False
    assert len(env["history"]) == 1


def test_metrics_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_lines(path) == []
    assert truncate(path, 3, 3) == 0
    file = MetricsFile(path)
    for step in (1, 2, 3):
        file.write({"step": step, "train/loss": 0.1 + step / 3, "x": float("nan")})
        if step == 2:
            file.write({"step": step, "eval/loss": float("inf")})
    file.sync()
    file.close()
    assert file.lines == 4
    assert read_lines(path)[0] == {"step": 1, "train/loss": 0.1 + 1 / 3, "x": None}
    with open(path, "a") as torn:
        torn.write('{"step": 4')
    assert len(read_lines(path)) == 4
    assert truncate(path, 2, 2) == 3
    assert truncate(path, 2, -1) == 2  # an evaluation that the checkpoint does not know goes
    again = MetricsFile(path)
    assert again.lines == 2
    again.close()
    assert truncate(path, -1, -1) == 0


def test_damage_inside_the_metrics_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(StorageError, match="line 2 is damaged"):
        read_lines(path)


def test_everything_written_is_listed_as_ours(text: Text, tmp_path: Path) -> None:
    """A directory with all of a run's files but config.json must not look foreign."""
    experiment = standin.experiment(text[0], steps=3, log=LogConfig())
    train(experiment, tmp_path, text)
    os.remove(tmp_path / "config.json")
    with pytest.raises(ConfigError, match="is missing although"):
        train(experiment, tmp_path, text)
