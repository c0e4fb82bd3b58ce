"""Checkpoints in an object store that knows whole objects only; the run directory mirrored beside
them, and a run that goes on from nothing but its URL."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import standin
from fake_store import FakeStore
from test_processes import REPOSITORY, assert_same_curve, complete, ended, free_port, job, start
from test_processes import STEPS as SEVERAL_STEPS
from test_processes import wait_for as wait_for_step

import runs
from moejax.config import ConfigError
from moejax.data import DataConfig, Dataset
from moejax.train import Experiment, StorageError, mirror, run
from moejax.train.errors import MismatchError
from moejax.train.mirror import Mirror
from moejax.train.progress import Progress, StepReport
from moejax.train.rundir import RunDir
from moejax.train.store import open_store

STEPS = 12
Text = tuple[DataConfig, Dataset]


@pytest.fixture(scope="module")
def server() -> Iterator[FakeStore]:
    """One for all tests of a process: clients remember where their store is."""
    with FakeStore() as served, pytest.MonkeyPatch.context() as patch:
        for name, value in served.environment().items():
            patch.setenv(name, value)
        yield served


@pytest.fixture
def store(server: FakeStore) -> Iterator[FakeStore]:
    """A store that is empty and well; nothing may ask it for what a store cannot do."""
    server.objects.clear()
    server.puts.clear()
    yield server
    server.fail = lambda method, name: 0
    assert server.violations == []


URL = "gs://bucket/some/run"
KEY = "some/run"


def experiment(text: Text, **changes: Any) -> Experiment:
    base = standin.experiment(text[0], steps=STEPS)
    checkpoint = dataclasses.replace(base.checkpoint, dir=URL, **changes)
    return dataclasses.replace(base, checkpoint=checkpoint)


def train(config: Experiment, workdir: Path, text: Text, **kwargs: Any) -> Any:
    return run(config, workdir, dataset=text[1], model=standin.standin(config), **kwargs)


@pytest.fixture(scope="module")
def straight(text: Text, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run with its checkpoints in its directory, never interrupted."""
    workdir = tmp_path_factory.mktemp("straight")
    train(standin.experiment(text[0], steps=STEPS), workdir, text)
    return workdir


def files(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != "run.lock"
    }


def mirrored(store: FakeStore) -> dict[str, bytes]:
    names = [name for name in store.names(f"{KEY}/run/") if not name.endswith("/owner.json")]
    return {name.removeprefix(f"{KEY}/run/"): store.objects[name].content for name in names}


def status(workdir: Path) -> tuple[str, int | None]:
    now = json.loads((workdir / "status.json").read_text())
    return now["state"], now["exit_code"]


class At(Progress):
    """Does something while a step is being reported, and then dies if told to."""

    def __init__(self, step: int, action: Callable[[], object], dies: bool = False) -> None:
        super().__init__()
        self.at, self.action, self.dies = step, action, dies

    def step(self, report: StepReport) -> None:
        super().step(report)
        if report.step == self.at:
            self.action()
            if self.dies:
                raise runs.Killed


def test_a_run_is_the_same_with_its_checkpoints_in_a_store(
    text: Text, store: FakeStore, straight: Path, tmp_path: Path
) -> None:
    known: dict[str, int] = {}

    def spy(method: str, name: str) -> int:
        if method == "PUT" and name.endswith("/commit_success.txt"):
            lines = store.objects[f"{KEY}/run/metrics.jsonl"].content.splitlines()
            known[name] = max(json.loads(line)["step"] for line in lines)
        return 0

    store.fail = spy
    train(experiment(text), tmp_path, text)
    runs.assert_same_run(straight, tmp_path, STEPS)
    assert not (tmp_path / "checkpoints").exists()
    assert mirrored(store) == files(tmp_path)
    # Whatever is committed, the metrics up to its step were in the store before.
    place = f"{KEY}/checkpoints"
    for step in (4, 8, 12):
        assert known[f"{place}/{step}/commit_success.txt"] >= step
    # A finished run is left alone, by any machine.
    puts = len(store.puts)
    assert train(experiment(text), tmp_path, text).already_done
    assert train(experiment(text), tmp_path / "other", text).already_done
    assert len(store.puts) == puts


