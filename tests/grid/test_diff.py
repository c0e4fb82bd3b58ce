"""`diff`: config, environment and code of two cells or runs."""

from __future__ import annotations

import json

import pytest
from grid_files import finish, sample_grid

from moejax.config import ConfigError
from moejax.grid.arguments import Arguments
from moejax.grid.commands import diff
from moejax.grid.record import reconcile

SWEEP = "base=LM + ':quick,moe=top_p', treatments=axis('model.moe.router.p', [0.2, 0.3])"


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


@pytest.fixture
def cells(tmp_path, root):
    made = reconcile(root, sample_grid(tmp_path, SWEEP)).cells
    finish(root, made[0], 2.0)
    git = {"sha": "b" * 40, "dirty": True}
    finish(root, made[1], 2.0, env={"cores": 4, "argv": ["x"], "git": git})
    return made


def found(capsys, *names, root=""):
    assert diff.main(Arguments(names=names, root=str(root), json=True)) == 0
    return json.loads(capsys.readouterr().out)


def test_two_cells_by_name(root, cells, capsys):
    rows = found(capsys, "p=0.2,seed=0", "p=0.3,seed=0", root=root)
    assert rows["config"] == {"model.moe.router.p": [0.2, 0.3]}
    assert rows["environment"] == {"cores": [2, 4]}
    assert rows["git"] == {"sha": ["a" * 40, "b" * 40], "dirty": [False, True]}


def test_run_directories_need_no_grid(root, cells, capsys):
    runs = [str(root / cell.directory) for cell in cells]
    assert found(capsys, *runs)["config"] == {"model.moe.router.p": [0.2, 0.3]}
    assert found(capsys, runs[0], runs[0])["config"] == {}


def test_for_people(root, cells, capsys):
    names = ("p=0.2,seed=0", "p=0.3,seed=0")
    assert diff.main(Arguments(names=names, root=str(root))) == 0
    assert capsys.readouterr().out.splitlines() == [
        "p=0.2,seed=0 -> p=0.3,seed=0",
        "config:",
        "  model.moe.router.p: 0.2 -> 0.3",
        "environment:",
        "  cores: 2 -> 4",
        "git:",
        f"  sha: '{'a' * 40}' -> '{'b' * 40}'",
        "  dirty: False -> True",
    ]


def test_a_cell_that_has_not_started_has_a_config_only(tmp_path, root, capsys):
    reconcile(root, sample_grid(tmp_path, SWEEP))
    assert diff.main(Arguments(names=("p=0.2,seed=0", "p=0.3,seed=0"), root=str(root))) == 0
    said = capsys.readouterr().out
    assert "model.moe.router.p: 0.2 -> 0.3" in said
    assert "environment: unknown of p=0.2,seed=0, p=0.3,seed=0, which has not started" in said


@pytest.mark.parametrize(
    "names, message",
    [
        (("p=0.2,seed=0", "p=0.4,seed=0"), "p=0.4,seed=0: is no run directory and no cell of"),
        (("nope", "p=0.2,seed=0"), "nope: is no run directory and no cell of"),
    ],
)
def test_names_that_are_not_there(root, cells, names, message):
    with pytest.raises(ConfigError) as caught:
        diff.main(Arguments(names=names, root=str(root)))
    assert str(caught.value).startswith(message)
    with pytest.raises(ConfigError, match="for a cell's name give --root=DIR too"):
        diff.main(Arguments(names=names))
