"""The driver with a stand-in for training: what is run, what is not, what its exit code says."""

import json
import os
import signal

import pytest
from grid_roots import FAST, Row, cell

from moejax.config import ConfigError
from moejax.grid.driver import Driver, Policy, remaining
from moejax.grid.launchers.local import Local, accelerators_here, parse_accelerators
from moejax.grid.places import Places
from moejax.grid.shard import shard
from moejax.grid.status import CellState

RETRY = Policy(failed=True)
RERUN = Policy(rerun=True)


def starts(root):
    return [line["cell"].partition("-")[0] for line in root.ledger("start")]


def test_what_is_done_is_not_run_again(root):
    grid = root(cell("a"), cell("b", steps=3))
    assert grid.run() == 0
    assert grid.kinds() == {"a": "done", "b": "done"}
    before = grid.finals()
    assert grid.run() == 0
    assert starts(grid) == ["a", "b"] and grid.finals() == before
    assert not any(grid.places.claims.iterdir()) and not any(grid.places.beats.iterdir())


def test_new_cells_join_and_old_ones_stay(root):
    grid = root(cell("a"))
    assert grid.run() == 0
    grid.cells = (cell("a"), cell("b"))
    assert grid.run() == 0
    assert starts(grid) == ["a", "b"]


FAULTS = {
    "crash": "ValueError: the third step is cursed",
    "nan": "non-finite at step 3: loss nan",
    "bad": "error: config.model.d_modle: unknown key; did you mean 'd_model'?",
    "quiet": "step 0, attempt 1",
}


def test_failures_are_told_and_the_others_finish(root):
    grid = root(cell("a"), *(cell(name, fault=name) for name in FAULTS), cell("z"))
    assert grid.run() == 6
    states = grid.states()
    assert {name: state.reason for name, state in states.items() if name in FAULTS} == FAULTS
    assert all(states[name].state == "failed" for name in FAULTS)
    assert states["a"].state == states["z"].state == "done"
    assert "cursed" in grid.places.log("crash-0123456789").read_text()
    assert any("nan: failed: non-finite at step 3" in note for note in grid.display.notes)


def test_failures_are_tried_again_only_on_request_and_go_on_from_their_checkpoint(root):
    grid = root(cell("a", fault="nan"), cell("b"))
    assert grid.run() == 6
    assert grid.run() == 6
    assert starts(grid) == ["a", "b"]
    grid.cells = (cell("a"), cell("b"))  # whatever the cause was, it is gone
    assert grid.run(RETRY) == 0
    assert starts(grid) == ["a", "b", "a"]
    assert grid.states()["a"].attempt == 2
    assert grid.states()["a"].last_error == "non-finite at step 3: loss nan"


def test_retry_leaves_what_never_ran_alone(root):
    grid = root(cell("a", fault="nan"), cell("b"))
    grid.run(cells=grid.cells[:1])
    assert grid.run(Policy(missing=False, failed=True)) == 6
    assert starts(grid) == ["a", "a"]


def test_a_failure_that_repeats_is_tried_once_per_call(root):
    grid = root(cell("a", fault="nan"))
    assert grid.run(RETRY) == 6
    assert grid.run(RETRY) == 6
    assert starts(grid) == ["a", "a"]


def test_rerun_sets_the_old_runs_aside(root):
    grid = root(cell("a"), cell("b"))
    grid.run(cells=grid.cells[:1])
    old = (grid.places.workdir(grid.cells[0].directory) / "final.json").read_bytes()
    assert grid.run(RERUN) == 0
    assert grid.run(RERUN) == 0
    assert starts(grid) == ["a", "a", "b", "a", "b"]
    assert [line["step"] for line in grid.ledger("start")] == [0] * 5
    aside = sorted((grid.places.driver / "set_aside").iterdir())
    assert [path.name for path in aside] == [f"{n}-0123456789.{i}" for n, i in ("a1", "a2", "b1")]
    assert all((path / "final.json").read_bytes() == old for path in aside)