def test_what_a_store_cannot_do_is_refused_by_ours() -> None:
    asked = [
        ("POST", "/storage/v1/b/bucket/o/a/compose"),
        ("POST", "/storage/v1/b/bucket/o/a/rewriteTo/b/bucket/o/b"),
        ("POST", "/storage/v1/b/bucket/o/a/moveTo/o/b"),
        ("PATCH", "/storage/v1/b/bucket/o/a"),
        ("POST", "/storage/v1/b/bucket/lockRetentionPolicy"),
    ]
    with FakeStore() as own:
        own.put("a", b"content")
        for method, path in asked:
            request = urllib.request.Request(own.address + path, b"{}", method=method)
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(request)
            assert caught.value.code == 501
        assert own.violations == [f"{method} {path}" for method, path in asked]
        assert own.names() == ["a"]


def test_a_fresh_machine_goes_on_from_the_url(
    text: Text, store: FakeStore, straight: Path, tmp_path: Path
) -> None:
    with pytest.raises(runs.Killed):
        train(experiment(text), tmp_path / "a", text, progress=runs.KillAt(6))
    (tmp_path / "b").mkdir()
    with pytest.raises(runs.Killed):
        train(experiment(text), tmp_path / "b", text, progress=runs.KillAt(10))
    said = (tmp_path / "b/log.txt").read_text()
    assert f"of the run directory from {URL}/run" in said
    assert "resumed at step 4, attempt 2" in said
    # The first machine has been overtaken: its directory is older than the store.
    train(experiment(text), tmp_path / "a", text)
    assert "resumed at step 8, attempt 3" in (tmp_path / "a/log.txt").read_text()
    runs.assert_same_run(straight, tmp_path / "a", STEPS)
    assert mirrored(store) == files(tmp_path / "a")


