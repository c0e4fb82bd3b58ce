"""`run`, `retry` and `status` as commands, on a shipped grid, with a stand-in for training."""

import dataclasses
import json
import os
import shlex

import pytest
from grid_roots import STANDIN

from moejax.config import ConfigError
from moejax.grid.arguments import Arguments
from moejax.grid.commands import plan, retry, run, status
from moejax.grid.estimate import estimate
from moejax.grid.launchers.local import Local
from moejax.grid.load import load_grid
from moejax.grid.places import Places
from moejax.grid.record import load
from moejax.train.errors import MismatchError, StorageError

GRID = """
from moejax.grid import Sweep, axis


def get_grid():
    return Sweep(
        base="configs/lm.py:size=nano,moe=top_p,quick",
        treatments=axis("model.moe.router.p", {values}),
        overrides={{"train.steps": {steps}}},
    )
"""


@pytest.fixture(autouse=True)
def _standin(monkeypatch):
    monkeypatch.setitem(Local.__init__.__kwdefaults__, "train", STANDIN)


@pytest.fixture
def arguments(tmp_path):
    """Flags for a grid of some thresholds: `arguments([0.2, 0.4])`, and more flags."""

    def make(values=(0.2, 0.4), steps=9, **flags):
        path = tmp_path / "thresholds.py"
        path.write_text(GRID.format(values=list(values), steps=steps))
        given = {"grid": str(path), "root": str(tmp_path / "root"), "max_parallel": 1} | flags
        return Arguments(**given)

    return make


def started(arguments):
    path = Places(arguments.root).root / "ledger.txt"
    lines = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return [line["cell"][:5] for line in lines if line["event"] == "start"]


def test_run_then_status_then_run_again(arguments, capsys):
    given = arguments(json=True)
    assert run.main(given) == 0
    ran = json.loads(capsys.readouterr().out)
    assert [cell["state"] for cell in ran] == ["done", "done"]
    assert status.main(given) == 0
    seen = json.loads(capsys.readouterr().out)
    assert [{key: one[key] for key in ran[0]} for one in seen] == ran
    assert [one["axes"] for one in seen] == [{"p": "0.2"}, {"p": "0.4"}]
    assert run.main(arguments()) == 0
    assert started(given) == ["p=0.2", "p=0.4"]
    assert capsys.readouterr().out == "2/2 done\n"


def test_filter_and_shard_choose_cells(arguments, capsys):
    assert run.main(arguments(filter=("p=0.4",))) == 0
    assert started(arguments()) == ["p=0.4"]
    assert status.main(arguments()) == 7
    assert "1/2 done, 1 pending" in capsys.readouterr().out
    assert run.main(arguments(shard="1/2")) == 0
    assert started(arguments()) == ["p=0.4", "p=0.2"]


def test_a_grid_may_grow_and_shrink_but_not_change(arguments, capsys):
    assert run.main(arguments([0.2, 0.4])) == 0
    assert run.main(arguments([0.4, 0.6])) == 0
    assert started(arguments()) == ["p=0.2", "p=0.4", "p=0.6"]
    said = capsys.readouterr()
    assert "not in the grid any more, left alone: p=0.2,seed=0" in said.err
    given = arguments([0.4, 0.6])
    assert status.main(given) == 0
    assert "p=0.2,seed=0 (not in the grid any more)" in capsys.readouterr().out
    with pytest.raises(MismatchError, match=r"(?s)another config now.*train\.steps.*9.*12"):
        run.main(arguments([0.4, 0.6], steps=12))
    assert len(started(arguments())) == 3


def test_failures_are_in_the_table_with_their_reason_and_retry_runs_them(arguments, capsys):
    given = arguments([0.2])
    assert run.main(arguments([0.2, 0.4], filter=("p=0.4",))) == 0
    directory = next(cell.directory for cell in load(given.root).cells if cell.axes["p"] == "0.2")
    # A file where the cell's directory should be: every attempt ends with an error.
    place = Places(given.root).workdir(directory)
    place.write_text("in the way")
    both = arguments([0.2, 0.4])
    capsys.readouterr()
    assert run.main(both) == 6
    table = capsys.readouterr().out
    assert "p=0.2" in table and "failed" in table and "FileExistsError" in table
    assert "p=0.4" not in table and "1/2 done, 1 failed" in table
    assert retry.main(both) == 6
    place.unlink()
    assert run.main(both) == 6  # a failure is not tried again by itself
    assert retry.main(both) == 0
    assert started(both) == ["p=0.4", "p=0.2"]


def test_printed_commands_are_those_of_what_is_missing(arguments, capsys):
    assert run.main(arguments(filter=("p=0.4",))) == 0
    capsys.readouterr()
    given = arguments(launcher="print", max_parallel=0)
    assert run.main(given) == 0
    [line] = capsys.readouterr().out.splitlines()
    words = shlex.split(line)
    cell = load(given.root).cells[0]
    start = words.index("experiments.train") + 1
    assert words[start:-1] == list(cell.argv)
    assert words[-1] == f"--workdir={Places(given.root).workdir(cell.directory)}"
    assert started(given) == ["p=0.4"]
    with pytest.raises(ConfigError, match="--rerun: --launcher=print does not move"):
        run.main(arguments(launcher="print", max_parallel=0, rerun=True))


def test_what_cannot_fit_is_not_started(arguments, monkeypatch):
    monkeypatch.setattr(run, "refusals", lambda *_, **__: ["p=0.2: needs a bigger machine"])
    with pytest.raises(ConfigError, match="needs a bigger machine"):
        run.main(arguments())
    assert started(arguments()) == []


def test_more_at_a_time_than_memory_holds_are_not_started(arguments, monkeypatch):
    cells = load_grid(arguments().grid).cells
    machine = plan.machine_of(cells, arguments())
    most = max(own.memory for own in estimate(cells, machine))
    small = dataclasses.replace(machine, memory=1.5 * most)
    monkeypatch.setattr(run, "machine_of", lambda *_: small)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    with pytest.raises(ConfigError, match=r"--max-parallel=2: .* nearest valid value 1"):
        run.main(arguments(max_parallel=2))
    assert started(arguments()) == []
    assert run.main(arguments(max_parallel=1)) == 0


def test_watching_ends_when_nothing_runs(arguments, capsys):
    assert run.main(arguments()) == 0
    assert status.main(arguments(watch=0.1)) == 0
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, complaint",
    [
        ({"filter": ("q=0.2",)}, "unknown axis 'q'"),
        ({"filter": ("p=0.22",)}, "did you mean '0.2'"),
        ({"shard": "3/2"}, "nearest valid value 2/2"),
        ({"root": ""}, "--root: is required"),
        ({"launcher": "lokal"}, "did you mean 'local'"),
    ],
)
def test_wrong_use_is_one_line_and_writes_nothing(arguments, tmp_path, flags, complaint):
    with pytest.raises(ConfigError, match=complaint) as told:
        run.main(arguments(**flags))
    assert "\n" not in str(told.value) and not (tmp_path / "root").exists()


def test_a_root_that_becomes_unwritable_is_a_storage_error(arguments, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "claims")

    monkeypatch.setattr("moejax.grid.claims.write_bytes_atomic", full)
    with pytest.raises(StorageError, match="No space left on device"):
        run.main(arguments())
