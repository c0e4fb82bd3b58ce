"""Specialisation, vocabulary, divergence of languages: loops, chance, bias."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from routing_oracles import chosen, first_choice, mean, random_table, same
from scipy import stats

from moejax.analysis.routing import divergence as div
from moejax.analysis.routing import information, vocabulary
from moejax.analysis.routing.specialisation import specialisation

LN2 = math.log(2)


@pytest.fixture
def labelled(rng):
    """table, mask, label (3 of 4 occur; -1: none), sequence."""
    table, mask = random_table(rng)
    label, sequence = rng.integers(-1, 3, 60), np.repeat(np.arange(12), 5)
    return table, mask, label, sequence


# ---- specialisation


def test_specialisation_equals_loops(labelled):
    table, mask, label, sequence = labelled
    got = specialisation(table, mask, label, 4, sequence)
    for layer in range(3):
        sets = [set(chosen(table, mask, layer, t)) for t in range(60)]
        known = [t for t in range(60) if label[t] >= 0]
        k = mean(len(sets[t]) for t in known)
        same(got.chance_uniform[layer], k / mask[layer].sum())
        for e in range(6):
            if not mask[layer, e]:
                assert np.isnan(got.share[layer, :, e]).all()
                assert np.isnan(got.chance_load[layer, e])
                continue
            same(got.chance_load[layer, e], mean(e in sets[t] for t in known))
            for g in range(4):
                tokens = [t for t in known if label[t] == g]
                share = mean(e in sets[t] for t in tokens)
                same(got.share[layer, g, e], share)
                names = {sequence[t] for t in tokens}
                assert (got.tokens[g], got.sequences[g]) == (len(tokens), len(names))
                if not tokens:
                    continue
                off = [
                    sum((e in sets[t]) - share for t in tokens if sequence[t] == s) for s in names
                ]
                variance = sum(x * x for x in off) * len(names) / (len(names) - 1)
                t = stats.t.ppf(0.975, len(names) - 1)
                same(got.half_width[layer, g, e], t * math.sqrt(variance) / len(tokens))


def test_specialisation_of_probabilities_is_their_mean(labelled, rng):
    _, mask, label, sequence = labelled
    probs = rng.dirichlet(np.ones(6), (3, 60)).astype(np.float32)
    probs[1, ::4] = np.nan
    probs[2] = np.nan
    got = specialisation(probs, mask, label, 4, sequence)
    for g in range(3):
        same(got.share[0, g], probs[0, label == g].mean(0), rtol=1e-6)
        want = np.where(mask[1], np.nanmean(probs[1, label == g].astype(float), 0), np.nan)
        same(got.share[1, g], want, rtol=1e-6)
    assert np.isnan(got.share[2]).all() and np.isnan(got.chance_uniform[2])
    hard = np.eye(6)[np.argmax(np.nan_to_num(probs), -1)]
    one = specialisation(hard, mask, label, 4, sequence)
    two = specialisation(hard.argmax(-1)[..., None], mask, label, 4, sequence)
    same(one.share[0], two.share[0])
    same(one.half_width[0], two.half_width[0])


def test_specialisation_is_at_chance_without_a_relation(rng):
    """Half widths of the 95 % interval cover the load line, with sequences that differ."""
    sequence = np.repeat(np.arange(40), 25)
    favour = rng.normal(size=(150, 40, 5))[:, sequence]
    table = np.argsort(-(favour + rng.gumbel(size=favour.shape)), -1)[..., :2]
    got = specialisation(table, np.ones((150, 5), bool), sequence % 2, 2, sequence)
    same(got.chance_uniform, 2 / 5)
    # The line itself is uncertain, and half of the label's own tokens make it: compare with 2/5.
    covered = np.abs(got.share - 2 / 5) <= got.half_width
    assert 0.92 <= covered.mean() <= 0.97
    assert abs(got.share.mean() - 2 / 5) < 1e-9


def test_blocks_of_units_change_nothing(labelled, monkeypatch):
    table, mask, label, sequence = labelled
    whole = specialisation(table, mask, label, 4, sequence)
    monkeypatch.setattr("moejax.analysis.routing.tables.BLOCK_CELLS", 25)
    parts = specialisation(table, mask, label, 4, sequence)
    same(parts.share, whole.share)
    same(parts.half_width, whole.half_width)


# ---- vocabulary


@pytest.mark.parametrize("top", [1, 4])
def test_vocabulary_equals_loops(rng, top):
    table, mask = random_table(rng, tokens=150)
    table = table[:, :, :top]
    ids = rng.integers(-1, 25, 150) * 1000
    got = vocabulary.vocabulary_specialisation(table, mask, ids, floor=5, permutations=2, seed=3)
    frequent = {x: c for x, c in sorted(Counter(ids.tolist()).items()) if x >= 0 and c >= 5}
    assert 5 < len(frequent) < 25
    assert dict(zip(got.id_V.tolist(), got.count_V.tolist(), strict=True)) == frequent

    def favourites(layer, ids):
        for x in frequent:
            used = Counter(
                e for t in range(150) if ids[t] == x for e in chosen(table, mask, layer, t)
            )
            best = min(used, key=lambda e: (-used[e], e), default=-1)
            yield best, used[best] / sum(used.values()) if used else math.nan

    kept = np.where(np.isin(ids, list(frequent)), ids, -1)
    deals = information.shuffled(kept, None, 2, 3)
    for layer in range(3):
        want = list(favourites(layer, ids))
        assert got.favourite_LV[layer].tolist() == [e for e, _ in want]
        same(got.share_LV[layer], [s for _, s in want])
        same(got.observed[layer], mean(s for _, s in want if s == s))
        chance = [mean(s for _, s in favourites(layer, d) if s == s) for d in deals]
        same(got.chance[layer], mean(chance))


def test_H4_vocabulary_of_first_choices_is_olmoes_script(rng):
    """Per id the share of its most frequent top-1 expert, averaged over ids with >= 10 tokens."""
    table, mask = random_table(rng, layers=1, tokens=300)
    ids = rng.integers(0, 20, 300)
    got = vocabulary.vocabulary_specialisation(table[:, :, :1], mask, ids)
    shares = []
    for x in range(20):
        first = [first_choice(table, mask, 0, t) for t in range(300) if ids[t] == x]
        if len(first) >= 10:
            first = [e for e in first if e is not None]
            shares.append(Counter(first).most_common(1)[0][1] / len(first))
    same(got.observed, mean(shares))


def test_vocabulary_of_ids_without_a_relation_is_at_chance(rng):
    """10 tokens an id, 64 even experts: about 0.16, not 1/64."""
    expert = rng.integers(0, 64, (1, 5000, 1))
    got = vocabulary.vocabulary_specialisation(
        expert, np.ones((1, 64), bool), np.repeat(np.arange(500), 10)
    )
    assert 0.14 < got.observed[0] < 0.18
    assert abs(got.above_chance[0]) < 0.01
    hashed = np.repeat(np.arange(500), 10)[None, :, None] % 64
    got = vocabulary.vocabulary_specialisation(
        hashed, np.ones((1, 64), bool), np.repeat(np.arange(500), 10)
    )
    same([got.observed, got.above_chance], [[1], [1]])


def test_no_frequent_id():
    got = vocabulary.vocabulary_specialisation(
        np.zeros((1, 3, 1), int), np.ones((1, 2), bool), np.arange(3)
    )
    assert got.id_V.size == 0 and np.isnan(got.observed[0]) and np.isnan(got.chance[0])


# ---- divergence


def slow_js(p, q):
    total = 0.0
    for x, y in zip(p, q, strict=True):
        m = (x + y) / 2
        total += sum(v / 2 * math.log(v / m) for v in (x, y) if v > 0)
    return total


def slow_normalised(p, q, experts):
    h = [-sum(x * math.log(x) for x in r if x > 0) for r in (p, q)]
    return slow_js(p, q) / (math.log(experts) - sum(h) / 2)


def test_divergence_of_two_distributions(rng):
    p, q = rng.dirichlet(np.ones(5), (2, 30))
    p[0, :2], q[0, 2:] = 0, 0
    p, q = (x / x.sum(-1, keepdims=True) for x in (p, q))
    same(div.js_divergence(p, q), [slow_js(*row) for row in zip(p, q, strict=True)])
    same(
        div.normalised_js_divergence(p, q, 6),
        [slow_normalised(*row, 6) for row in zip(p, q, strict=True)],
    )
    one, other = np.eye(4)[0], np.eye(4)[1]
    same(div.js_divergence(one, other), LN2)
    same(div.normalised_js_divergence(one, other, 4), LN2 / math.log(4))
    half = np.array([0.5, 0.5, 0, 0])
    same(div.normalised_js_divergence(half, half[::-1], 4), 1)  # the most that entropy allows
    assert div.js_divergence(half, half) == 0
    assert np.isnan(div.normalised_js_divergence(np.full(4, 0.25), np.full(4, 0.25), 4))
    assert np.isnan(div.js_divergence(half, half * np.nan))


def shares(table, mask, layer, tokens):
    used = Counter(e for t in tokens for e in chosen(table, mask, layer, t))
    n = sum(used.values())
    return [used[e] / n for e in range(mask.shape[1])] if n else None


def test_divergence_to_a_reference_equals_loops(labelled):
    table, mask, label, sequence = labelled
    got = div.divergence_to_reference(table, mask, label, 4, 1, sequence)
    for layer in range(3):
        for g in range(4):
            tokens = [np.flatnonzero(label == x) for x in (g, 1)]
            p, q = (shares(table, mask, layer, t) for t in tokens)
            if g in (1, 3):
                assert np.isnan(got.js.plug_in[layer, g])
                continue
            assert got.units[g] == len(set(sequence[label == g].tolist()))
            js, normal = got.js, got.normalised
            same(js.plug_in[layer, g], slow_js(p, q))
            same(normal.plug_in[layer, g], slow_normalised(p, q, mask[layer].sum()))
            chance = js.chance[layer, g]
            assert 0 < chance < LN2
            same(js.adjusted[layer, g], LN2 * (js.plug_in[layer, g] - chance) / (LN2 - chance))
            chance = normal.chance[layer, g]
            same(normal.adjusted[layer, g], (normal.plug_in[layer, g] - chance) / (1 - chance))
    assert got.units.tolist()[3] == 0


def test_divergence_of_router_probabilities_is_that_of_their_means(labelled, rng):
    _, mask, label, sequence = labelled
    probs = rng.dirichlet(np.ones(6), (3, 60))
    probs[0, 3] = np.nan
    got = div.divergence_to_reference(probs, mask, label, 3, 1, sequence)
    for layer in range(3):
        sums = [np.nansum(probs[layer, label == g] * mask[layer], 0) for g in (0, 1)]
        p, q = ((x / x.sum()).tolist() for x in sums)
        same(got.js.plug_in[layer, 0], slow_js(p, q))
        same(got.normalised.plug_in[layer, 0], slow_normalised(p, q, mask[layer].sum()))


def test_chance_is_the_mean_over_all_deals_of_sequences(rng):
    """Two labels with two sequences each: all 6 deals can be listed."""
    table, mask = random_table(rng, layers=1, tokens=40)
    sequence = np.repeat(np.arange(4), 10)
    label = sequence // 2
    got = div.divergence_to_reference(table, mask, label, 2, 0, sequence, permutations=3000)
    every = []
    for a in range(4):
        for b in range(a):
            heap = np.isin(sequence, [a, b])
            p, q = (shares(table, mask, 0, np.flatnonzero(x)) for x in (heap, ~heap))
            every.append(slow_js(p, q))
    assert got.js.chance[0, 1] == pytest.approx(mean(every), rel=0.05)
    alone = div.divergence_to_reference(table, mask, label, 2, 0, sequence // 2)
    assert np.isnan(alone.js.chance[0, 1]) and np.isfinite(alone.js.plug_in[0, 1])


def test_parallel_units_are_swapped_and_the_rest_left_out(rng):
    table, mask = random_table(rng, layers=1, tokens=60)
    label = np.tile(np.repeat([0, 1], 5), 6)
    unit = np.repeat(np.arange(6), 10)
    unit[:3] = -1
    unit[(unit == 5) & (label == 1)] = 9  # units 5 and 9 have no partner
    got = div.divergence_to_reference(
        table, mask, label, 2, 0, np.arange(60), parallel_T=unit, permutations=4000
    )
    used = [np.flatnonzero((label == g) & (unit >= 0) & (unit < 5)) for g in (1, 0)]
    p, q = (shares(table, mask, 0, t) for t in used)
    assert got.units.tolist() == [6, 5]
    same(got.js.plug_in[0, 1], slow_js(p, q))
    every = []
    for bits in range(32):
        swap = np.array([bits >> u & 1 for u in range(5)])
        side = [
            np.flatnonzero((unit >= 0) & (unit < 5) & ((label ^ swap[unit % 5]) == g))
            for g in (0, 1)
        ]
        every.append(slow_js(*(shares(table, mask, 0, t) for t in side)))
    assert got.js.chance[0, 1] == pytest.approx(mean(every), rel=0.05)


def test_adjusted_divergence_is_unbiased_without_a_difference_and_right_with_one(rng):
    """80 layers are 80 corpora: languages 0 and 1 alike, 2 with half of its tokens elsewhere; each
    sequence has favourites of its own."""
    sequence = np.repeat(np.arange(60), 30)
    label = sequence % 3
    favour = np.log(rng.dirichlet(np.full(12, 2.0), (80, 60)))[:, sequence]
    table = (favour + rng.gumbel(size=favour.shape)).argmax(-1)
    table = np.where((label == 2) & (rng.random(table.shape) < 0.5), 12 + table % 4, table)
    mask = np.ones((80, 16), bool)
    got = div.divergence_to_reference(table[..., None], mask, label, 3, 0, sequence)
    same_plug, same_adjusted = got.js.plug_in[:, 1].mean(), got.js.adjusted[:, 1].mean()
    assert same_plug > 0.005
    assert abs(same_adjusted) < 0.1 * same_plug
    normal = got.normalised
    assert abs(normal.adjusted[:, 1].mean()) < 0.1 * normal.plug_in[:, 1].mean()
    even, moved = np.append(np.full(12, 1 / 12), np.zeros(4)), np.full(16, 1 / 24)
    moved[12:] = 0.5 / 4
    truth = slow_js(even, moved)
    bias = got.js.plug_in[:, 2].mean() - truth, got.js.adjusted[:, 2].mean() - truth
    assert abs(bias[1]) < bias[0] / 2


@pytest.mark.parametrize("soft", [False, True])
def test_divergence_of_parallel_units_equals_loops(rng, soft):
    table, mask = random_table(rng, tokens=80)
    probs = rng.dirichlet(np.ones(6), (3, 80))
    probs[0, 7] = np.nan
    label, unit = np.tile(np.arange(2), 40), np.repeat(np.arange(10), 8)
    unit[:8] = -1
    label[unit == 4] = 1  # only in one language
    routing = probs if soft else table
    got = div.parallel_divergence(routing, mask, label, 3, 1, unit)
    assert got.units.tolist() == [8, 9, 0]
    for layer in range(3):
        values = []
        for u in (1, 2, 3, 5, 6, 7, 8, 9):
            pair = []
            for g in (0, 1):
                tokens = np.flatnonzero((unit == u) & (label == g))
                if soft:
                    q = np.nanmean(probs[layer, tokens], 0) * mask[layer]
                    pair.append((q / q.sum()).tolist())
                else:
                    pair.append(shares(table, mask, layer, tokens))
            values.append(slow_normalised(*pair, mask[layer].sum()))
        same(got.value.plug_in[layer, 0], mean(values))
        t = stats.t.ppf(0.975, 7) * np.std(values, ddof=1) / math.sqrt(8)
        same(got.half_width[layer, 0], t)
        chance = got.value.chance[layer, 0]
        same(got.value.adjusted[layer, 0], (mean(values) - chance) / (1 - chance))
    assert np.isnan(got.value.plug_in[:, 1:]).all()


def test_chance_of_parallel_units_removes_the_bias_of_short_sentences(rng):
    """60 verses, each with experts of its own, of 12 tokens in either of two languages that do not
    differ: the plug-in value is all bias."""
    unit, label = np.repeat(np.arange(60), 24), np.tile(np.arange(24) % 2, 60)
    favour = np.log(rng.dirichlet(np.full(16, 1.0), (5, 60)))[:, unit]
    table = (favour + rng.gumbel(size=favour.shape)).argmax(-1)[..., None]
    got = div.parallel_divergence(table, np.ones((5, 16), bool), label, 2, 0, unit)
    assert got.value.plug_in[:, 1].mean() > 0.1
    assert abs(got.value.adjusted[:, 1].mean()) < 0.02


def test_a_reference_that_is_no_label():
    with pytest.raises(ValueError, match="reference 3 is not one of 3 labels"):
        div.divergence_to_reference(
            np.zeros((1, 2, 1), int), np.ones((1, 2), bool), np.zeros(2), 3, 3, np.zeros(2)
        )