def test_fail_fast_starts_nothing_more_and_lets_the_others_save(root):
    slow = cell("slow", steps=1000, pause=0.01)
    grid = root(slow, cell("bad", fault="nan", pause=0.1), cell("next"))
    assert grid.run(Policy(fail_fast=True), parallel=2) == 6
    assert grid.kinds() == {"slow": "preempted", "bad": "failed", "next": "pending"}
    assert (grid.places.workdir(slow.directory) / "checkpoint.json").exists()


def test_a_cell_that_takes_too_long_is_stopped_and_keeps_its_state(root):
    grid = root(cell("slow", steps=1000, pause=0.01), cell("quick"))
    assert grid.run(timeout=0.8) == 6
    state = grid.states()["slow"]
    assert (state.state, state.reason) == ("failed", "took longer than 0.8 s; its state was saved")
    assert grid.states()["quick"].state == "done"


def test_a_cell_that_does_not_listen_is_killed(root, monkeypatch):
    monkeypatch.setattr("moejax.grid.process.GRACE_SECONDS", 0.5)
    grid = root(cell("deaf", fault="stubborn"))
    assert grid.run(timeout=0.5) == 6
    assert grid.states()["deaf"].reason == "took longer than 0.5 s"


def test_a_worker_that_is_killed_is_a_failure_with_a_reason(root):
    grid = root(cell("a", steps=500), cell("b"))

    class Killer(type(grid.display)):
        def show(self, states, eta):
            state = states[grid.cells[0].directory]
            if state.state == "running" and state.step > 2 and state.pid:
                os.kill(state.pid, signal.SIGKILL)

    assert Driver(grid.cells, grid.places, grid.local(), Killer(), Policy(), FAST).run() == 6
    assert grid.kinds() == {"a": "failed", "b": "done"}
    assert grid.states()["a"].reason.startswith("killed by SIGKILL; the kernel does that when")


def test_a_worker_that_somebody_stops_is_missing_and_goes_on_the_next_time(root):
    grid = root(cell("a", steps=60), cell("b"))

    class Stopper(type(grid.display)):
        def show(self, states, eta):
            state = states[grid.cells[0].directory]
            if state.state == "running" and state.step > 10 and state.pid:
                os.kill(state.pid, signal.SIGTERM)

    assert Driver(grid.cells, grid.places, grid.local(), Stopper(), Policy(), FAST).run() == 7
    assert grid.kinds() == {"a": "preempted", "b": "done"}
    assert grid.run() == 0
    assert [line["step"] > 10 for line in grid.ledger("start")] == [False, False, True]


def test_cells_run_on_cores_of_their_own_and_never_more_than_allowed(root):
    cores = sorted(os.sched_getaffinity(0))
    parallel = min(2, len(cores))
    grid = root(*(cell(f"s{i}", pause=0.05) for i in range(2 * parallel)))
    assert grid.run(parallel=parallel) == 0
    each = len(cores) // parallel
    shares = [cores[i * each : (i + 1) * each] for i in range(parallel)]
    events = sorted(
        [(line["time"], 1, line) for line in grid.ledger("start")]
        + [(line["time"], -1, line) for line in grid.ledger("done")],
        key=lambda event: event[0],
    )
    running = {}
    for _, change, line in events:
        if change < 0:
            running.pop(line["cell"])
            continue
        assert line["cores"] in shares and line["cores"] not in running.values()
        assert line["variables"] == {"OMP_NUM_THREADS": str(each)}
        running[line["cell"]] = line["cores"]
        assert len(running) <= parallel


def test_every_cell_has_one_accelerator(root):
    grid = root(*(cell(f"s{i}") for i in range(3)))
    assert grid.run(parallel=0, accelerators="cuda:5") == 0
    assert {line["variables"]["CUDA_VISIBLE_DEVICES"] for line in grid.ledger("start")} == {"5"}
    grid.cells = (cell("t"),)
    assert grid.run(parallel=0, accelerators="tpu:3") == 0
    assert grid.ledger("start")[-1]["variables"]["TPU_VISIBLE_CHIPS"] == "3"
    assert parse_accelerators("cuda:0, 1") == ("cuda", ["0", "1"])