def test_another_run_or_another_place_is_refused(
    text: Text, store: FakeStore, tmp_path: Path
) -> None:
    with pytest.raises(runs.Killed):
        train(experiment(text), tmp_path / "a", text, progress=runs.KillAt(6))
    other = dataclasses.replace(experiment(text), seed=4)
    with pytest.raises(MismatchError, match="holds a run with another config"):
        train(other, tmp_path / "fresh", text)
    local = dataclasses.replace(standin.experiment(text[0], steps=STEPS), seed=4)
    with pytest.raises(runs.Killed):
        train(local, tmp_path / "local", text, progress=runs.KillAt(6))
    with pytest.raises(ConfigError, match="holds another run than"):
        train(other, tmp_path / "local", text)
    # The checkpoints of this run would be out of sight, and it would begin anew.
    before = files(tmp_path / "a")
    with pytest.raises(ConfigError, match=rf"was '{URL}' so far, and no finished checkpoint"):
        train(standin.experiment(text[0], steps=STEPS), tmp_path / "a", text)
    assert files(tmp_path / "a") == before
    # With them in sight it goes on.
    for name in store.names(f"{KEY}/checkpoints/"):
        target = tmp_path / "a" / name.removeprefix(f"{KEY}/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(store.objects[name].content)
    train(standin.experiment(text[0], steps=STEPS), tmp_path / "a", text)
    assert "resumed at step 4" in (tmp_path / "a/log.txt").read_text()


def test_a_run_that_another_machine_took_over_stops(
    text: Text, store: FakeStore, straight: Path, tmp_path: Path
) -> None:
    def take_over() -> None:
        with pytest.raises(runs.Killed):
            train(experiment(text), tmp_path / "b", text, progress=runs.KillAt(7))

    with pytest.raises(StorageError, match=r"was taken over by pid \d+ on host .*; this attempt"):
        train(experiment(text), tmp_path / "a", text, progress=At(6, take_over))
    assert status(tmp_path / "a") == ("failed", 4)
    assert json.loads(mirrored(store)["status.json"])["attempt"] == 2
    train(experiment(text), tmp_path / "c", text)
    runs.assert_same_run(straight, tmp_path / "c", STEPS)


def test_a_store_that_fails_for_a_while_is_asked_again(
    text: Text, store: FakeStore, straight: Path, tmp_path: Path
) -> None:
    left = {"metrics.jsonl": 1, "manifest.ocdbt": 1}

    def sometimes(method: str, name: str) -> int:
        last = name.rpartition("/")[2]
        if method != "PUT" or not left.get(last):
            return 0
        left[last] -= 1
        return 503

    store.fail = sometimes
    train(experiment(text), tmp_path, text)
    assert set(left.values()) == {0}
    runs.assert_same_run(straight, tmp_path, STEPS)


@pytest.mark.parametrize("part", ["run/metrics.jsonl", "checkpoints/8/state"])
def test_a_store_that_takes_nothing_more_ends_the_run(
    text: Text, store: FakeStore, straight: Path, tmp_path: Path, part: str
) -> None:
    def broken() -> None:
        store.fail = lambda method, name: 403 * (method == "PUT" and f"{KEY}/{part}" in name)

    with pytest.raises(StorageError, match=r"told to fail|Forbidden") as caught:
        train(experiment(text), tmp_path, text, progress=At(6, broken))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 4
    assert status(tmp_path) == ("failed", 4)
    place = f"{KEY}/checkpoints"
    assert f"{place}/4/commit_success.txt" in store.names()
    assert f"{place}/8/commit_success.txt" not in store.names()
    store.fail = lambda method, name: 0
    train(experiment(text), tmp_path, text)
    assert "resumed at step 4" in (tmp_path / "log.txt").read_text()
    runs.assert_same_run(straight, tmp_path, STEPS)


def test_the_thread_says_a_failure_once_and_tries_again(
    store: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "_LEAST_SECONDS", 0.01)
    said: list[str] = []
    run_dir = RunDir(tmp_path, 0, open_store(URL))
    own = Mirror(run_dir)
    own.claim()
    refusals = iter([403] * 3)
    store.fail = lambda method, name: next(refusals, 0) if method == "PUT" else 0
    run_dir.log.write_text("a line\n")
    own.follow(said.append, 0.0)
    deadline = time.monotonic() + 30
    while "log.txt" not in mirrored(store):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    run_dir.metrics.write_text('{"step": 1}\n')  # the thread leaves the metrics to the checkpoints
    assert own.close() == ""
    assert [line.partition(" (")[0] for line in said] == [
        "WARNING: mirroring failed, will try again"
    ]
    assert mirrored(store) == files(tmp_path)


def killed_at(step: int, config: Experiment, workdir: Path, text: Text) -> None:
    with pytest.raises(runs.Killed):
        train(config, workdir, text, progress=runs.KillAt(step))


def newest(store: FakeStore, step: int) -> dict[str, bytes]:
    prefix = f"{KEY}/checkpoints/{step}/"
    return {name.removeprefix(prefix): store.objects[name].content for name in store.names(prefix)}


def test_a_truncated_object_is_noticed_and_the_older_checkpoint_taken(
    text: Text, store: FakeStore, straight: Path, tmp_path: Path
) -> None:
    killed_at(10, experiment(text), tmp_path, text)
    there = newest(store, 8)
    name = max((n for n in there if "/d/" in n), key=lambda n: len(there[n]))
    there[name] = there[name][: len(there[name]) // 2]
    store.put(f"{KEY}/checkpoints/8/{name}", there[name])
    train(experiment(text), tmp_path, text)
    log = (tmp_path / "log.txt").read_text()
    assert "WARNING: the checkpoint of step 8 is damaged" in log
    assert "falling back to step 4" in log
    aside = f"{KEY}/checkpoints.damaged/8/"
    kept = {name.removeprefix(aside): store.objects[name].content for name in store.names(aside)}
    assert kept == there
    runs.assert_same_run(straight, tmp_path, STEPS)


def test_a_store_that_does_not_answer_is_no_damage(
    text: Text, store: FakeStore, straight: Path, tmp_path: Path
) -> None:
    killed_at(10, experiment(text), tmp_path, text)
    there = newest(store, 8)
    store.fail = lambda method, name: 403 * (method == "GET" and "checkpoints/8/state" in name)
    with pytest.raises(StorageError, match="the store did not answer") as caught:
        train(experiment(text), tmp_path, text)
    assert "\n" not in str(caught.value)
    assert newest(store, 8) == there
    store.fail = lambda method, name: 0
    train(experiment(text), tmp_path, text)
    assert "resumed at step 8" in (tmp_path / "log.txt").read_text()
    runs.assert_same_run(straight, tmp_path, STEPS)


@pytest.mark.parametrize(
    "url", ["s3://bucket/run", "http://host/run", "/disk/run", "runs/one", "gs://", "gs://b/../a"]
)
def test_what_is_no_store_is_refused(text: Text, url: str) -> None:
    with pytest.raises(ConfigError, match=r"config\.checkpoint\.dir=.*: must be gs://") as caught:
        dataclasses.replace(experiment(text).checkpoint, dir=url).validate("config.checkpoint")
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_one_line(
    text: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ConfigError, match=r"pip install 'moejax\[gcs\]'") as caught:
        train(experiment(text), tmp_path, text)
    assert "\n" not in str(caught.value)
    assert files(tmp_path) == {}


def test_a_bucket_that_is_not_there_is_one_line(
    text: Text, store: FakeStore, tmp_path: Path
) -> None:
    store.fail = lambda method, name: 404 * (method == "PUT")
    with pytest.raises(StorageError, match="is the bucket there") as caught:
        train(experiment(text), tmp_path, text)
    assert "\n" not in str(caught.value)
    assert status(tmp_path) == ("failed", 4)


@pytest.mark.slow
def test_kill_9_and_an_empty_disk(text: Text, store: FakeStore, tmp_path: Path) -> None:
    cache = text[0].cache_dir

    def child(workdir: str, *url: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, standin.__file__, str(tmp_path / workdir), "60", cache, *url]
        environment = runs.environment(PYTHONPATH=REPOSITORY)
        return subprocess.Popen(command, cwd=REPOSITORY, env=environment)

    with child("straight") as straight:
        pass
    assert straight.returncode == 0
    for at in (10, 30):
        with child("run", URL) as killed:
            wait_for_step(tmp_path / "run", at, [])
            killed.send_signal(signal.SIGKILL)
        shutil.rmtree(tmp_path / "run")
    with child("run", URL) as last:
        pass
    assert last.returncode == 0
    assert "attempt 3" in (tmp_path / "run/log.txt").read_text()
    runs.assert_same_run(tmp_path / "straight", tmp_path / "run", 60)
    assert mirrored(store) == files(tmp_path / "run")


@pytest.mark.slow
def test_two_processes_with_a_disk_each(text: Text, store: FakeStore, tmp_path: Path) -> None:
    """SIGTERM at one of them, both disks lost; then the curve of one process without a store."""

    def two() -> list[subprocess.Popen[str]]:
        port = f"localhost:{free_port()}"
        changes = {"coordinator": port, "processes": 2, "checkpoints": URL}
        jobs = [job(tmp_path / f"{i}/run", text, process=i, **changes) for i in (0, 1)]
        return [start(own, 4) for own in jobs]

    children: list[subprocess.Popen[str]] = []
    try:
        children = two()
        wait_for_step(tmp_path / "0/run", 5, children)
        children[1].send_signal(signal.SIGTERM)
        for code, said in ended(children, 300):
            assert code == 143, said[-3000:]
        for process in (0, 1):
            shutil.rmtree(tmp_path / f"{process}/run")
        children = two()
        for code, said in ended(children, 300):
            assert code == 0, said[-3000:]
    finally:
        for child in children:
            child.kill()
    assert os.listdir(tmp_path / "1/run") == ["log.process_1.txt"]
    assert mirrored(store) == files(tmp_path / "0/run") | files(tmp_path / "1/run")
    shards = list(store.names(f"{KEY}/checkpoints/{SEVERAL_STEPS}/state/ocdbt.process"))
    assert {name.split("ocdbt.process_")[1][0] for name in shards} == {"0", "1"}
    complete(job(tmp_path / "alone", text), 1)
    assert_same_curve(tmp_path / "0/run", tmp_path / "alone")
