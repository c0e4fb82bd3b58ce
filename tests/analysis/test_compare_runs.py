"""Runs compared: who with whom, at what, and what is said about those left out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from compare_cases import DENSE, MOE, left_out, row_of, runs_in, write_pair, write_seeded
from run_factory import edit_json, make_curve

from moejax.analysis.compare import PowerLaw, compare
from moejax.config.knobs import ConfigError


@pytest.fixture
def pair(tmp_path):
    return write_pair(tmp_path)


@pytest.fixture
def seeded(tmp_path):
    return write_seeded(tmp_path)


# ---- at equal tokens, FLOPs, time


def test_equal_tokens_by_hand(pair):
    found = compare(runs_in(pair))
    assert (found.baseline, found.budget, found.dense) == ("dense", 3000.0, "dense")
    assert [row.name for row in found.rows] == ["dense", "moe"]
    (reading,) = row_of(found, "moe").readings
    assert (reading.loss, reading.tokens, reading.flops) == (3.0, 3000, 9e9)
    assert (reading.seconds, reading.schedule, reading.seed) == (60, 1.0, "0")
    assert row_of(found, "moe").difference.mean.mean == pytest.approx(-0.2)
    assert not found.excluded and found.rows[0].difference is None


def test_the_triad_is_part_of_every_row(pair):
    for row in compare(runs_in(pair)).rows:
        size = row.size
        assert size.total_parameters > 0 and size.active_parameters > 0
        assert size.flops_per_token == 2.6e6 and size.measured_active_parameters == 1000
        assert size.spent_flops_per_token == (2e6 if row.dense else 3e6)
        assert size.measured_flops_per_token == size.spent_flops_per_token


def test_a_budget_inside_the_range_is_interpolated(pair):
    found = compare(runs_in(pair), budget=2000 * math.sqrt(1.5), tolerance=0.01)
    assert row_of(found, "dense").loss.mean == pytest.approx((3.5 + 3.2) / 2)
    (reading,) = row_of(found, "moe").readings
    assert reading.tokens == pytest.approx(2000 * math.sqrt(1.5))
    assert reading.schedule == pytest.approx(math.sqrt(1.5) * 2 / 3)


def test_equal_flops_leaves_out_who_is_amid_its_schedule(pair):
    found = compare(runs_in(pair), at="flops")
    assert found.budget == 6e9
    cause, reason = left_out(found)["moe"]
    assert cause == "schedule" and "66.7" in reason and "loss 3.3000" in reason
    assert "train it for 2k tokens" in reason
    assert row_of(found, "moe").loss.n == 0 and row_of(found, "moe").difference is None
    assert row_of(found, "moe").equal_loss.compute.n == 1  # what a loss costs is known all the same
    anyway = compare(runs_in(pair), at="flops", tolerance=1)
    assert row_of(anyway, "moe").loss.mean == pytest.approx(3.3)
    assert any("66.7" in note and "less of their decay" in note for note in anyway.notes)


def test_equal_flops_before_any_decay_compares(tmp_path):
    make_curve(tmp_path, "dense", DENSE, rates=[1, 1, 1])
    make_curve(tmp_path, "moe", MOE, kind="top_k", flops_per_token=3e6, rates=[1, 1, 0.1])
    found = compare(runs_in(tmp_path), at="flops")
    assert row_of(found, "moe").loss.mean == pytest.approx(3.3) and not found.excluded
    assert any("before the rate began to fall" in note for note in found.notes)


def test_the_longer_run_is_not_the_baseline_when_the_baseline_is_amid_its_own(tmp_path):
    make_curve(tmp_path, "dense", DENSE)
    make_curve(tmp_path, "short", [3.9, 3.3], kind="top_k")
    found = compare(runs_in(tmp_path), budget=2000)
    assert left_out(found)["short"][0] == "schedule"
    assert "the baseline is amid its own" in left_out(found)["short"][1]


def test_nothing_is_extrapolated(pair):
    make_curve(pair, "shorter", [3.0, 2.5], kind="top_p")
    make_curve(pair, "late", [3.0], kind="top_p", tokens=3500, config={"late": True})
    found = compare(runs_in(pair))
    assert left_out(found)["shorter"][1] == "not reached: it ended after 2k tokens"
    assert (
        left_out(found)["late"][1] == "not measured there: its first evaluation is at 3.5k tokens"
    )
    assert math.isnan(row_of(found, "shorter").loss.mean)
    with pytest.raises(ConfigError, match="not reached by the baseline; nearest valid value: 3k"):
        compare(runs_in(pair), budget=3001)


def test_runs_of_one_length_but_for_a_short_window_end_together(tmp_path):
    make_curve(tmp_path, "dense", DENSE, tokens=1000)
    make_curve(tmp_path, "moe", MOE, kind="top_k", tokens=999)
    found = compare(runs_in(tmp_path))
    assert found.budget == 2997 and not found.excluded
    assert row_of(found, "moe").loss.mean == 3.0
    assert compare(runs_in(tmp_path), tolerance=0).budget == 3000


def test_equal_time_asks_for_the_same_machine(pair):
    edit_json(pair / "moe" / "env.json", machine="another processor")
    cause, reason = left_out(compare(runs_in(pair), at="time"))["moe"]
    assert cause == "machine" and "another processor" in reason
    found = row_of(compare(runs_in(pair)), "moe").equal_loss
    assert math.isnan(found.speedup.mean) and "another machine" in found.why
    assert found.compute.mean > 0


# ---- at equal loss


def test_multipliers_by_hand(pair):
    """Top-k reaches the dense model's 3.2 one third of the way from 3.3 to 3.0."""
    found = row_of(compare(runs_in(pair)), "moe").equal_loss
    tokens = 2000 * 1.5 ** (1 / 3)
    assert (found.loss, found.how, found.why) == (3.2, "measured curves", "")
    assert found.schedule == pytest.approx(tokens / 3000)
    assert any("Against moe, one run" in note for note in compare(runs_in(pair)).notes)
    assert found.tokens.mean == pytest.approx(3000 / tokens)
    assert found.compute.mean == pytest.approx(3000 * 2e6 / (tokens * 3e6))
    assert found.speedup.mean == pytest.approx((3000 / 100) / (tokens / 50))


