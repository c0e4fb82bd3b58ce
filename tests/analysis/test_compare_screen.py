"""Which runs are one treatment, and which are left out for what reason."""

from __future__ import annotations

import math

import pytest
from compare_cases import DENSE, edit_rows, left_out, row_of, runs_in, write_pair, write_seeded
from run_factory import edit_json, make_curve

from moejax.analysis.compare import PowerLaw, band, compare, select
from moejax.analysis.compare.treatments import treatment_key, unique_names
from moejax.analysis.seeds import seed_groups
from moejax.analysis.view import views
from moejax.config.knobs import ConfigError


@pytest.fixture
def pair(tmp_path):
    return write_pair(tmp_path)


@pytest.fixture
def seeded(tmp_path):
    return write_seeded(tmp_path)


# ---- treatments


@pytest.mark.parametrize(
    "change, same",
    [
        ({"name": "b", "seed": 5, "workdir": "/x"}, True),
        ({"log": {"every": 7, "other": 0}}, True),
        ({"log": {"every": 1, "other": 7}}, False),
        ({"model": {"moe": {"router": {"name": "hash"}}}}, False),
        ({"model": {"moe": {"router": {"name": "random"}}, "seed": 1}}, False),
        ({"data": {"corpus": "other"}}, False),
    ],
)
def test_what_a_treatment_is(tmp_path, change, same):
    """The file may free keys of logging, but not say that data or a model change nothing."""
    plain = {"log": {"every": 1, "other": 0}, "model": {"moe": {"router": {"name": "random"}}}}
    keys = set()
    for name, config in (("a", plain), ("b", plain | change)):
        path = make_curve(tmp_path, name, [3.0], config=config)
        free = ["log.every", "data.corpus", "model", "model.seed", 3]
        edit_json(path / "config.json", may_change=free)
        keys.add(treatment_key(runs_in(path)[0]))
    assert "" not in keys and (len(keys) == 1) is same


def test_the_report_takes_the_same_runs_together(tmp_path):
    """Not two routers of equal knobs; and seeds although the last window of one was short."""
    for name in ("hash", "random"):
        for seed in range(2):
            model = {"moe": {"router": {"name": name}}}
            own = {"seed": seed, "tokens": 1000 - seed, "config": {"model": model}}
            make_curve(tmp_path, f"{name}-s{seed}", DENSE, kind="top_k", **own)
    groups = seed_groups(views(runs_in(tmp_path)))
    assert sorted((group.name, group.loss.n) for group in groups) == [("hash", 2), ("random", 2)]
    rows = compare(runs_in(tmp_path)).rows
    assert sorted((row.name, row.loss.n) for row in rows) == [("hash", 2), ("random", 2)]


def test_names_of_treatments_are_unique():
    assert unique_names(["a", "a", "a #2", "b", "a"]) == ["a", "a #2", "a #2 #2", "b", "a #3"]


def test_bands_are_means_where_all_runs_were_measured(seeded):
    treatment = select(runs_in(seeded)).baseline
    found = band(treatment, "tokens")
    assert found.runs == 3 and found.x_N.tolist() == [1000, 2000, 3000]
    assert found.mean_N == pytest.approx([4.5, 4.0, 3.7])
    assert found.half_width_N == pytest.approx([4.30265 * 0.5 / math.sqrt(3)] * 3, rel=1e-5)
    make_curve(seeded, "dense-s9", DENSE[:2], seed=9, tokens=1500, total_steps=30)
    treatment = select(runs_in(seeded)).baseline
    assert band(treatment, "tokens").x_N.tolist() == [1500, 2000, 3000]


# ---- who is left out


def without(key):
    return lambda path: edit_rows(path, lambda row: {k: v for k, v in row.items() if k != key})


def no_evaluations(path):
    edit_rows(path, lambda row: None if "eval/loss" in row else row)


def lose_a_loss(path):
    edit_rows(
        path,
        lambda row: row | {"eval/loss": None} if row["step"] == 20 and "eval/loss" in row else row,
    )


def backwards(path):
    edit_rows(path, lambda row: row | {"tokens": 5000 - row["tokens"]})


