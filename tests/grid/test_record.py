"""grid.json: what a root remembers, and what happens when the grid has changed since."""

from __future__ import annotations

import json

import pytest
from grid_files import finish, sample_grid

from moejax.config import ConfigError
from moejax.grid import record
from moejax.grid.claims import Claims, Owner
from moejax.grid.places import Places
from moejax.grid.record import RecordedCell, load, reconcile
from moejax.train.errors import MismatchError

TWO = "base=LM + ':quick,moe={moe}', treatments=axis('{moe}', ['top_k', 'top_p'])"
THREE = TWO.replace("'top_p'", "'top_p', 'dense'")
ONE = TWO.replace(", 'top_p'", "")


def names(cells):
    return [cell.name for cell in cells]


def test_the_record_is_whole_and_reads_back(tmp_path):
    grid = sample_grid(tmp_path, TWO)
    made = reconcile(tmp_path / "root", grid)
    assert load(tmp_path / "root") == made
    assert [RecordedCell(**vars(cell)) for cell in grid.cells] == list(made.cells)
    assert made.grid == "sample" and made.source == grid.source
    stored = json.loads((tmp_path / "root" / "grid.json").read_text())
    assert stored["format_version"] == 1
    assert stored["cells"][0]["directory"] == grid.cells[0].directory
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["grid.json"]


def test_an_unchanged_grid_is_not_written_again(tmp_path):
    root = tmp_path / "root"
    reconcile(root, sample_grid(tmp_path, TWO))
    before = (root / "grid.json").stat()
    reconcile(root, sample_grid(tmp_path, TWO))
    after = (root / "grid.json").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_new_cells_are_added_and_vanished_ones_flagged_and_back(tmp_path):
    root = tmp_path / "root"
    for cell in reconcile(root, sample_grid(tmp_path, TWO)).cells:
        finish(root, cell, 2.0)
    grown = reconcile(root, sample_grid(tmp_path, THREE))
    assert names(grown.current) == ["moe=top_k,seed=0", "moe=top_p,seed=0", "moe=dense,seed=0"]
    assert grown.current == grown.cells
    shrunk = reconcile(root, sample_grid(tmp_path, ONE))
    assert names(shrunk.current) == ["moe=top_k,seed=0"]
    # The dense cell never started: there is nothing to remember.
    assert names(cell for cell in shrunk.cells if cell.vanished) == ["moe=top_p,seed=0"]
    assert load(root) == shrunk
    back = reconcile(root, sample_grid(tmp_path, TWO))
    assert back.current == back.cells and len(back.cells) == 2


def test_a_changed_cell_that_was_started_is_refused_with_the_difference(tmp_path):
    root = tmp_path / "root"
    grid = sample_grid(tmp_path, TWO)
    reconcile(root, grid)
    finish(root, grid.cells[1], 2.0)
    before = (root / "grid.json").read_bytes()
    changed = sample_grid(tmp_path, TWO + ", overrides={'optimizer.lr': 0.5}")
    with pytest.raises(MismatchError) as caught:
        reconcile(root, changed)
    assert str(caught.value).splitlines() == [
        f"--root={root}: 1 cells that were started have another config now; nearest valid: the "
        "grid as it was, or another --root. Differences (there -> here):",
        "moe=top_p,seed=0:",
        "optimizer.lr: 0.006 -> 0.5",
    ]
    assert (root / "grid.json").read_bytes() == before


def test_a_changed_cell_that_never_started_is_replaced(tmp_path):
    root = tmp_path / "root"
    reconcile(root, sample_grid(tmp_path, TWO))
    changed = sample_grid(tmp_path, TWO + ", overrides={'optimizer.lr': 0.5}")
    made = reconcile(root, changed)
    assert [cell.hash for cell in made.cells] == [cell.hash for cell in changed.cells]