def test_with_a_dense_reference_the_compute_multiplier_is_the_leverage(pair):
    row = row_of(compare(runs_in(pair)), "moe")
    assert row.leverage.compute.mean == row.equal_loss.compute.mean > 0
    assert row.leverage.reference == "dense"
    make_curve(pair, "moe2", MOE, kind="top_p")
    other = compare(runs_in(pair), baseline="moe2")
    assert row_of(other, "moe").leverage.compute.mean == row.leverage.compute.mean
    assert row_of(other, "dense").leverage is None and other.rows[0].leverage is not None
    make_curve(pair, "dense2", DENSE, config={"other": 1})
    assert compare(runs_in(pair), baseline="moe2").dense == ""  # which of the two?


def test_the_worse_model_is_compared_at_its_own_end(tmp_path):
    make_curve(tmp_path, "dense", MOE)
    make_curve(tmp_path, "worse", DENSE, kind="top_k")
    found = row_of(compare(runs_in(tmp_path)), "worse").equal_loss
    assert found.loss == 3.2 and found.tokens.mean == pytest.approx(1.5 ** (1 / 3) * 2 / 3)


def test_a_target_that_is_not_reached_has_no_number(pair):
    row = row_of(compare(runs_in(pair), target=3.1), "moe")
    assert row.to_target.reached == 1 and row.to_target.tokens.mean == pytest.approx(
        2000 * 1.5 ** (2 / 3)
    )
    assert math.isnan(row.equal_loss.compute.mean) and row.equal_loss.why == "dense: not reached"
    dense = compare(runs_in(pair), target=3.1).rows[0].to_target
    assert (dense.reached, dense.runs, dense.why) == (0, 1, "not reached")
    assert math.isnan(dense.tokens.mean)
    early = compare(runs_in(pair), target=3.95)
    assert row_of(early, "moe").to_target.why == "reached before the first evaluation"


def test_the_default_target_is_reached_by_every_run_of_the_baseline(tmp_path):
    for seed in range(3):
        make_curve(tmp_path, f"dense-s{seed}", [4.0, 3.0 + 0.1 * seed], seed=seed)
        make_curve(tmp_path, f"moe-s{seed}", [4.0, 3.15], seed=seed, kind="top_k")
    found = compare(runs_in(tmp_path))
    assert found.target == pytest.approx(3.2)
    assert row_of(found, "dense").to_target.reached == 3
    tokens = [1000 * 2 ** (0.8 / (1 - 0.1 * s)) for s in range(3)]
    assert row_of(found, "dense").to_target.tokens.mean == pytest.approx(np.mean(tokens))


def test_the_pinned_law_needs_no_crossing(pair):
    law = PowerLaw(1.6, 0.1)
    found = row_of(compare(runs_in(pair), law=law), "moe").equal_loss
    needed = 6e9 * ((3.2 - 1.6) / (3.0 - 1.6)) ** 10
    assert found.how == "pinned power law" and found.loss == 3.0 and found.schedule == 1.0
    assert found.compute.mean == pytest.approx(needed / 9e9)
    assert found.speedup.mean == pytest.approx((needed / 2e6 / 100) / (3000 / 50))
    low = row_of(compare(runs_in(pair), law=PowerLaw(3.1, 0.1)), "moe").equal_loss
    assert math.isnan(low.compute.mean) and "has no point at 3" in low.why