@pytest.mark.parametrize(
    "files, variables, found",
    [
        ([], {}, ""),
        (["nvidia0", "nvidia3", "nvidiactl", "nvidia-uvm"], {}, "cuda:0,1"),
        (["nvidia0", "nvidia3"], {"CUDA_VISIBLE_DEVICES": "1"}, "cuda:1"),
        (["nvidia0", "nvidia3"], {"CUDA_VISIBLE_DEVICES": "-1"}, ""),
        (["nvidia0"], {"JAX_PLATFORMS": "cpu"}, ""),
        (["accel0", "accel1", "null"], {}, "tpu:0,1"),
    ],
)
def test_accelerators_are_found_without_asking_them(tmp_path, monkeypatch, files, variables, found):
    for name in ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for name in files:
        (tmp_path / name).touch()
    assert accelerators_here(tmp_path) == found


@pytest.mark.parametrize(
    "options, complaint",
    [
        (
            {"parallel": 10_000},
            "--max-parallel=10000: cells would fight for .* nearest valid",
        ),
        ({"accelerators": "cuda:0", "parallel": 2}, r"there are 1 \(cuda\); nearest valid value 1"),
        ({"accelerators": "cudo:0"}, "did you mean 'cuda'"),
        ({"accelerators": "cuda:"}, "expected numbers, e.g. cuda:0,1"),
        ({"accelerators": "cuda:0,0"}, "names one twice"),
        ({"accelerators": "cuda:$(x)"}, "expected numbers"),
    ],
)
def test_impossible_pools_are_refused(tmp_path, options, complaint):
    with pytest.raises(ConfigError, match=complaint):
        Local(Places(tmp_path), **options)


def test_shards_are_disjoint_and_together_all():
    cells = list(range(11))
    parts = [shard(cells, f"{i}/4") for i in range(1, 5)]
    assert (
        sorted(one for part in parts for one in part) == cells
        and max(map(len, parts)) - min(map(len, parts)) <= 1
    )
    assert shard(cells, "") == cells


@pytest.mark.parametrize(
    "text, complaint",
    [("2", "expected I/N"), ("0/4", "nearest valid value 1/4"), ("5/4", "nearest valid value 4/4"),
     ("1/0", "nearest valid value 1/1"), ("-1/4", "expected I/N")],
)  # fmt: skip
def test_shards_that_do_not_exist_are_refused(text, complaint):
    with pytest.raises(ConfigError, match=complaint):
        shard([1, 2], text)


def test_hostile_words_reach_training_as_they_are_and_nothing_else(root, tmp_path):
    nasty = "x'; touch PWNED; $(touch PWNED) `touch PWNED` \n -- é"
    grid = root(Row("a", "a-0123456789", ("--steps=2", f"--note={nasty}")))
    assert grid.run() == 0
    assert grid.ledger("start")[0]["note"] == nasty
    assert not list(tmp_path.rglob("PWNED"))
    assert not os.path.exists("PWNED")


def test_logs_have_no_colours(root, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    grid = root(cell("a", fault="crash"))
    assert grid.run() == 6
    assert b"\x1b" not in grid.places.log("a-0123456789").read_bytes()


def test_an_error_of_the_driver_lets_its_cells_save(root):
    grid = root(cell("a", steps=1000))

    class Broken(type(grid.display)):
        def show(self, states, eta):
            if states[grid.cells[0].directory].step > 2:
                raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        Driver(grid.cells, grid.places, grid.local(), Broken(), Policy(), FAST).run()
    assert grid.kinds() == {"a": "preempted"}
    assert not list(grid.places.claims.iterdir())
    checkpoint = grid.places.workdir(grid.cells[0].directory) / "checkpoint.json"
    assert json.loads(checkpoint.read_text())["step"] > 2


def test_the_time_left_counts_running_and_coming_cells():
    done = CellState("done", seconds=10.0)
    half = CellState("running", seconds=6.0, eta=4.0)
    assert remaining([done, half, CellState("pending"), CellState("pending")]) == 24.0
    assert remaining([half, half, CellState("pending")]) == 9.0
    assert remaining([CellState("pending")]) is None
    assert remaining([done, CellState("failed")]) is None