REASONS = {
    "unfinished": (
        lambda path: edit_json(path / "status.json", state="running", step=20),
        "unfinished: running at step 20 of 30",
    ),
    "config": (lambda path: (path / "config.json").write_text("{"), "config.json is not readable"),
    "tokenizer": (
        lambda path: edit_json(path / "data.json", tokenizer_hash="ffff"),
        "other tokenizer, ffff, the baseline's is 0badc0ffee12",
    ),
    "data": (
        lambda path: edit_json(path / "data.json", manifest_hash="eeee"),
        "other text, manifest eeee, the baseline's is 3f2a9c41d0be",
    ),
    "evaluation": (
        lambda path: edit_rows(
            path, lambda row: row | {"eval/tokens": 99} if "eval/loss" in row else row
        ),
        "validated on 99 tokens, the baseline on 16,384",
    ),
    "metrics": (no_evaluations, "no eval/loss in metrics.jsonl"),
    "not finite": (lose_a_loss, "eval/loss is not finite at step 20"),
}


@pytest.mark.parametrize("cause", REASONS)
def test_who_does_not_compare_is_left_out_with_the_reason(pair, cause):
    change, reason = REASONS[cause]
    change(make_curve(pair, "odd", DENSE, kind="top_p"))
    found = compare(runs_in(pair))
    assert [row.name for row in found.rows] == ["dense", "moe"]
    assert list(left_out(found)) == ["odd"] and left_out(found)["odd"][0] == cause
    assert left_out(found)["odd"][1].startswith(reason) and "\n" not in left_out(found)["odd"][1]


@pytest.mark.parametrize(
    "change, reason",
    [
        (without("tokens"), "tokens is missing"),
        (backwards, "tokens is missing from an evaluation, or does not grow"),
        (lambda path: edit_json(path / "data.json", tokenizer_hash=""), "names no tokenizer"),
        (lambda path: (path / "data.json").unlink(), "data.json names no text"),
        (lambda path: edit_json(path / "status.json", state="failed"), "unfinished: failed"),
    ],
)
def test_other_reasons(pair, change, reason):
    change(make_curve(pair, "odd", DENSE, kind="top_p"))
    assert reason in left_out(compare(runs_in(pair)))["odd"][1]


def test_flops_are_asked_for_only_where_they_are_needed(pair):
    without("compute/flops")(pair / "moe")
    assert left_out(compare(runs_in(pair), at="flops"))["moe"][0] == "metrics"
    found = row_of(compare(runs_in(pair)), "moe")
    assert found.loss.mean == 3.0 and math.isnan(found.equal_loss.compute.mean)
    assert found.equal_loss.tokens.mean > 1 and found.equal_loss.why == "moe: not recorded"
    assert math.isnan(found.to_target.flops.mean) and found.to_target.tokens.mean > 0
    pinned = row_of(compare(runs_in(pair), law=PowerLaw(1.6, 0.1)), "moe").equal_loss
    assert math.isnan(pinned.speedup.mean) and pinned.why == "compute/flops is not recorded"


def test_all_reasons_of_a_run_are_one_line(pair):
    odd = make_curve(pair, "odd", DENSE, kind="top_p", state="interrupted")
    edit_json(odd / "data.json", manifest_hash="")
    cause, reason = left_out(compare(runs_in(pair)))["odd"]
    assert cause == "unfinished" and reason.endswith("; data.json names no text")


def test_the_baseline_may_be_named_by_a_run_and_must_compare_itself(seeded):
    runs = runs_in(seeded)
    assert compare(runs, baseline="moe").baseline == "moe"
    assert compare(runs, baseline="moe-s1").baseline == "moe"
    assert "No baseline was named: dense is the first dense" in compare(runs).notes[0]
    with pytest.raises(ConfigError, match="did you mean 'dense'"):
        compare(runs, baseline="dens")
    edit_json(seeded / "moe-s1" / "status.json", state="failed")
    with pytest.raises(ConfigError, match="baseline=moe-s1: is left out itself: unfinished"):
        compare(runs_in(seeded), baseline="moe-s1")


def test_nothing_to_compare_is_an_error(tmp_path):
    make_curve(tmp_path, "a", [3.0], state="running")
    with pytest.raises(ConfigError, match="no run that can be compared: a: unfinished"):
        compare(runs_in(tmp_path))
    with pytest.raises(ConfigError, match="no run that can be compared"):
        compare([])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"at": "token"}, "at=token: unknown axis; did you mean 'tokens'"),
        ({"budget": 0.0}, "budget=0.0: must be above 0"),
        ({"target": math.nan}, "target=nan"),
        ({"tolerance": 2.0}, r"tolerance=2.0: must be in \[0, 1\]"),
    ],
)
def test_wrong_arguments_are_refused(pair, arguments, message):
    with pytest.raises(ConfigError, match=message):
        compare(runs_in(pair), **arguments)
