"""The trainer's trace by class, frequency and domain: means with intervals over sequences."""

from __future__ import annotations

import math

import numpy as np
import pytest
from run_factory import make_run, save

from moejax.analysis.evidence import Evidence
from moejax.analysis.groups import gap, read_groups
from moejax.analysis.intervals import t_quantile
from moejax.analysis.runs import find_runs, load_runs
from moejax.analysis.verdicts import CANNOT_TELL, DOES_NOT, HOLDS, claims
from moejax.analysis.view import views


def slow(value, group, of, minus, sequence):
    """Influence of each sequence on the difference, in plain loops."""
    tokens = [t for t in range(len(value)) if math.isfinite(value[t]) and group[t] in (of, minus)]
    sides = {g: [value[t] for t in tokens if group[t] == g] for g in (of, minus)}
    if not sides[of] or not sides[minus]:
        return math.nan, math.nan
    means = {g: sum(v) / len(v) for g, v in sides.items()}
    names = sorted({sequence[t] for t in tokens})
    if len(names) < 2:
        return means[of] - means[minus], math.nan
    total = 0.0
    for name in names:
        r = 0.0
        for t in tokens:
            if sequence[t] == name:
                sign = 1 if group[t] == of else -1
                r += sign * (value[t] - means[group[t]]) / len(sides[group[t]])
        total += r * r
    count = len(names)
    half = t_quantile(count - 1) * math.sqrt(count / (count - 1) * total)
    return means[of] - means[minus], half


@pytest.mark.parametrize("seed", range(4))
def test_gaps_equal_slow_sums(seed):
    rng = np.random.default_rng(seed)
    value, group = rng.normal(size=70), rng.integers(0, 4, 70)
    value[::9] = np.nan
    sequence = rng.integers(5, 12, 70)
    for of, minus in ((0, 1), (2, 0), (3, 9)):
        np.testing.assert_allclose(
            gap(value, group, of, minus, sequence), slow(value, group, of, minus, sequence)
        )
    assert math.isnan(gap(value, group, 0, 1, np.zeros(70, int))[1])


def test_gap_intervals_cover_with_alike_neighbours():
    """Tokens of a sequence share a level, and with it a gap of their own between the groups."""
    rng = np.random.default_rng(0)
    covered, naive = 0, 0
    for _ in range(400):
        sequence = np.repeat(np.arange(20), 30)
        group = rng.integers(0, 2, 600)
        own = rng.normal(size=20)[sequence]
        value = rng.normal(size=20)[sequence] + own * group + rng.normal(size=600) + 0.5 * group
        mean, half = gap(value, group, 1, 0, sequence)
        covered += abs(mean - 0.5) <= half
        a, b = value[group == 1], value[group == 0]
        naive += abs(mean - 0.5) <= 1.96 * math.sqrt(a.var() / a.size + b.var() / b.size)
    assert 0.91 <= covered / 400 <= 0.98 and naive / 400 < 0.8


def rewrite(run, **changed):
    (path,) = (run / "trace").iterdir()
    with np.load(path) as file:
        arrays = dict(file) | changed
    save(path, {k: v for k, v in arrays.items() if v is not None})
    return arrays


def test_groups_take_sequences_for_the_draws(tmp_path):
    run = make_run(tmp_path, "top_p", name="run", layers=2, experts=4, steps=10, trace_tokens=300)
    arrays = rewrite(run, position_T=np.arange(300, dtype=np.int32) % 20)
    (loaded,), _ = load_runs([str(run)])
    found = read_groups(loaded)
    for label, means in enumerate(found.by_class.means["loss"].mean):
        own = arrays["loss_T"][arrays["class_T"] == label]
        own = own[np.isfinite(own)]
        assert means == pytest.approx(own.mean()) if own.size else math.isnan(means)
    loss = found.by_class.means["loss"]
    known = np.isfinite(arrays["loss_T"]) & (arrays["class_T"] == 0)
    assert loss.sequences[0] == np.unique(np.flatnonzero(known) // 20).size
    width = arrays["width_LT"].mean(0)
    bins = found.by_frequency
    assert found.rarity.minus == bins.labels[0] and found.rarity.of in bins.labels
    common = arrays["frequency_rank_T"] == 0
    ends = [int(v.replace(",", "")) for v in found.rarity.of.split("–")]
    rank = arrays["frequency_rank_T"] + 1
    rare = (rank >= ends[0]) & (rank <= ends[-1])
    want = slow(width, np.where(common, 0, np.where(rare, 1, 2)), 1, 0, np.arange(300) // 20)
    assert (found.rarity.mean, found.rarity.half_width) == pytest.approx(want)


def test_one_sequence_is_no_interval_and_no_claim(tmp_path):
    run = make_run(tmp_path, "top_p", name="run", layers=2, experts=4, steps=10, trace_tokens=300)
    view = views(load_runs([str(run)])[0])
    said = [c for c in claims(Evidence(view)) if "rare tokens" in c.claim]
    assert len(said) == 1 and "sequences of the text as independent draws" in said[0].because
    assert said[0].verdict != CANNOT_TELL
    rewrite(run, position_T=None)
    view = views(load_runs([str(run)])[0])
    assert view[0].groups.rarity is None
    assert np.isnan(view[0].groups.by_class.means["loss"].half_width).all()
    assert not [c for c in claims(Evidence(view)) if "rare tokens" in c.claim]


@pytest.mark.parametrize(
    "signs, verdict", [((1, 1), HOLDS), ((-1, -1), DOES_NOT), ((1, -1), CANNOT_TELL)]
)
def test_seeds_of_a_configuration_make_one_claim(tmp_path, signs, verdict):
    for seed, sign in enumerate(signs):
        shape = {"layers": 2, "experts": 4, "steps": 10, "trace_tokens": 300}
        run = make_run(tmp_path, "top_p", name=f"run-s{seed}", seed=seed, **shape)
        rank_T = np.arange(300) % 20  # every sequence has common and rare ones
        arrays = {
            "position_T": np.arange(300, dtype=np.int32) % 20,
            "frequency_rank_T": rank_T,
            "width_LT": np.tile(500 + sign * (rank_T > 3) * 100 + np.arange(300) % 7, (2, 1)),
        }
        rewrite(run, **{k: v.astype(np.int32) for k, v in arrays.items()})
    evidence = Evidence(views(load_runs(find_runs([tmp_path]))[0]))
    (said,) = [c for c in claims(evidence) if "rare tokens" in c.claim]
    assert said.verdict == verdict and "over 2 seeds" in said.because
    assert said.claim.startswith("run gives")
