"""Claims: one of many takers wins, the dead are told from the living, clocks do not matter."""

import contextlib
import dataclasses
import os
import subprocess
import sys
import threading
import time

import pytest

from moejax.config import ConfigError
from moejax.grid import claims as module
from moejax.grid.claims import Claim, Claims, Job, Owner, owner_of
from moejax.grid.places import Places

CELL = "p=0.4,seed=1-0123456789"
ELSEWHERE = "another boot pid:[1]"


@pytest.fixture
def places(tmp_path):
    return Places(tmp_path)


def new(places, **options):
    return Claims(places, Owner.this(), **options)


def leave(places, job=None, directory=CELL, **changes):
    """A claim of some owner; without changes this process'."""
    owner = dataclasses.replace(Owner.this(), **changes)
    claim = Claim(directory, "token", owner, time.time(), job)
    places.claims.mkdir(parents=True, exist_ok=True)
    places.claim(directory).write_bytes(claim.to_bytes())
    return claim


def ended_process():
    child = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    owner = owner_of(child.pid)
    child.communicate(b"\n")
    return owner


def race(places, takers=8):
    """How many of so many takers get the cell."""
    barrier, won = threading.Barrier(takers), []

    def take():
        mine = new(places)
        barrier.wait()
        if mine.take(CELL):
            won.append(mine)

    threads = [threading.Thread(target=take) for _ in range(takers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return won


def test_one_of_many_takers_wins(places):
    for _ in range(10):
        [winner] = race(places)
        assert winner.still_mine(CELL)
        winner.give_back(CELL)
        assert not places.claim(CELL).exists()


def test_one_wins_even_where_the_lock_does_not_reach(places, monkeypatch):
    monkeypatch.setattr(module, "exclusively", lambda places: contextlib.nullcontext())
    for _ in range(10):
        [winner] = race(places)
        winner.give_back(CELL)


def test_two_who_find_a_dead_claim_do_not_both_get_it(places):
    dead = dataclasses.asdict(ended_process())
    for _ in range(10):
        leave(places, **dead)
        assert len(race(places)) == 1
        assert new(places).holder(CELL).owner.pid == os.getpid()
        places.claim(CELL).unlink()
    assert [path.name for path in places.claims.iterdir()] == []


def test_a_pid_that_was_given_to_another_process_does_not_keep_a_claim(places):
    leave(places)
    assert new(places).take(CELL) is None
    leave(places, started=Owner.this().started - 1)
    assert new(places).take(CELL) is not None


def test_a_stopped_owner_on_this_machine_is_alive_however_long_it_is_silent(places):
    child = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    leave(places, **dataclasses.asdict(owner_of(child.pid)))
    assert new(places, silent=0.0).take(CELL) is None
    child.communicate(b"\n")
    assert new(places, silent=0.0).take(CELL) is not None


def test_an_owner_elsewhere_is_dead_only_after_a_silence_that_was_watched(places):
    claim = leave(places, space=ELSEWHERE, name="there", pid=1)
    places.beats.mkdir(parents=True)
    beat = places.beats / "there"
    mine = new(places, silent=0.2)
    # Its clock is decades behind: only changes count.
    for count in range(6):
        beat.write_text(f'{{"beat": {count}, "time": 1.0}}')
        assert not mine.dead(claim)
        time.sleep(0.1)
    assert new(places, silent=0.2).take(CELL) is None  # has watched for a moment only
    time.sleep(0.3)
    assert mine.dead(claim)
    assert mine.take(CELL) is not None


def test_a_container_of_the_same_boot_is_elsewhere(places):
    boot = Owner.this().space.split()[0]
    assert leave(places, space=f"{boot} pid:[7]").owner.alive() is None


@pytest.mark.parametrize("active, taken", [(True, False), (None, False), (False, True)])
def test_a_batch_job_keeps_its_claim_as_long_as_it_may_exist(places, active, taken):
    dead = dataclasses.asdict(ended_process())
    leave(places, job=Job("slurm", "12_3", "me"), **dead)
    mine = new(places, job_active=lambda job: active)
    assert (mine.take(CELL) is not None) == taken


def test_a_job_begins_only_in_the_name_of_the_claim_it_was_submitted_for(places):
    driver, job = new(places), Job("slurm", "1", "me")
    claim = driver.take(CELL)
    driver.name_job(CELL, job)
    driver.close()
    assert new(places).holder(CELL).job == job  # the driver went, the job waits
    runner = new(places)
    assert runner.take_over(CELL, "another token", job) is None
    taken = runner.take_over(CELL, claim.token, job)
    assert taken.token == claim.token and runner.still_mine(CELL)
    driver.name_job(CELL, Job("slurm", "2", "me"))
    assert runner.holder(CELL).job == job


def test_nobody_gives_back_what_another_has(places):
    mine = new(places)
    mine.take(CELL)
    other = leave(places)
    assert not mine.still_mine(CELL)
    mine.give_back(CELL)
    mine.close()
    assert new(places).holder(CELL) == other


def test_closing_leaves_no_claim_and_no_heartbeat(places):
    mine = new(places)
    mine.take(CELL)
    assert len(list(places.beats.iterdir())) == 1
    mine.close()
    assert not list(places.beats.iterdir()) and not list(places.claims.iterdir())


def test_a_claim_that_is_none_is_said_in_one_line(places):
    leave(places)
    for text in ("", "{}", "[1]", places.claim(CELL).read_text().replace('n": 1', 'n": 9')):
        places.claim(CELL).write_text(text)
        with pytest.raises(ConfigError, match="is no claim") as told:
            new(places).take(CELL)
        assert str(places.claim(CELL)) in str(told.value)


def test_a_file_system_without_links_is_said_in_one_line(places, monkeypatch):
    def link(source, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(ConfigError, match="has no hard links"):
        new(places).take(CELL)
    assert not list(places.claims.iterdir())


def test_heartbeats_of_the_dead_are_swept_and_others_left(places):
    places.beats.mkdir(parents=True)
    owners = {
        "dead": ended_process(),
        "alive": Owner.this(),
        "elsewhere": dataclasses.replace(Owner.this(), space=ELSEWHERE),
    }
    for name, owner in owners.items():
        Claims(places, dataclasses.replace(owner, name=name)).beat()
    (places.beats / "foreign").write_text("what is this")
    new(places).sweep()
    assert {path.name for path in places.beats.iterdir()} == {"alive", "elsewhere", "foreign"}


@pytest.mark.parametrize("name", ["", ".", "..", "driver", "../x", "a/b", "/etc", "a\0b"])
def test_no_name_leads_out_of_the_root(places, name):
    ways = (places.workdir, places.claim, places.attempts, places.log, places.set_aside)
    for way in ways:
        with pytest.raises(ConfigError, match="is no name of a cell's directory"):
            way(name)
