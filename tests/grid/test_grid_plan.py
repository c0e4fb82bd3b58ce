"""`plan`: numbers that agree with the trainer's, no device touched, and nothing that cannot fit."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys

import pytest
from absl import flags
from grid_files import REPOSITORY, finish, sample_grid, write_grid

from configs import lm
from moejax.config import ConfigError, build, counts, override
from moejax.grid.arguments import Arguments
from moejax.grid.commands import plan
from moejax.grid.estimate import disk_bytes, estimate, refusals, state_bytes
from moejax.grid.machine import Machine, named_machine, this_machine
from moejax.grid.record import reconcile
from moejax.grid.words import split_words
from moejax.train import aot_search
from moejax.train.experiment import Experiment
from moejax.train.flops import PEAK_FILE, _this_cpu, recorded_peak

SWEEP = "base=LM + ':quick,moe={moe}', treatments=axis('{moe}', ['dense', 'top_p']), seeds=(0, 1)"
SMALL = Machine("a toaster", 1e9, 1e9, "a guess", 1e9, "/crumbs")


def planned(capsys, code=0, **given):
    assert plan.main(Arguments(json=True, **given)) == code
    return json.loads(capsys.readouterr().out)


def test_numbers_are_those_of_the_counts(tmp_path, capsys):
    found = planned(capsys, grid=str(write_grid(tmp_path, SWEEP)))
    assert [cell["name"] for cell in found["cells"]] == [
        "moe=dense,seed=0", "moe=top_p,seed=0", "moe=dense,seed=1", "moe=top_p,seed=1",
    ]  # fmt: skip
    for cell, kind in zip(found["cells"][:2], ("dense", "top_p"), strict=True):
        experiment = build(Experiment, lm.get_config(f"quick,moe={kind}"))
        shape = experiment.model.shape()
        own = counts.parameters(shape)
        per_token = counts.flops_per_token(shape, experiment.data.seq_len)
        assert cell["total_parameters"] == own.total
        assert cell["active_non_embedding_parameters"] == own.active_non_embedding
        assert cell["flops_per_token"] == per_token
        assert cell["steps"] == 12 and cell["tokens"] == 12 * 8 * 32
        assert cell["flops"] == per_token * cell["tokens"]
    assert found["cells"][2]["diff"] == {"seed": [0, 1]}


def test_nothing_is_asked_of_a_device(tmp_path):
    """With JAX's backends made impossible, in a process of its own."""
    code = (
        "import sys\n"
        "from jax._src import xla_bridge\n"
        "def refuse(*a, **k): raise AssertionError('a device was asked')\n"
        "xla_bridge.backends = xla_bridge.get_backend = refuse\n"
        "from moejax.grid.commands import plan\n"
        "from moejax.grid.arguments import Arguments\n"
        f"code = plan.main(Arguments(grid={str(write_grid(tmp_path, SWEEP))!r}))\n"
        f"assert plan.main(Arguments(grid={str(write_grid(tmp_path, SWEEP))!r}, chip='v5e')) == 0\n"
        "assert not xla_bridge._backends\n"
        "sys.exit(code)\n"
    )
    # A platform that does not exist: whatever asks for a device fails.
    environment = os.environ | {"JAX_PLATFORMS": "toaster", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "4 cells (2 seeds)" in done.stdout


@pytest.mark.slow
def test_ten_thousand_cells_are_listed(tmp_path, capsys):
    sweep = (
        "base=LM + ':quick,moe=top_p', treatments=product(axis('optimizer.lr', [1e-5 * i for i in "
        "range(1, 101)]), axis('model.moe.router.p', [i / 101 for i in range(1, 101)]))"
    )
    found = planned(capsys, grid=str(write_grid(tmp_path, sweep)))
    assert len({cell["directory"] for cell in found["cells"]}) == 10_000


# ---- time


def test_time_comes_from_a_recorded_number(tmp_path):
    machine = this_machine(tmp_path, tmp_path)
    assert math.isnan(machine.flops_per_second) and "no run has measured" in machine.origin
    (tmp_path / PEAK_FILE).write_text(json.dumps({_this_cpu(): 1e10, "another CPU": 5.0}))
    assert recorded_peak(tmp_path) == 1e10
    machine = this_machine(tmp_path, tmp_path)
    assert machine.flops_per_second == pytest.approx(0.3 * 1e10)
    assert "30% of the GEMM peak of 10" in machine.origin


def test_finished_cells_are_better_evidence(tmp_path, capsys):
    grid = sample_grid(tmp_path, SWEEP)
    root = tmp_path / "root"
    reconcile(root, grid)
    for cell in grid.cells[:3]:
        finish(root, cell, 2.0)  # 1e9 FLOPs in 2 seconds
    found = planned(capsys, grid=grid.source, root=str(root))
    assert found["machine"]["time"] == "0.5 GFLOP/s, the median of 3 finished cells"
    cell = found["cells"][0]
    assert cell["seconds"] == pytest.approx(30.0 + cell["flops"] / 0.5e9)


def test_a_root_tells_what_is_done_and_what_has_changed(tmp_path, capsys):
    grid = sample_grid(tmp_path, SWEEP)
    root = str(tmp_path / "root")
    reconcile(root, grid)
    assert planned(capsys, grid=grid.source, root=root)["root"] == {
        "done": [], "new": [], "vanished": [], "changed": [],
    }  # fmt: skip
    for cell in grid.cells[:2]:
        finish(tmp_path / "root", cell, 2.0)
    other = SWEEP.replace("'dense', 'top_p'", "'top_p', 'top_k'") + ", overrides={'train.steps': 9}"
    found = planned(capsys, grid=str(write_grid(tmp_path, other)), root=root)["root"]
    assert found == {
        "done": [],
        "new": ["moe=top_k,seed=0", "moe=top_k,seed=1"],
        "vanished": ["moe=dense,seed=0"],
        "changed": ["moe=top_p,seed=0"],
    }
    assert plan.main(Arguments(grid=grid.source, root=root)) == 0
    said = capsys.readouterr().out
    assert "changed moe=top_p,seed=0" in said and "vanished moe=dense,seed=0" in said


def test_an_unknown_speed_is_null_not_a_number(tmp_path):
    (cell, *_) = sample_grid(tmp_path, SWEEP).cells
    slow = dataclasses.replace(SMALL, flops_per_second=math.nan)
    assert math.isnan(estimate([cell], slow)[0].seconds)


def test_a_chip_by_name_is_its_roofline(tmp_path):
    (cell, *_) = sample_grid(tmp_path, SWEEP).cells
    machine = named_machine("v5e:2x4", tmp_path)
    experiment = build(Experiment, cell.config)
    mesh = experiment.mesh.resolve(8)
    expected = aot_search.estimate(experiment, machine.topology, mesh, "none", 1)
    (found,) = estimate([cell], machine)
    assert found.seconds == expected.step_seconds * 12 and found.memory == expected.bytes
    assert named_machine("v5p", tmp_path).name == "v5p:1x1x1"
    assert named_machine("h100", tmp_path).name == "h100:1x1"


# ---- what cannot fit


def test_memory_and_disk_are_refused(tmp_path, capsys):
    cells = sample_grid(tmp_path, SWEEP).cells
    found = estimate(cells, SMALL)
    assert refusals(cells, found, SMALL) == []
    need = max(own.memory for own in found)
    tight = dataclasses.replace(SMALL, memory=need * 0.999)
    (problem,) = {text.partition(": ")[2] for text in refusals(cells, found, tight)}
    assert "of memory, a toaster has" in problem and "nearest valid: a smaller config.tr" in problem
    total = sum(own.disk for own in found)
    full = dataclasses.replace(SMALL, disk=total * 0.999)
    (problem,) = refusals(cells, found, full)
    assert problem.startswith("4 cells: need about") and "/crumbs has" in problem


def test_a_plan_that_cannot_fit_exits_with_2(tmp_path, capsys):
    sweep = "base=LM + ':size=671b,moe=top_k'"
    assert plan.main(Arguments(grid=str(write_grid(tmp_path, sweep)), chip="v5e:2x2")) == 2
    said = capsys.readouterr()
    assert "error: seed=0: needs about" in said.err and "v5e:2x2 has 15" in said.err
    assert "671b" in said.out  # and what it would be is shown all the same


def test_finished_cells_need_no_disk_again(tmp_path):
    cells = sample_grid(tmp_path, SWEEP).cells
    found = estimate(cells, SMALL)
    small = dataclasses.replace(SMALL, disk=found[0].disk * 1.5)
    assert refusals(cells, found, small)
    assert refusals(cells, found, small, have=[cell.directory for cell in cells[1:]]) == []


def test_a_checkpoint_is_the_parameters_and_two_moments():
    experiment = build(Experiment, lm.get_config("size=tiny,moe=top_p"))
    trained = counts.parameters(experiment.model.shape()).everything
    assert state_bytes(experiment) == 3 * 4 * trained
    kept = disk_bytes(experiment) - 3 * state_bytes(experiment)  # two kept, one being written
    elsewhere = override(experiment, {"checkpoint.dir": "gs://bucket/x"})
    assert disk_bytes(elsewhere) == pytest.approx(kept)


@pytest.mark.parametrize(
    "chip, message",
    [
        ("v9", "--chip=v9:1x1: unknown chip 'v9'"),
        ("v5e:3x3", "--chip=v5e:3x3: v5e is not built in this shape; nearest valid value v5e:"),
    ],
)
def test_unknown_chips(tmp_path, chip, message):
    with pytest.raises(ConfigError) as caught:
        named_machine(chip, tmp_path)
    assert str(caught.value).startswith(message)


def test_a_batch_that_does_not_divide_among_chips_is_refused(tmp_path):
    (cell, *_) = sample_grid(tmp_path, "base=LM + ':moe=top_k'").cells
    with pytest.raises(ConfigError, match=r"batch_size=20: does not divide among 8 .* value 24"):
        estimate([cell], named_machine("v5e:2x4", tmp_path))


# ---- for people


def test_the_table_says_where_every_number_comes_from(tmp_path, capsys):
    path = write_grid(tmp_path, SWEEP)
    assert plan.main(Arguments(grid=str(path), limit=3)) == 0
    said = capsys.readouterr().out
    assert "... and 1 more (--limit=0 prints all)" in said
    assert "moe=top_p,seed=0" in said and "one cell after the other" in said
    assert plan.main(Arguments(grid=str(path), filter=("moe=dense",))) == 0
    assert "2 cells" in capsys.readouterr().out
    assert plan.main(Arguments(grid=str(path), shard="1/4")) == 0
    assert "1 cell (1 seed)" in capsys.readouterr().out


# ---- words


@pytest.fixture
def known():
    values = flags.FlagValues()
    flags.DEFINE_string("by", "", "", flag_values=values)
    flags.DEFINE_string("chip", "", "", flag_values=values)
    flags.DEFINE_bool("wait", True, "", flag_values=values)
    flags.DEFINE_integer("max_parallel", 0, "", flag_values=values)
    flags.DEFINE_bool("retry_failed", False, "", flag_values=values)
    return values


@pytest.mark.parametrize(
    "line, command, words, rest",
    [
        ("", "plan", (), []),
        ("--chip=x", "plan", (), ["--chip=x"]),
        ("best --by eval/loss", "best", (), ["--by=eval/loss"]),
        ("--max-parallel 3 run --retry-failed", "run", (), ["--max_parallel=3", "--retry_failed"]),
        ("run --no-retry-failed", "run", (), ["--no_retry_failed"]),
        ("table --by=x-y", "table", (), ["--by=x-y"]),
    ],
)
def test_words_and_flags(known, line, command, words, rest):
    assert split_words(["p", *line.split()], known) == (command, words, ["p", *rest])


@pytest.mark.parametrize(
    "line, message",
    [
        ("pla", "pla: unknown command; did you mean 'plan'?"),
        ("run x", "run: takes 0 words besides flags, 'x' is one too many"),
        ("diff a", "diff: takes 2 words besides flags, got 1"),
        ("diff a b --by=x", "--by: means nothing to diff; it is for best, table"),
        ("best --nowait", "--wait: means nothing to best; it is for run, retry"),
        ("diff a b c", "diff: takes 2 words besides flags, 'c' is one too many"),
    ],
)
def test_wrong_words(known, line, message):
    with pytest.raises(ConfigError) as caught:
        split_words(["p", *line.split()], known)
    assert str(caught.value) == message


@pytest.mark.slow
def test_the_program_says_what_is_wrong_in_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.grid", "--grid", str(tmp_path / "x.py")],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == f"error: --grid={tmp_path / 'x.py'}: no such file\n"


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_is_no_bug(tmp_path):
    path = write_grid(tmp_path, "base=LM, treatments=axis('optimizer.lr', list(range(1, 999)))")
    words = [sys.executable, "-m", "experiments.grid", f"--grid={path}", "--limit=0"]
    with subprocess.Popen(
        words, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None and program.stderr is not None
        assert program.stdout.readline() == "sample: 998 cells (1 seed)\n"
        program.stdout.close()
        assert program.stderr.read() == ""
    assert program.returncode == 141