def test_at_equal_flops_per_token_it_is_the_published_formula(tmp_path):
    make_curve(tmp_path, "dense", DENSE, tokens_per_second=433.986)
    make_curve(tmp_path, "moe", [3.9, 3.3, 3.18], kind="top_k", tokens_per_second=410.0)
    law = PowerLaw(1.6, 0.0941)
    found = row_of(compare(runs_in(tmp_path), law=law), "moe").equal_loss
    scale = (3.2 - 1.6) * 6e9**0.0941
    needed = (scale / (3.18 - 1.6)) ** (1 / 0.0941)
    assert found.speedup.mean == pytest.approx((needed / 433.986) / (6e9 / 410.0))


# ---- seeds


def test_seeds_are_paired_and_the_unpaired_are_dropped_with_a_note(seeded):
    found = compare(runs_in(seeded))
    row = row_of(found, "moe")
    assert row.loss.n == 4 and row.runs == ("moe-s0", "moe-s1", "moe-s2", "moe-s7")
    assert dict(row.difference.pairs) == pytest.approx({"0": -0.1, "1": -0.09, "2": -0.08})
    assert row.difference.mean.half_width == pytest.approx(4.30265 * 0.01 / math.sqrt(3), rel=1e-5)
    assert (row.difference.verdict, row.difference.rule) == ("beyond noise", "pairs")
    assert row.difference.unpaired == ("moe-s7",)
    assert any("moe-s7 without a partner" in note for note in found.notes)
    assert row.equal_loss.compute.n == 3 and row.equal_loss.compute.low > 1


def test_the_noise_floor_pools_within_treatments(seeded):
    found = compare(runs_in(seeded))
    groups = [[r.loss for r in row.readings] for row in found.rows]
    squares = sum(np.var(group) * len(group) for group in groups)
    assert found.noise.degrees == 5 and found.noise.sd == pytest.approx(math.sqrt(squares / 5))


def test_a_single_run_is_judged_by_the_floor_of_the_others(tmp_path):
    for seed, shift in enumerate((0.0, 0.01, 0.02)):
        make_curve(tmp_path, f"dense-s{seed}", [v + shift for v in DENSE], seed=seed)
    make_curve(tmp_path, "near", [4.0, 3.5, 3.19], kind="top_k")
    make_curve(tmp_path, "far", [4.0, 3.5, 2.8], kind="top_p")
    found = compare(runs_in(tmp_path))
    assert found.noise.sd == pytest.approx(0.01)
    near, far = row_of(found, "near").difference, row_of(found, "far").difference
    assert (near.verdict, near.rule) == ("within noise", "noise floor")
    assert (far.verdict, far.rule) == ("beyond noise", "noise floor")
    assert near.least == pytest.approx(4.30265 * 0.01 * math.sqrt(2), rel=1e-5)


def test_no_common_seed_is_no_difference(tmp_path):
    make_curve(tmp_path, "dense", DENSE, seed=0)
    make_curve(tmp_path, "moe", MOE, seed=1, kind="top_k")
    make_curve(tmp_path, "none", MOE, seed=None, kind="top_p")
    for name in ("moe", "none"):
        row = row_of(compare(runs_in(tmp_path)), name)
        assert row.difference.verdict == "unknown" and row.difference.mean.n == 0
        assert row.equal_loss.why == "no seed in common with dense"


def test_a_repeated_seed_counts_once(pair):
    make_curve(pair, "moe-again", [3.9, 3.3, 2.9], kind="top_k", flops_per_token=3e6)
    found = compare(runs_in(pair))
    assert left_out(found)["moe"] == ("repeated", "repeats seed 0 of moe: the last one counts")
    assert row_of(found, "moe").runs == ("moe-again",)


def test_other_batches_are_said(pair):
    make_curve(pair, "wide", MOE, kind="top_p", config={"train": {"batch_size": 99}})
    assert any("batch size than the baseline: wide" in n for n in compare(runs_in(pair)).notes)


def test_many_comparisons_carry_a_warning(tmp_path):
    for seed in range(2):
        make_curve(tmp_path, f"dense-s{seed}", [4.0, 3.0 + seed], seed=seed)
        for i in range(5):
            make_curve(tmp_path, f"m{i}-s{seed}", [4.0, 3.0 + seed], seed=seed, config={"x": i})
    assert any("5 comparisons at 95 %" in note for note in compare(runs_in(tmp_path)).notes)
