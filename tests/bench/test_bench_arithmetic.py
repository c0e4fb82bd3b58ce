"""Rounds, ratios, verdicts and tables of the benchmarks, on made-up times: nothing is timed."""

import itertools

import pytest

from tools.benchmarks import targets
from tools.benchmarks.processes import Failure, environment, eta
from tools.benchmarks.report import disagreements, document, text
from tools.benchmarks.rows import Case, Comparison, combine, known, unknown
from tools.benchmarks.table import table
from tools.benchmarks.targets import TARGETS, Target, judged, missing
from tools.benchmarks.timing import Candidate, Timing, interleave, spread

CASE = Case(targets.TOP_2, "T=1")


def row(ratio, **fields):
    if ratio is None:
        return unknown("moe_layer", CASE, "tiles", targets.DENSE, "no reason", **fields)
    return known("moe_layer", CASE, "tiles", targets.DENSE, ratio, **fields)


# ---- rounds


def test_every_round_calls_each_candidate_once_in_alternating_order():
    calls = []
    candidates = [Candidate(name, lambda name=name: calls.append(name)) for name in "abc"]
    timings = interleave(candidates, rounds=3, warm_up=1, pause=0)
    assert "".join(calls) == "abc" + "abc" + "cba" + "abc"
    assert set(timings) == set("abc")
    assert all(len(timing.cpu) == len(timing.wall) == 3 for timing in timings.values())


def test_no_round_begins_after_the_budget_once_enough_are_done():
    timings = interleave([Candidate("a", lambda: None)], rounds=9, budget=0.0, least=2, pause=0)
    assert len(timings["a"].cpu) == 2


def test_names_are_unique():
    twice = [Candidate("a", lambda: None)] * 2
    with pytest.raises(ValueError, match="same name"):
        interleave(twice, rounds=1)


