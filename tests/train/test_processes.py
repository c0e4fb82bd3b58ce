"""Several real processes: together, one stopped, one killed, one missing, other numbers of them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import one_process
import pytest
from one_process import Job

import runs
from moejax.config import ConfigError
from moejax.data import DataConfig, Dataset, TrainStream
from moejax.sharding import distributed
from moejax.sharding.roll_call import MissingProcessError, roll_call

Text = tuple[DataConfig, Dataset]
REPOSITORY = Path(__file__).resolve().parents[2]
STEPS = 24
MESH = {"fsdp": 2, "expert": 4}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def job(workdir: Path, text: Text, **changes: Any) -> Job:
    words = text[0].corpus.removeprefix("files:").removesuffix("/*.txt")
    return dataclasses.replace(Job(str(workdir), words, STEPS, MESH), **changes)


class Child(subprocess.Popen[str]):
    """A process that writes to a file: a full pipe that nobody reads would hold it up."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115 (gone when nobody holds it)
        super().__init__(
            command,
            cwd=REPOSITORY,
            env=environment,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def said(self) -> str:
        """All of its output."""
        self._output.seek(0)
        return self._output.read()


def start(own: Job, devices: int) -> Child:
    inherited = runs.environment(
        PYTHONPATH=REPOSITORY, MOEJAX_TEST_JOB=json.dumps(dataclasses.asdict(own))
    )
    inherited["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={devices}"
    return Child([sys.executable, one_process.__file__], inherited)


@contextlib.contextmanager
def started(own: Job, processes: int) -> Iterator[list[Child]]:
    """All processes of a run on eight devices; none survives the block."""
    port = f"localhost:{free_port()}"
    if processes == 1:
        jobs = [own]
    else:
        jobs = [
            dataclasses.replace(own, coordinator=port, processes=processes, process=index)
            for index in range(processes)
        ]
    with contextlib.ExitStack() as stack:
        children = []
        for one in jobs:
            child = stack.enter_context(start(one, 8 // processes))
            stack.callback(child.kill)
            children.append(child)
        yield children


def ended(children: list[Child], seconds: int = 300) -> list[tuple[int, str]]:
    """Exit code and output of each; the limit only ends a hang."""
    return [(child.wait(seconds), child.said()) for child in children]


def complete(own: Job, processes: int) -> None:
    with started(own, processes) as children:
        for code, said in ended(children):
            assert code == 0, said[-3000:]


def wait_for(workdir: Path, step: int, children: list[Child]) -> None:
    """Returns when a run has done `step` steps."""
    deadline = time.monotonic() + 300
    status = workdir / "status.json"
    while not status.exists() or json.loads(status.read_text())["step"] < step:
        assert all(child.poll() is None for child in children), ended(children)
        assert time.monotonic() < deadline, "the run does not advance"
        time.sleep(0.005)


def assert_same_curve(got: Path, want: Path) -> None:
    """Every loss, of training and evaluation, at every step."""
    curves = [
        {
            (line["step"], key): line[key]
            for line in runs.metrics(run)
            for key in ("train/loss", "eval/loss", "train/grad_norm")
            if key in line
        }
        for run in (got, want)
    ]
    assert curves[0].keys() == curves[1].keys()
    assert len(curves[1]) == 2 * STEPS + STEPS // 8
    names = list(curves[1])
    np.testing.assert_allclose(
        [curves[0][name] for name in names], [curves[1][name] for name in names], rtol=1e-5
    )


@pytest.fixture(scope="module")
def alone(text: Text, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run in one process with eight devices."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    complete(job(workdir, text), 1)
    return workdir


@pytest.mark.slow
def test_two_processes_stop_together_and_go_on(text: Text, tmp_path: Path, alone: Path) -> None:
    """SIGTERM at one of them; then the same curve as in one process, from a quarter of the text."""
    # Each would save at other moments by its own clock.
    own = job(tmp_path / "run", text, minutes=0.01)
    with started(own, 2) as children:
        wait_for(tmp_path / "run", 5, children)
        children[1].send_signal(signal.SIGTERM)
        for code, said in ended(children):
            assert code == 143, said[-3000:]
            assert "SIGTERM: state saved at step" in said
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert (status["state"], status["exit_code"], status["processes"]) == ("interrupted", 143, 2)
    assert 5 <= status["step"] < STEPS
    complete(own, 2)
    assert_same_curve(tmp_path / "run", alone)

    log = (tmp_path / "run/log.txt").read_text()
    other = (tmp_path / "run/log.process_1.txt").read_text()
    for said in (log, other):
        assert f"resumed at step {status['step']}, attempt 2" in said
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {path.name for path in alone.iterdir()} | {"log.process_1.txt"}

    reads = [json.loads((tmp_path / f"run.reads.{index}.json").read_text()) for index in (0, 1)]
    stream = TrainStream(text[1], seed=3, batch_size=one_process.ROWS, seq_len=16)
    assert [own["sizes"] for own in reads] == [[4], [4]]
    assert reads[0]["first"] + reads[1]["first"] == stream._order[status["step"]].tolist()


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_any_number_goes_on(
    text: Text, tmp_path: Path, alone: Path
) -> None:
    with started(job(tmp_path / "run", text), 2) as children:
        wait_for(tmp_path / "run", 13, children)
        children[1].kill()
        (code, said), _ = ended(children)
    # What is noticed first: a collective without its peer, or a heart that beats no more.
    assert (code, "was lost" in said) == (5, True) or code == -signal.SIGABRT, said[-3000:]
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert (status["state"], status["exit_code"]) in {("failed", 5), ("running", None)}, status
    newest = max(int(path.name) for path in (tmp_path / "run/checkpoints").iterdir())
    assert 12 <= newest < STEPS
    shutil.copytree(tmp_path / "run", tmp_path / "four")

    complete(job(tmp_path / "run", text), 1)
    assert_same_curve(tmp_path / "run", alone)

    # Four of them, and the newest checkpoint has lost half of its arrays: all fall back together.
    state = tmp_path / "four/checkpoints" / str(newest) / "state"
    files = {path: path.stat().st_size for path in state.rglob("*") if path.is_file()}
    for path, size in files.items():
        if 2 * size >= max(files.values()):  # orbax may leave a copy that it does not read
            os.truncate(path, size // 2)
    complete(job(tmp_path / "four", text), 4)
    assert_same_curve(tmp_path / "four", alone)
    for name in ("log.txt", "log.process_3.txt"):
        said = (tmp_path / "four" / name).read_text()
        assert f"the checkpoint of step {newest} is damaged" in said
        assert f"resumed at step {newest - 4}" in said


@pytest.mark.parametrize("process, missing", [(0, "processes 1, 2"), (2, "process 0")])
def test_missing_processes_are_named(process: int, missing: str) -> None:
    with pytest.raises(MissingProcessError, match=rf"^{missing} of 3 did not start within 0\.5 s"):
        roll_call(f"localhost:{free_port()}", 3, process, 0.5)


def called(processes: list[tuple[int, int]], seconds: float = 20.0) -> list[str]:
    """What each of several (number, of how many) hears, in threads."""
    port, heard = free_port(), [""] * len(processes)

    def one(place: int, number: int, of: int) -> None:
        try:
            roll_call(f"localhost:{port}", of, number, seconds)
        except MissingProcessError as error:
            heard[place] = str(error)

    threads = [
        threading.Thread(target=one, args=(place, *who)) for place, who in enumerate(processes)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return heard


def test_the_roll_call() -> None:
    assert called([(3, 4), (1, 4), (0, 4), (2, 4)]) == [""] * 4
    late = called([(0, 4), (1, 4), (3, 4)], seconds=1.0)
    assert all(said.startswith("process 2 of 4 did not start") for said in late)
    assert set(called([(0, 3), (1, 3), (1, 3)])) == {
        "two processes were started as number 1 of 3",
    }
    assert set(called([(0, 2), (1, 3)])) == {
        "process 1 was started as one of 3, process 0 as one of 2"
    }


def test_a_port_in_use() -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match="cannot listen there"):
            roll_call(f"localhost:{port}", 2, 0, 1.0)


@pytest.mark.parametrize(
    "flags, message",
    [
        (("", 2, 0), "--coordinator=HOST:PORT: is missing"),
        (("a:1", 0, 0), "--processes=N: is missing"),
        (("a:1", 2, -1), "--process=I: is missing"),
        (("a", 2, 0), "--coordinator=a: expected HOST:PORT"),
        (("a:99999", 2, 0), "expected HOST:PORT"),
        (("a:1", -3, 0), "nearest valid value 1"),
        (("a:1", 2, 2), "--process=2: 2 processes are numbered from 0; nearest valid value 1"),
        (("a:1", 2, -2), "nearest valid value 0"),
    ],
)
def test_wrong_flags_start_nothing(flags: tuple[str, int, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        distributed.start(*flags)
    assert "\n" not in str(caught.value)


SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}


def detected(monkeypatch: pytest.MonkeyPatch, **variables: str) -> distributed.Place | None:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TPU_", "OMPI_", "KUBERNETES_", "JOB_COMPLETION")):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return distributed.detect(os.environ, 1)


def test_slurm_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    place = detected(monkeypatch, **SLURM)
    assert place == distributed.Place("node07:61517", 4, 3, (1,))
    one_a_node = SLURM | {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
    assert detected(monkeypatch, **one_a_node) == distributed.Place("node07:61517", 2, 1)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
        {name: SLURM[name] for name in SLURM if "STEP" not in name},  # a batch script, no srun
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    ],
)
def test_a_single_process_does_not_wait(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    assert detected(monkeypatch, **variables) is None
    assert distributed.start() is False
