"""Drivers die, meet and are told to stop: every cell is finished once, with the same result."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import time

import pytest
from grid_roots import FAST, Root, cell, wait_until

from moejax.grid import attempts
from moejax.grid.claims import Claim, Owner
from moejax.grid.driver import Driver, Pace, Policy


def started(root, count=1):
    return lambda: len(root.ledger("start")) >= count


def test_killing_the_driver_stops_its_cells_and_the_next_one_finishes_them(zygote, root):
    grid = root(cell("a", steps=200), cell("b", steps=4))
    driver = zygote.drive(grid)
    wait_until(lambda: grid.states()["a"].step > 10)
    driver.kill()
    # SIGTERM reaches the orphan: it saves and ends.
    wait_until(lambda: grid.kinds() == {"a": "preempted", "b": "pending"})
    assert [line["code"] for line in grid.ledger("end")] == [143]
    assert grid.run() == 0
    grid.never_twice()
    assert grid.ledger("start")[1]["step"] > 10


def test_an_orphan_that_still_saves_is_waited_for(zygote, root):
    # This one does not hear SIGTERM, like a run in the middle of a long compile.
    grid = root(cell("a", fault="stubborn"))
    driver = zygote.drive(grid)
    wait_until(lambda: grid.states()["a"].step == 2)
    orphan = grid.states()["a"].pid
    driver.kill()
    assert grid.states()["a"].state == "running"
    next_one = zygote.drive(grid)
    time.sleep(0.5)
    assert len(grid.ledger("start")) == 1 and not grid.ledger("occupied")
    os.kill(orphan, signal.SIGKILL)
    wait_until(started(grid, 2))
    grid.never_twice()
    os.kill(grid.states()["a"].pid, signal.SIGKILL)
    assert next_one.code() == 6


def results(tmp_path, name, cells, zygote, kills, seed):
    """Final results of a grid whose drivers are killed so many times at random moments."""
    grid = Root(tmp_path / name, *cells)
    moments = random.Random(seed)
    for _ in range(kills):
        driver = zygote.drive(grid, parallel=2)
        time.sleep(moments.uniform(0.0, 0.6))
        driver.kill()  # fails if it is over: then the cells are too short for so many kills
    assert zygote.drive(grid, parallel=2).code() == 0
    grid.never_twice()
    return grid.finals()


@pytest.mark.parametrize("kills", [3, pytest.param(40, marks=pytest.mark.all)])
def test_kills_at_random_moments_change_no_result(zygote, tmp_path, kills):
    cells = [cell(f"s{i}", steps=30 + 10 * kills + i, pause=0.01) for i in range(6)]
    undisturbed = results(tmp_path, "alone", cells, zygote, 0, 0)
    assert results(tmp_path, "killed", cells, zygote, kills, kills) == undisturbed


def test_two_drivers_share_the_work(zygote, root):
    grid = root(*(cell(f"s{i}", steps=10) for i in range(8)))
    drivers = [zygote.drive(grid), zygote.drive(grid)]
    assert [driver.code() for driver in drivers] == [0, 0]
    grid.never_twice()
    parts = [driver.log.read_text().count(": started") for driver in drivers]
    assert sum(parts) == 8 and min(parts) >= 1


def test_when_one_of_two_drivers_is_killed_the_other_takes_its_cells(zygote, root):
    grid = root(*(cell(f"s{i}", steps=60) for i in range(4)))
    drivers = [zygote.drive(grid), zygote.drive(grid)]
    wait_until(started(grid, 2))
    drivers[0].kill()
    assert drivers[1].code() == 0
    grid.never_twice()
    assert set(grid.kinds().values()) == {"done"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_lets_cells_save_and_the_exit_code_says_so(zygote, root, number):
    grid = root(cell("a", steps=500), cell("b"))
    driver = zygote.drive(grid)
    wait_until(lambda: grid.states()["a"].step > 5)
    driver.signal(number)
    assert driver.code() == 128 + number
    assert [line["code"] for line in grid.ledger("end")] == [143]
    assert grid.kinds() == {"a": "preempted", "b": "pending"}
    assert grid.states()["a"].step >= 5 and not list(grid.places.claims.iterdir())


def test_a_second_signal_kills(zygote, root):
    grid = root(cell("a", fault="stubborn"))
    driver = zygote.drive(grid)
    wait_until(lambda: grid.states()["a"].step == 2)
    driver.signal(signal.SIGINT)
    wait_until(lambda: "once more kills" in driver.log.read_text())
    driver.signal(signal.SIGINT)
    assert driver.code() == 130
    assert grid.kinds() == {"a": "preempted"}
    assert "killed" in grid.states()["a"].reason


def test_what_a_driver_prints_into_a_file_is_plain_and_says_what_happens(zygote, root):
    grid = root(cell("a", steps=80), cell("b", fault="nan"))
    driver = zygote.drive(grid)
    assert driver.code() == 6
    text = driver.log.read_text()
    assert "\x1b" not in text and "\r" not in text
    assert "a: started" in text and "a: done, loss" in text
    assert "b: failed: non-finite at step 3: loss nan (log: " in text
    assert "0/2 done, 1 running, 1 pending, ETA" in text and "tok/s" in text


def test_a_claim_left_by_a_machine_that_is_gone_is_taken_when_it_stays_silent(root):
    grid = root(cell("a"))
    owner = dataclasses.replace(Owner.this(), space="another boot", host="gone")
    claim = Claim(grid.cells[0].directory, "t", owner, time.time() + 1e6)
    grid.places.claims.mkdir(parents=True)
    grid.places.claim(claim.directory).write_bytes(claim.to_bytes())
    pace = Pace(poll=0.01, recheck=0.05, silent=0.5)
    began = time.monotonic()
    assert Driver(grid.cells, grid.places, grid.local(), grid.display, Policy(), pace).run() == 0
    assert time.monotonic() - began > 0.5
    assert [line["event"] for line in grid.ledger()] == ["start", "done"]


def test_a_driver_that_was_believed_dead_lets_go(root):
    grid = root(cell("a", steps=2000))
    directory = grid.cells[0].directory

    class Thief(type(grid.display)):
        def show(self, states, eta):
            if states[directory].step > 3:
                claim = Claim(directory, "of another driver", Owner.this(), time.time())
                grid.places.claim(directory).write_bytes(claim.to_bytes())

    display = Thief()
    code = Driver(grid.cells, grid.places, grid.local(), display, Policy(), FAST).run()
    assert code == 7 and any("taken over" in note for note in display.notes)
    assert [line["code"] for line in grid.ledger("end")] == [143]
    assert json.loads(grid.places.claim(directory).read_text())["token"] == "of another driver"


def test_the_disk_of_one_cell_is_full_and_the_others_finish(root):
    # As root a disk of its own; otherwise the same error from a device that is always full.
    grid = root(cell("full", fault="full"), cell("a"), cell("b"))
    workdir = grid.places.workdir(grid.cells[0].directory)
    workdir.mkdir(parents=True)
    small = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(workdir)]
    mounted = os.geteuid() == 0 and subprocess.run(small, check=False).returncode == 0
    if not mounted:
        (workdir / "trace.bin").symlink_to("/dev/full")
    try:
        assert grid.run() == 6
        state = grid.states()["full"]
        assert state.state == "failed" and "No space left on device" in state.reason
        assert grid.kinds() | {"full": ""} == {"full": "", "a": "done", "b": "done"}
    finally:
        if mounted:
            subprocess.run(["umount", str(workdir)], check=True)


def test_the_history_and_the_log_keep_every_attempt(root):
    grid = root(cell("a", fault="nan"))
    grid.run()
    grid.cells = (cell("a"),)
    grid.run(Policy(failed=True))
    found = attempts.read(grid.places, grid.cells[0].directory)
    ends = [(one.number, one.outcome, one.exit_code) for one in found]
    assert ends == [(1, "failed", 3), (2, "done", 0)]
    log = grid.places.log(grid.cells[0].directory).read_text()
    assert "attempt 1" in log and "attempt 2" in log