def test_times_are_per_call(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr("time.perf_counter", lambda: 8.0 * next(ticks))
    timings = interleave([Candidate("a", lambda: None, calls=4)], rounds=1, warm_up=0, pause=0)
    assert timings["a"].wall == (2.0,)


def test_the_spread_is_the_middle_half_over_the_median():
    assert spread([1.0]) == 0.0
    assert spread([4.0, 1.0, 2.0, 3.0, 5.0]) == pytest.approx(2 / 3)
    assert spread([2.0, 2.0, 2.0, 2.0, 90.0]) == 0.0  # one bad round moves neither


# ---- ratios


def timing(cpu, wall=None):
    return Timing(tuple(wall or cpu), tuple(cpu), (0.0,) * len(cpu))


def test_a_speed_is_the_time_of_the_other_over_ours_in_units_of_work():
    timings = {"ours": timing([2.0, 2.0, 8.0]), "theirs": timing([3.0, 3.0, 3.0], [5.0] * 3)}
    speed = Comparison(CASE, "tiles", "m", "ours", "theirs", work=2.0)
    found = speed.row("s", timings)
    assert found["ratio"] == 3.0  # medians, CPU time
    assert found["wall_ratio"] == 5.0
    assert found["min_ratio"] == 5.0
    assert found["spread"] == pytest.approx(spread([3.0, 3.0, 0.75]))
    time = Comparison(CASE, "tiles", "m", "ours", "theirs", "time").row("s", timings)
    assert time["ratio"] == pytest.approx(2 / 3)


def test_where_a_gpu_works_wall_time_decides_and_the_table_says_so():
    timings = {"ours": timing([1.0] * 3, [2.0, 2.0, 8.0]), "theirs": timing([9.0] * 3, [5.0] * 3)}
    found = Comparison(CASE, "tiles", "m", "ours", "theirs", basis="wall").row("s", timings)
    assert (found["basis"], found["ratio"], found["wall_ratio"]) == ("wall", 2.5, 2.5)
    assert found["spread"] == pytest.approx(spread([2.5, 2.5, 0.625]))
    assert "| wall time |" in table(judged([found])) and "CPU time" not in table(judged([found]))
    assert "| CPU time |" in table(judged([row(1.0, wall_ratio=1.0, min_ratio=1.0)]))


def test_several_processes_give_the_median_of_their_ratios():
    found = combine([[row(ratio, spread=0.5)] for ratio in (1.0, 9.0, 2.0, 3.0, 4.0)])
    assert [one["ratio"] for one in found] == [3.0]
    assert found[0]["ratios"] == [1.0, 9.0, 2.0, 3.0, 4.0]
    assert (found[0]["processes"], found[0]["spread_over"]) == (5, "processes")
    assert found[0]["spread"] == pytest.approx(2 / 3)


def test_two_processes_have_the_spread_of_their_rounds():
    (found,) = combine([[row(1.0, spread=0.1)], [row(2.0, spread=0.3)]])
    assert (found["ratio"], found["spread"], found["spread_over"]) == (1.5, 0.3, "rounds")


def test_a_row_without_a_number_once_is_a_row_without_a_number():
    (found,) = combine([[row(1.0, spread=0.1)], [row(None)]])
    assert found["ratio"] is None
    assert found["note"] == "no reason"


# ---- verdicts


@pytest.mark.parametrize(
    "direction, ratio, verdict",
    [
        (">=", 2.0, "met"),
        (">=", 1.99, "at target within noise"),
        (">=", 1.8, "at target within noise"),
        (">=", 1.79, "missed"),
        ("<=", 2.0, "met"),
        ("<=", 2.01, "at target within noise"),
        ("<=", 2.2, "at target within noise"),
        ("<=", 2.21, "missed"),
        ("<=", None, "not available"),
    ],
)
def test_a_target_is_met_missed_or_within_noise(direction, ratio, verdict):
    target = Target("s", "c", "b", "m", direction, 2.0)
    assert target.verdict(ratio) == verdict
    assert target.met(ratio) is (verdict == "met")


def test_a_count_has_no_noise_and_a_report_no_target():
    assert Target("s", "c", "b", "m", "<=", 2.0, noise=0.0).verdict(2.01) == "missed"
    report = Target("s", "c", "b", "m", "<=", None)
    assert (report.met(5.0), report.verdict(5.0), report.text) == (None, "report", "report")


def test_each_target_speaks_of_one_row_and_every_row_of_the_table_is_there():
    assert len({target.key for target in TARGETS}) == len(TARGETS)
    with_threshold = [target for target in TARGETS if target.threshold is not None]
    assert {target.backend for target in with_threshold} == {"native", "tiles", targets.ANY}
    cases = {target.case for target in TARGETS}
    assert cases == {
        *(targets.TOP_2, targets.TOP_6, targets.GROWTH, targets.HETERO, targets.TOP_P),
        *(targets.SKEW, targets.LM_DENSE, targets.LM_MOE),
    }


def test_rows_come_in_the_order_of_the_targets_and_the_rest_after_them():
    other = known("moe_layer", Case("other", "T=1"), "tiles", "m", 1.0)
    second = known("moe_layer", CASE, "tiles", targets.GEMM, 0.5)
    found = judged([other, second, row(0.9)])
    assert [one["target"] for one in found] == [">= 0.85", "report", None]
    assert [one["met"] for one in found] == [True, None, None]
    assert [one["verdict"] for one in found] == ["met", "report", "report"]


def test_no_target_is_passed_over_in_silence():
    found = missing([row(1.0)], ["tiles"], ["moe_layer"], "why")
    asked = {target.key for target in TARGETS if target.suite == "moe_layer"}
    asked = {key for key in asked if key[2] == "tiles"} - {
        ("moe_layer", CASE.name, "tiles", targets.DENSE)
    }
    assert {(one["suite"], one["case"], one["backend"], one["metric"]) for one in found} == asked
    assert {one["note"] for one in found} == {"why"}


# ---- the document


def result(*rows):
    machine = {
        "cpu": "a processor",
        "cores": 2,
        "load": [0.0, 0.0, 0.0],
        "packages": {"jax": "1"},
        "allocator": "huge",
        "variables": {},
    }
    return {"suite": "moe_layer", "rows": list(rows), "machine": machine}


def test_the_document_has_what_a_row_promises_and_its_text_every_row():
    wall = {"wall_ratio": 0.8, "min_ratio": 0.7, "spread": 0.12}
    made = document(["moe_layer"], ["tiles"], 1, [result(row(0.9, **wall))], [])
    assert {"case", "ratio", "target", "met", "spread"} < set(made["rows"][0])
    assert all(set(one) >= {"case", "verdict", "note"} for one in made["rows"])
    printed = text(made)
    assert "allocator huge" in printed
    assert "T=1, dropless" in printed
    assert "|     0.90 |   12 % | 0.80 |    0.70 | >= 0.85 | met" in printed


def test_a_failed_suite_says_so_in_its_rows():
    made = document(["moe_layer"], ["tiles"], 1, [], [Failure("moe_layer", 134)])
    assert {one["verdict"] for one in made["rows"]} == {"not available"}
    assert "exit code 134" in made["rows"][0]["note"]
    assert "exit code 134" in text(made)


def test_a_peer_that_computes_something_else_is_an_error():
    lost = unknown("moe_layer", CASE, "tiles", targets.HF_GROUPED, "mismatch with ours: output")
    made = document(["moe_layer"], ["tiles"], 1, [result(lost)], [])
    assert disagreements(made) == ["mismatch with ours: output"]


def test_the_time_left_is_known_from_what_suites_took():
    assert eta(["a", "b"], {}) == ""
    assert eta(["a", "b", "a"], {"a": 60.0, "b": 120.0}) == ", about 4 min left"
    assert eta(["c"], {"a": 60.0, "b": 180.0}) == ", about 2 min left"


def test_the_allocator_is_chosen_by_the_environment(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=2")
    assert environment("huge")["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    assert "GLIBC_TUNABLES" not in environment("default")
    assert "GLIBC_TUNABLES" not in environment("tuned")


def test_threads_of_torch_wait_asleep_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert environment("huge")["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert environment("huge")["OMP_WAIT_POLICY"] == "ACTIVE"
