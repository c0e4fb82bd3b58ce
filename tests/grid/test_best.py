"""Comparisons: aggregates, intervals, paired differences, and what is left out, with its reason."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import scipy.stats
from grid_files import finish, sample_grid

from moejax.analysis.intervals import mean_of, t_quantile
from moejax.config import ConfigError
from moejax.grid.arguments import Arguments
from moejax.grid.commands import best
from moejax.grid.groups import parse_metrics
from moejax.grid.places import Places
from moejax.grid.record import reconcile

SWEEP = (
    "base=LM + ':quick,moe={moe}', treatments=product(axis('{moe}', ['top_k', 'top_p']), "
    "axis('optimizer.lr', [1, 2])), seeds=(0, 1, 2)"
)
LOSS = {("top_k", "1"): 2.0, ("top_k", "2"): 2.5, ("top_p", "1"): 2.1, ("top_p", "2"): 3.0}
T2 = scipy.stats.t.ppf(0.975, 2)
NOISE = {0: -0.3, 1: 0.1, 2: 0.2}


def loss_of(cell):
    """Seeds move all treatments together, as the order of the data does."""
    wobble = 0.01 * cell.seed * (cell.axes["moe"] == "top_p")
    return LOSS[cell.axes["moe"], cell.axes["lr"]] + NOISE[cell.seed] + wobble


@pytest.fixture
def root(tmp_path):
    grid = sample_grid(tmp_path, SWEEP)
    for cell in reconcile(tmp_path / "root", grid).cells:
        finish(tmp_path / "root", cell, loss_of(cell))
    return tmp_path / "root"


def ranking(root, **flags):
    arguments = Arguments(root=str(root), **flags)
    groups, results, metrics = best.compare(arguments)
    return json.loads(json.dumps(best.as_json(groups, results, metrics, arguments.agg)))


# ---- statistics


@pytest.mark.parametrize("degrees", [*range(1, 40), 120, 1000])
def test_t_quantiles_are_those_of_scipy(degrees):
    for confidence in (0.5, 0.95, 0.999):
        expected = scipy.stats.t.ppf((1 + confidence) / 2, degrees)
        assert t_quantile(degrees, confidence) == pytest.approx(expected, rel=1e-9)


def test_the_interval_covers_as_often_as_it_says(rng):
    inside = 0
    for sample in rng.normal(5.0, 2.0, (4000, 3)):
        mean = mean_of(sample.tolist())
        inside += abs(mean.mean - 5.0) <= mean.half_width
    # Binomial(4000, 0.95): a standard deviation is 0.0034.
    assert inside / 4000 == pytest.approx(0.95, abs=0.014)


def test_one_value_has_no_interval():
    assert math.isnan(mean_of([1.0]).half_width) and math.isnan(mean_of([]).mean)


# ---- ranking


def test_the_best_group_comes_first_with_its_interval(root):
    found = ranking(root)["groups"]
    assert [list(group["labels"].values()) for group in found] == [
        ["top_k", "1"], ["top_p", "1"], ["top_k", "2"], ["top_p", "2"],
    ]  # fmt: skip
    values = [2.0 + NOISE[seed] for seed in range(3)]
    first = found[0]["means"]["eval/loss"]
    assert first["mean"] == pytest.approx(np.mean(values)) and first["n"] == 3
    half = T2 * np.std(values, ddof=1) / math.sqrt(3)
    assert first["half_width_95"] == pytest.approx(half)
    assert found[0]["difference_from_best"] is None and found[0]["verdict"] == ""


def test_differences_are_paired_by_seed(root):
    """The spread over seeds hides a difference that is there in every seed."""
    second = ranking(root)["groups"][1]
    differences = [0.10, 0.11, 0.12]
    assert second["difference_from_best"]["mean"] == pytest.approx(0.11)
    half = T2 * np.std(differences, ddof=1) / math.sqrt(3)
    assert second["difference_from_best"]["half_width_95"] == pytest.approx(half)
    assert second["means"]["eval/loss"]["half_width_95"] > 0.11 > half
    assert second["verdict"] == "beyond noise"


def test_within_noise_is_flagged(root, tmp_path):
    grid = sample_grid(tmp_path, SWEEP)
    for cell in grid.cells:
        if cell.axes == {"moe": "top_p", "lr": "1"}:
            finish(root, cell, 2.0 + NOISE[cell.seed] + {0: -0.1, 1: 0.3, 2: 0.1}[cell.seed])
    assert ranking(root)["groups"][1]["verdict"] == "within noise"


def test_one_axis_is_over_the_other_and_says_so(root):
    found = ranking(root, group="moe")
    assert [group["labels"] for group in found["groups"]] == [{"moe": "top_k"}, {"moe": "top_p"}]
    assert found["groups"][0]["also_over"] == ["lr"] and found["groups"][0]["done"] == 6
    # Pairs agree in seed and in the rate.
    pairs = [0.1 + 0.01 * s for s in range(3)] + [0.5 + 0.01 * s for s in range(3)]
    difference = found["groups"][1]["difference_from_best"]
    assert difference["mean"] == pytest.approx(np.mean(pairs)) and difference["n"] == 6


@pytest.mark.parametrize(
    "aggregate, expected",
    [("median", 2.1), ("min", 1.7), ("max", 2.2), ("mean±sd", 2.0), ("mean±ci", 2.0)],
)
def test_aggregates(root, aggregate, expected):
    found = ranking(root, agg=aggregate)["groups"][0]
    assert found["values"]["eval/loss"] == pytest.approx(expected)


def test_more_can_be_better_and_several_metrics_stand_side_by_side(root):
    found = ranking(root, by="eval/loss:max,perf/tokens_per_second")
    assert found["groups"][0]["labels"] == {"moe": "top_p", "lr": "2"}
    assert found["groups"][0]["values"]["perf/tokens_per_second"] == 500.0
    assert [one["better"] for one in found["by"]] == ["higher", "lower"]


def test_filters_narrow_the_comparison(root):
    found = ranking(root, filter=("lr=2", "seed=0|1"))
    assert [group["done"] for group in found["groups"]] == [2, 2]


# ---- what is missing


def test_what_is_not_done_is_left_out_with_its_reason(root, tmp_path, capsys):
    cells = sample_grid(tmp_path, SWEEP).cells
    failed, pending, odd, other = cells[0], cells[1], cells[2], cells[3]
    run = Places(root).workdir(failed.directory)
    (run / "final.json").unlink()
    status = {"format_version": 1, "state": "failed", "reason": "non-finite loss at step 3"}
    (run / "status.json").write_text(json.dumps(status | {"step": 3, "total_steps": 10}))
    for path in Places(root).workdir(pending.directory).iterdir():
        path.unlink()
    Places(root).workdir(pending.directory).rmdir()
    finish(root, odd, None)
    finish(root, other, 3.0, data={"tokenizer_hash": "other"}, final={"tokens": 10_000})
    found = ranking(root)
    assert [(one["cell"], one["reason"]) for one in found["missing"]] == [
        (failed.name, "failed: non-finite loss at step 3"),
        (pending.name, "pending"),
        (odd.name, "eval/loss is not finite"),
    ]
    assert sum(group["done"] for group in found["groups"]) == 9
    assert len(found["caveats"]) == 2
    assert best.main(Arguments(root=str(root))) == 0
    said = capsys.readouterr().out
    assert f"{failed.name}: left out, failed: non-finite loss at step 3" in said
    assert "2/3" in said and "different numbers of tokens" in said and "do not compare" in said


def test_a_few_tokens_are_no_difference(root, tmp_path):
    cell = sample_grid(tmp_path, SWEEP).cells[0]
    finish(root, cell, loss_of(cell), final={"tokens": 1001})
    assert ranking(root)["caveats"] == []


def test_a_grid_without_a_finished_cell(tmp_path, capsys):
    root = tmp_path / "root"
    reconcile(root, sample_grid(tmp_path, SWEEP))
    assert best.main(Arguments(root=str(root))) == 0
    assert "0/3" in capsys.readouterr().out
    assert all(group["values"]["eval/loss"] is None for group in ranking(root)["groups"])


def test_a_second_metric_may_be_missing_somewhere(root, tmp_path):
    """A dense model has no experts; it is compared all the same."""
    for cell in sample_grid(tmp_path, SWEEP).cells:
        if cell.axes["moe"] == "top_p":
            finish(root, cell, loss_of(cell), final={"measured": {"active_experts": 3.0}})
    found = ranking(root, by="eval/loss,measured/active_experts", group="moe")
    values = {g["labels"]["moe"]: g["values"]["measured/active_experts"] for g in found["groups"]}
    assert values == {"top_k": None, "top_p": 3.0} and not found["missing"]


def test_a_root_without_current_cells_is_one_line(root, tmp_path):
    reconcile(root, sample_grid(tmp_path, SWEEP.replace("[1, 2]", "[3]")))
    with pytest.raises(ConfigError, match="the grid has none of these cells any more"):
        best.main(Arguments(root=str(root), filter=("lr=1|2",)))


def test_a_single_seed_has_no_verdict(root):
    found = ranking(root, filter=("seed=0",))["groups"]
    assert found[1]["verdict"] == "unknown" and found[1]["means"]["eval/loss"]["sd"] is None


def test_a_vanished_cell_is_no_part_of_a_group(root, tmp_path):
    reconcile(root, sample_grid(tmp_path, SWEEP.replace("[1, 2]", "[1]")))
    found = ranking(root)
    assert len(found["groups"]) == 2 and len(found["missing"]) == 6
    assert {one["reason"] for one in found["missing"]} == {"not in the grid any more"}


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"by": "eval/los"}, "--by=eval/los: no finished cell has this metric; did you mean 'eval"),
        ({"by": ""}, "--by=: expected METRIC[:min|:max], with commas"),
        ({"by": "eval/loss:up"}, "--by=eval/loss:up: expected METRIC[:min|:max], with commas"),
        ({"group": "mo"}, "--group=mo: unknown axis 'mo'; did you mean 'moe'?"),
        ({"agg": "mean"}, "--agg=mean: unknown aggregate"),
        ({"root": ""}, "--root: is required"),
    ],
)
def test_wrong_flags(root, flags, message):
    arguments = Arguments(**({"root": str(root)} | flags))
    with pytest.raises(ConfigError) as caught:
        best.main(arguments)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_metrics_are_parsed():
    assert [(one.name, one.up) for one in parse_metrics("a, b:max ,c:min")] == [
        ("a", False), ("b", True), ("c", False),
    ]  # fmt: skip
