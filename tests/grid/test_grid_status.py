"""What a cell is doing is read from files: every state, damaged files, hostile text."""

import dataclasses
import json
import os

import pytest
from grid_roots import Root, cell

from moejax.grid import attempts, status
from moejax.grid.claims import Claims, Owner
from moejax.grid.live import row, summary, table
from moejax.grid.status import CellState

A = cell("a")


@pytest.fixture
def one(tmp_path):
    return Root(tmp_path, A)


def state(one):
    return one.states()["a"]


def write(one, name, content):
    path = one.places.workdir(A.directory) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def running(one, **fields):
    record = {"state": "running", "step": 2, "total_steps": 10, "attempt": 1, "pid": 1}
    write(one, "status.json", record | {"host": "h", "heartbeat": 1.0, "reason": ""} | fields)


def gone():
    return dataclasses.replace(Owner.this(), started=1)


def begin(one, process):
    return attempts.begin(one.places, A.directory, process, "local", 0).number


def test_nothing_there_is_pending(one):
    assert state(one) == CellState(status.PENDING)


def test_a_claim_comes_before_its_process(one):
    mine = Claims(one.places, Owner.this())
    mine.take(A.directory)
    assert (state(one).state, state(one).pid) == (status.CLAIMED, os.getpid())
    begin(one, Owner.this())
    running(one)
    assert (state(one).state, state(one).attempt) == (status.RUNNING, 1)
    mine.give_back(A.directory)
    assert state(one).state == status.RUNNING  # the process lives: its driver was killed
    assert "saving" in state(one).reason


def test_a_dead_claim_is_no_claim(one):
    begin(one, gone())
    running(one)
    assert state(one).state == status.PREEMPTED
    assert state(one).reason == "its process vanished"


@pytest.mark.parametrize(
    "digits, kind", [("0123456789", status.DONE), ("9876543210", status.FAILED)]
)
def test_a_finished_run_of_another_config_is_not_this_cell(one, digits, kind):
    """Its config file was changed between the plan and the start of the cell."""
    running(one, state="done")
    write(one, "final.json", {"step": 10, "eval": {"loss": 2.0}})
    write(one, "config.json", {"hash": f"{digits}abcdef", "config": {}})
    assert (state(one).state, state(one).loss) == (kind, 2.0)
    assert ("another config" in state(one).reason) == (kind == status.FAILED)


@pytest.mark.parametrize("outcome", [status.FAILED, status.PREEMPTED])
def test_the_last_ending_counts(one, outcome):
    first = begin(one, gone())
    attempts.end(one.places, A.directory, first, status.FAILED, 3, "non-finite at step 3")
    second = begin(one, gone())
    attempts.end(one.places, A.directory, second, outcome, 4, "disk full")
    found = state(one)
    assert (found.state, found.reason, found.attempt) == (outcome, "disk full", 2)
    assert found.last_error == ("disk full" if outcome == status.FAILED else "non-finite at step 3")


def test_a_run_without_a_driver_is_read_as_well(one):
    running(one, state="failed", reason="non-finite at step 3")
    assert (state(one).state, state(one).reason) == (status.FAILED, "non-finite at step 3")
    running(one, state="interrupted", reason="SIGTERM")
    assert (state(one).state, state(one).attempt) == (status.PREEMPTED, 1)


def test_done_needs_both_files_and_beats_everything(one):
    number = begin(one, gone())
    attempts.end(one.places, A.directory, number, status.FAILED, 1, "no")
    running(one, state="done", step=10)
    assert state(one).state == status.FAILED
    write(one, "final.json", {"format_version": 1, "step": 10, "eval": {"loss": 2.5}})
    found = state(one)
    assert (found.state, found.loss, found.step, found.reason) == (status.DONE, 2.5, 10, "")
    assert found.last_error == "no"


def test_a_final_that_went_away_is_a_failure_not_a_fresh_start(one):
    number = begin(one, gone())
    attempts.end(one.places, A.directory, number, status.DONE, 0)
    assert (state(one).state, "final.json is gone" in state(one).reason) == (status.FAILED, True)


def test_a_run_that_was_set_aside_is_out_of_the_way(one):
    number = begin(one, gone())
    attempts.end(one.places, A.directory, number, status.DONE, 0)
    attempts.set_aside(one.places, A.directory, one.places.set_aside(A.directory))
    found = state(one)  # as if the driver died right after moving the directory
    assert (found.state, found.attempt) == (status.PENDING, 1)
    assert begin(one, gone()) == 2
    assert state(one).state == status.PREEMPTED


def test_progress_comes_from_the_newest_whole_line(one):
    running(one)
    line = {"train/loss": 2.0, "perf/tokens_per_second": 100.0, "time/elapsed": 8.0}
    lines = [json.dumps({"step": step, **line}) for step in (3, 4)]
    lines += [json.dumps({"step": 4, "eval/loss": 9.0}), '{"step": 5, "train/lo']
    write(one, "metrics.jsonl", "\n".join(lines))
    begin(one, Owner.this())
    found = state(one)
    assert (found.step, found.total_steps, found.loss) == (4, 10, 2.0)
    assert (found.tokens_per_second, found.eta) == (100.0, 12.0)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"state": NaN}', "null", '{"step": "x"}'])
def test_a_damaged_status_is_a_state_and_no_exception(one, text):
    write(one, "status.json", text)
    write(one, "final.json", text)
    assert state(one).state in (status.FAILED, status.PREEMPTED, status.PENDING)
    if text in ("", "{", "[]", "null"):
        assert "status.json" in state(one).reason


def test_a_torn_history_is_read_and_continued(one):
    number = begin(one, gone())
    path = one.places.attempts(A.directory)
    path.write_bytes(path.read_bytes() + b'{"event": "end", "numb')
    assert state(one).state == status.PREEMPTED
    attempts.end(one.places, A.directory, number, status.FAILED, 1, "no")
    assert begin(one, gone()) == 2
    assert [attempt.outcome for attempt in attempts.read(one.places, A.directory)] == [
        "failed",
        None,
    ]


def test_text_of_a_run_cannot_move_the_cursor_or_break_the_table(one):
    running(one, state="failed", reason="\x1b[2J\x1b]0;title\x07bad\nworse\x9b1m\u202e" + "x" * 999)
    found = state(one)
    assert len(found.reason) <= 300
    shown = table([row("a", found)])
    assert shown.count("\n") == 1 and all(char.isprintable() for char in shown.replace("\n", ""))
    assert "\x1b" not in shown and "bad worse" in shown


def test_the_summary_counts_every_state():
    states = [CellState(kind) for kind in ("done", "done", "failed", "pending", "running")]
    assert summary(states, 75.0) == "2/5 done, 1 failed, 1 running, 1 pending, ETA 1:15"