def test_a_changed_cell_that_failed_before_its_first_step_is_replaced(tmp_path):
    root = tmp_path / "root"
    grid = sample_grid(tmp_path, TWO)
    reconcile(root, grid)
    run = root / grid.cells[1].directory
    run.mkdir()
    (run / "config.json").write_text("{}")
    changed = sample_grid(tmp_path, TWO + ", overrides={'optimizer.lr': 0.5}")
    assert reconcile(root, changed).cells[1].hash == changed.cells[1].hash
    (run / "metrics.jsonl").write_text("{}\n")
    reconcile(tmp_path / "other", grid)
    run.rename(tmp_path / "other" / run.name)
    with pytest.raises(MismatchError, match="1 cells that were started"):
        reconcile(tmp_path / "other", changed)


def test_a_changed_cell_that_waits_in_a_queue_is_refused_until_its_claim_is_dead(tmp_path):
    root = tmp_path / "root"
    grid = sample_grid(tmp_path, TWO)
    reconcile(root, grid)
    Claims(Places(root), Owner.this()).take(grid.cells[1].directory)
    changed = sample_grid(tmp_path, TWO + ", overrides={'optimizer.lr': 0.5}")
    with pytest.raises(MismatchError, match="1 cells that were started"):
        reconcile(root, changed)
    path = Places(root).claim(grid.cells[1].directory)
    claim = json.loads(path.read_text())
    claim["owner"]["started"] += 1  # of a process that is gone
    path.write_text(json.dumps(claim))
    assert reconcile(root, changed).cells[1].hash == changed.cells[1].hash


def test_what_changes_no_number_changes_no_cell(tmp_path):
    root = tmp_path / "root"
    grid = sample_grid(tmp_path, TWO)
    reconcile(root, grid)
    finish(root, grid.cells[0], 2.0)
    free = "{'checkpoint.keep': 1, 'data.cache_dir': '/c'}"
    other = sample_grid(tmp_path, f"{TWO}, overrides={free}")
    made = reconcile(root, other)
    assert [cell.directory for cell in made.cells] == [cell.directory for cell in grid.cells]
    assert made.cells[0].config["checkpoint"]["keep"] == 1


def test_another_grid_in_the_same_root_is_refused(tmp_path):
    root = tmp_path / "root"
    reconcile(root, sample_grid(tmp_path, TWO))
    with pytest.raises(ConfigError, match="belongs to the grid 'sample', not 'other'"):
        reconcile(root, sample_grid(tmp_path, TWO, name="other"))


def damage(root, change):
    stored = json.loads((root / "grid.json").read_text())
    change(stored)
    (root / "grid.json").write_text(json.dumps(stored))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda r: r.update(format_version=9), "has format_version 9; this moejax reads 1"),
        (lambda r: r["cells"][0].update(directory="../../x"), "is damaged (ValueError: unsafe or"),
        (
            lambda r: r["cells"][0].update(name="../../x", directory="../../x-0123456789"),
            "is damaged (ValueError: unsafe or wrong directory",
        ),
        (lambda r: r["cells"][0].update(hash="../../../.."), "unsafe or wrong directory"),
        (lambda r: r["cells"][0].pop("axes"), "is damaged (KeyError: 'axes')"),
        (lambda r: r.update(cells=3), "is damaged (TypeError"),
    ],
)
def test_a_damaged_or_hostile_record_is_one_line(tmp_path, change, message):
    root = tmp_path / "root"
    grid = sample_grid(tmp_path, TWO)
    reconcile(root, grid)
    damage(root, change)
    with pytest.raises(ConfigError) as caught:
        load(root)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ConfigError):
        reconcile(root, grid)


def test_a_torn_record_and_none_at_all(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no grid \(grid\.json is missing\)"):
        load(tmp_path)
    (tmp_path / "grid.json").write_text('{"format_version": 1, "cel')
    with pytest.raises(ConfigError, match=r"grid\.json: is cut short"):
        load(tmp_path)
    assert record.exists(tmp_path)


def test_a_root_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        reconcile(tmp_path / "file" / "root", sample_grid(tmp_path, TWO))
