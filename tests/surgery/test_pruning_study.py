"""The study of pruning: halves of a text, forced off is removed, its file, its figure's numbers."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from surgery_models import moe
from surgery_runs import experiment, write_run, write_text

from moejax.analysis.pruning import ALL, find_studies, read_study, write_study
from moejax.config import ConfigError, counts
from moejax.experts import WidthPlan
from moejax.probe import open_run, open_text
from moejax.probe.observe import observer
from moejax.probe.program import make_pass
from moejax.probe.rows import LabelledRows
from moejax.probe.tracing import TraceOptions, open_rows, trace
from moejax.routing.routers import TopK
from moejax.surgery.halves import halves
from moejax.surgery.pruning import ALL as ALL_ON
from moejax.surgery.pruning import prune
from moejax.surgery.ranking import GLOBAL, UNIFORM
from moejax.surgery.study import EACH, Bench, Plan, parse_rates, write_study_of

LAYERS = (None, moe(TopK(k=2)), moe(TopK(k=2), widths=WidthPlan("explicit", explicit=(4,) * 6)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    base = tmp_path_factory.mktemp("study")
    return open_run(write_run(base / "run", experiment(write_text(base / "text"), *LAYERS)))


@pytest.fixture(scope="module")
def bench(run):
    rows = open_rows(run, open_text(run, "validation"), TraceOptions(tokens=1024))
    return Bench(run, run.restore(), rows, Plan())


def labelled(sequence, language, domain, parallel):
    """One row, a token per sequence."""
    columns = {"segment_ids": sequence, "language": language, "domain": domain}
    columns |= {"parallel": parallel}
    batch = {name: np.array([values], np.int32) for name, values in columns.items()}
    return LabelledRows([batch], ("d",), ("a", "b"))


def test_halves_are_of_every_language_and_never_split_a_unit():
    """Languages in turn, as a balanced sample has them."""
    found = halves(labelled([1, 2, 3, 4, 5, 6], [0, 1] * 3, [0] * 6, [-1] * 6))
    assert found.calibrate_S.tolist() == [True, True, False, False, True, True]
    assert found.language_S.tolist() == [0, 1] * 3
    same = halves(labelled([1, 2, 3, 4, 5, 6], [0, 1] * 3, [0] * 6, [7, 7, 8, 8, 9, 9]))
    assert same.calibrate_S.tolist() == [True, True, False, False, True, True]


@pytest.mark.slow
@pytest.mark.parametrize("router", ["remove", ALL_ON])
def test_removed_costs_what_forced_off_costs(bench, router):
    plan = dataclasses.replace(bench.plan, router=router)
    here = Bench(bench.run, bench.restored, bench.rows, plan)
    keep_LE = np.array([[1, 0, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1]], bool)
    off, gone = here.forced_off(keep_LE), here.removed(keep_LE)
    np.testing.assert_allclose(off.nll_S, gone.nll_S, rtol=1e-4)
    np.testing.assert_allclose(off.width_L, gone.width_L, rtol=1e-6)
    assert math.isnan(off.speed) and gone.speed > 0
    whole = here.forced_off(here.everything())
    assert np.abs(off.nll_S - whole.nll_S).max() > 1e-3


@pytest.mark.slow
def test_a_study_is_written_read_and_counted(run, tmp_path):
    plan = Plan(
        rates=(0.3, 0.5),
        spreads=(UNIFORM, GLOBAL),
        by=EACH,
        seeds=2,
        scores=("frequency", "random"),
    )
    told: list[str] = []
    text = open_text(run, "validation")
    path = write_study_of(run, text, None, plan, 1024, tmp_path / "p", told.append)
    found = read_study(path)
    assert set(found.languages) == {"english", "spanish"}
    # Two rates and spreads; frequencies of all and of each language, and two draws.
    assert len(found.rows) == 2 * 2 * (3 + 2) and len(told) == len(found.rows) + 3
    assert found.whole.change[ALL].mean == 0 and found.whole.kept_L.tolist() == [6, 6]
    for cut in found.rows:
        assert cut.kept_L.sum() == (8 if cut.rate == 0.3 else 6)
        assert cut.spread == GLOBAL or len(set(cut.kept_L.tolist())) == 1
        assert math.isclose(
            cut.change[ALL].mean, cut.loss[ALL].mean - found.whole.loss[ALL].mean, abs_tol=1e-9
        )
    frequent = next(
        c for c in found.rows if (c.score, c.of, c.spread) == ("frequency", ALL, GLOBAL)
    )
    drawn = [c for c in found.rows if (c.score, c.spread, c.rate) == ("random", GLOBAL, 0.3)]
    assert [c.kept_L.tolist() for c in drawn] == [frequent.kept_L.tolist()] * 2
    assert {c.seed for c in drawn} == {0, 1} and drawn[0].loss != drawn[1].loss
    # What is said of its size is what the model that is left has.
    tree = {"params": run.restore().params, "router_state": run.restore().router_state}
    left = frequent.kept_L.tolist()
    pruned, _ = prune(run.experiment.model, tree, {1: range(left[0]), 2: range(left[1])})
    assert frequent.parameters == counts.parameters(pruned.shape()).total
    assert frequent.flops_per_token <= found.whole.flops_per_token
    assert find_studies(tmp_path) == []
    again = tmp_path / "pruning" / "remove" / "text" / "0.json"
    again.parent.mkdir(parents=True)
    write_study(again, found)
    assert again.read_bytes() == path.read_bytes()
    assert [file.step for file in find_studies(tmp_path)] == [0]


@pytest.mark.slow
def test_frequencies_of_the_first_slots(bench):
    """A token of top-2 counts once, for the expert that it likes best."""
    forward = make_pass(bench.run.model, observer(probs=False))
    whole = trace(bench.run, bench.restored, bench.rows, forward)
    first = trace(bench.run, bench.restored, bench.rows, forward, slots=1)
    where_T = np.arange(whole.num_tokens) % 3 > 0
    best_LT = whole.expert_LTK[:, where_T, 0]
    expected_LE = [[(best_T == e).mean() for e in range(6)] for best_T in best_LT]
    np.testing.assert_allclose(bench.prunable(first, where_T), expected_LE, rtol=1e-12)
    assert np.allclose(bench.prunable(whole, where_T).sum(-1), 2)


@pytest.mark.slow
def test_only_the_other_half_is_scored(bench):
    assert bench.halves.calibrate_S.any() and (~bench.halves.calibrate_S).any()
    assert not bench.scored_S[bench.halves.calibrate_S].any()
    np.testing.assert_array_equal(
        bench.scored_S[~bench.halves.calibrate_S],
        bench.evaluator.count_S[~bench.halves.calibrate_S],
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "plan, says",
    [
        (Plan(scores=("frequncy",)), "did you mean 'frequency'"),
        (Plan(spreads=("even",)), "--spreads='even'"),
        (Plan(rates=()), "at least one of each"),
        (Plan(rates=(1.5,)), "nearest valid value 0.9"),
        (Plan(router="drop"), "--router='drop'"),
    ],
)
def test_plans_that_are_none(run, plan, says):
    with pytest.raises(ConfigError, match=says):
        plan.check(run.experiment.model)


def test_rates_are_shares_or_percent():
    assert parse_rates(["10%", "0.25", "10%"]) == (0.1, 0.25)
    with pytest.raises(ConfigError, match="no share"):
        parse_rates(["half"])


@pytest.mark.parametrize(
    "change, says",
    [
        ({"format_version": 9}, "format_version is 9"),
        ({"layers_L": []}, "layers_L is no list"),
        ({"experts_L": [1]}, "experts_L has 1 layers"),
        ({"rows": {}}, "rows is no list"),
        ({"rows": [{"kept_L": [1]}]}, "kept_L does not have 2 layers"),
        ({"whole": 3}, "whole is not an object"),
        ({"step": -1}, "step is no whole number"),
    ],
)
def test_hostile_files_are_refused(tmp_path, change, says):
    good = {
        "format_version": 1, "layers_L": [1, 2], "experts_L": [6, 6], "step": 0, "tokens": 1,
        "sequences": 1, "calibration_tokens": 1, "rows": [],
        "whole": {"kept_L": [6, 6], "parameters": 1},
    }  # fmt: skip
    path = tmp_path / "0.json"
    path.write_text(json.dumps(good))
    assert math.isnan(read_study(path).whole.perplexity().mean)
    path.write_text(json.dumps(good | change))
    with pytest.raises(ConfigError, match=says):
        read_study(path)
