"""The shipped grids: every one resolves, and is what its docstring and the documents say."""

from __future__ import annotations

import ast
import os

import pytest
from grid_files import REPOSITORY
from test_load import assert_lines_agree

from configs import ladder, lm
from moejax.config import ConfigError, build, counts
from moejax.config.widths import STRATEGIES
from moejax.grid.estimate import estimate
from moejax.grid.load import load_grid, shipped_names
from moejax.grid.machine import Machine
from moejax.train.experiment import Experiment

NAMES = (
    "bases", "expert_widths", "granularity_x_shared", "labelled", "losses", "routers",
    "scaling_ladder", "smoke", "top_p_threshold",
)  # fmt: skip
CELLS = {"bases": 3, "expert_widths": 42, "granularity_x_shared": 24, "labelled": 6, "losses": 60,
         "routers": 42, "scaling_ladder": 32, "smoke": 4, "top_p_threshold": 36}  # fmt: skip
HERE = Machine("two cores", 24e9, 16e9, "0.3 of 54 GFLOP/s", 1e12, "/")


@pytest.fixture(scope="module", params=NAMES)
def grid(request):
    before = os.getcwd()
    os.chdir(REPOSITORY)
    try:
        return load_grid(request.param)
    finally:
        os.chdir(before)


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


def test_these_are_all():
    assert tuple(shipped_names()) == NAMES == tuple(sorted(CELLS))


def test_every_grid_resolves_and_fits_here(grid):
    assert len(grid.cells) == CELLS[grid.name]
    found = estimate(grid.cells, HERE)
    assert max(own.memory for own in found) < 2.5e9
    assert sum(own.seconds for own in found) < 11 * 3600


def test_command_lines_of_every_label_agree(grid, monkeypatch):
    chosen, seen = [], set()
    for cell in grid.cells:
        new = set(cell.axes.items()) - seen
        if new:
            chosen.append(cell)
            seen |= new
    assert_lines_agree(chosen, monkeypatch)


def test_every_grid_says_how_it_is_run(grid):
    text = ast.get_docstring(ast.parse((REPOSITORY / f"configs/grids/{grid.name}.py").read_text()))
    assert f"python -m experiments.grid run --grid={grid.name} --root=runs/" in text


def test_routers_are_all_kinds_at_tiny_with_three_seeds():
    cells = load_grid("routers").cells
    assert {(cell.axes["moe"], cell.seed) for cell in cells} == {
        (kind, seed) for kind in lm.KINDS for seed in range(3)
    }
    assert {cell.config["model"]["d_model"] for cell in cells} == {lm.SIZES["tiny"].d_model}
    assert {cell.config["train"]["steps"] for cell in cells} == {"0.25e6 tokens"}


def test_the_ladder_is_a_decade_of_active_parameters_and_twenty_tokens_each():
    active = {}
    for cell in load_grid("scaling_ladder").cells:
        experiment = build(Experiment, cell.config)
        shape = experiment.model.shape()
        own = counts.parameters(shape)
        size, kind = cell.axes["size"], cell.axes["moe"]
        if kind in ("dense", "top_k"):
            active.setdefault(size, set()).add(own.active_non_embedding)
        # Whatever is routed: at a mean of two active experts all kinds use as much.
        two = tuple(2 * sum(layer.widths) / 8 for layer in shape.layers if layer.widths)
        assert counts.parameters(shape, two).active_non_embedding in active[size]
        (dense,) = active[size]
        tokens = experiment.total_steps * experiment.tokens_per_step
        assert 0 <= tokens - 20 * dense < experiment.tokens_per_step
    numbers = [value for (value,) in active.values()]
    assert list(active) == list(ladder.SIZES)
    assert numbers == [49_152, 110_592, 262_144, 512_000]
    assert 0.9 < numbers[-1] / numbers[0] / 10 < 1.1


def test_the_ladder_has_four_kinds_and_two_seeds():
    cells = load_grid("scaling_ladder").cells
    assert {(cell.axes["size"], cell.axes["moe"], cell.seed) for cell in cells} == {
        (size, kind, seed)
        for size in ladder.SIZES
        for kind in ("dense", "top_k", "top_p", "hetero_top_p")
        for seed in (0, 1)
    }


def test_widths_and_granularity_keep_the_parameters():
    for name in ("expert_widths", "granularity_x_shared"):
        totals = set()
        for cell in load_grid(name).cells:
            experiment = build(Experiment, cell.config)
            totals.add(counts.parameters(experiment.model.shape()).total)
        assert len(totals) == 1
    strategies = {cell.axes["strategy"] for cell in load_grid("expert_widths").cells}
    assert strategies == set(STRATEGIES)


def test_granularity_keeps_the_active_parameters():
    active = set()
    for cell in load_grid("granularity_x_shared").cells:
        experiment = build(Experiment, cell.config)
        active.add(counts.parameters(experiment.model.shape()).active_non_embedding)
    assert len(active) == 1
    labels = {(c.axes["granularity"], c.axes["shared"]) for c in load_grid(
        "granularity_x_shared").cells}  # fmt: skip
    assert ("1", "2") not in labels and ("4", "2") in labels and len(labels) == 8


def test_labelled_has_two_texts():
    corpora = {
        cell.config["data"]["corpus"].split("?")[0]
        for text in ("languages", "domains")
        for cell in load_grid(f"labelled:{text}").cells
    }
    assert corpora == {"labelled:languages", "labelled:domains"}
    with pytest.raises(ConfigError, match=r"labelled:domain: known: .*domains"):
        load_grid("labelled:domain")


def test_bases_are_equally_large_and_active_and_read_twenty_million_tokens():
    sizes, active, routed = set(), set(), {}
    for cell in load_grid("bases").cells:
        experiment = build(Experiment, cell.config)
        own = counts.parameters(experiment.model.shape())
        sizes.add(own.total)
        active.add(own.active_non_embedding)
        moe = experiment.model.moe
        routed[cell.axes["m"]] = (moe.experts, moe.router.k)
        tokens = experiment.total_steps * experiment.tokens_per_step
        assert 0 <= tokens - 20_000_000 < experiment.tokens_per_step
    assert len(sizes) == 1 and active == {262_144}
    assert routed == {"1": (8, 2), "2": (16, 4), "4": (32, 8)}
