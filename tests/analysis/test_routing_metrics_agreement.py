"""Two tables of the same tokens, or of neighbours: saturation, churn, reuse, matching; co-use."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from routing_oracles import chosen, first_choice, mean, random_table, same

from moejax.analysis.routing import coactivation as co
from moejax.analysis.routing import compute, matching, reuse, stability, tables

TABLE = np.array([[[0, 1, 2], [0, 2, 1], [0, 3, 1]]])
FOUR = np.ones((1, 4), bool)


def close(got, want):
    """Equal as far as a simulation of a few thousand draws can tell."""
    np.testing.assert_allclose(got, want, rtol=0.03, atol=0.01)


# ---- saturation, churn


def test_H4_saturation_of_identical_and_of_disjoint_sets():
    other = np.array([[[2, 1, 0], [1, 0, 2], [1, 3, 0]]])
    assert stability.saturation(TABLE, TABLE, FOUR).observed == 1
    assert stability.saturation(other, TABLE, FOUR).observed == 1
    apart = stability.saturation(np.array([[[0, 1]]]), np.array([[[2, 3]]]), FOUR)
    assert (apart.observed, apart.chance_uniform, apart.chance_load) == (0, 0.5, 0)


def test_saturation_counts_what_the_final_choice_holds():
    early, final = np.array([[[0, 1], [2, 9]]]), np.array([[[1, 9], [9, 9]]])
    got = stability.saturation(early, final, FOUR)
    assert (got.observed, got.tokens) == (1, 1)
    assert np.isnan(stability.saturation(early, np.full((1, 2, 2), 9), FOUR).observed)
    with pytest.raises(ValueError, match="tables of 2 and 1 tokens"):
        stability.saturation(early, final[:, :1], FOUR)


@pytest.mark.parametrize("top", [1, 4])
def test_saturation_and_its_chances_equal_loops(rng, top):
    early, mask = random_table(rng)
    final = random_table(rng, slots=5)[0]
    early, final = early[:, :, :top], final[:, :, :top]
    got, by_token = (f(early, final, mask) for f in (stability.saturation, stability.overlap))
    gone = stability.churn(early, final, mask)
    for layer in range(3):
        pairs = [
            (set(chosen(early, mask, layer, t)), set(chosen(final, mask, layer, t)))
            for t in range(60)
        ]
        same(by_token[layer], [len(a & b) / len(b) if b else math.nan for a, b in pairs])
        pairs = [(a, b) for a, b in pairs if b]
        same(got.tokens[layer], len(pairs))
        same(got.observed[layer], mean(len(a & b) / len(b) for a, b in pairs))
        same(got.chance_uniform[layer], mean(len(a) / mask[layer].sum() for a, _ in pairs))
        every = itertools.product([a for a, _ in pairs], [b for _, b in pairs])
        same(got.chance_load[layer], mean(len(a & b) / len(b) for a, b in every))
    for name in ("observed", "chance_uniform", "chance_load"):
        same(getattr(gone, name), 1 - getattr(got, name))


def test_chance_of_saturation_by_simulation(rng):
    """Sets drawn anew, evenly and unevenly: the observed value meets its chance level."""
    weight = np.array([8.0, 4, 2, 1, 1, 1])
    for odds in (np.ones(6), weight):
        keys = rng.random((2, 4000, 6)) ** (1 / odds)
        early, final = np.argsort(-keys, -1)[:, :, :2]
        got = stability.saturation(early[None], final[None], np.ones((1, 6), bool))
        close(got.observed, got.chance_load)
        same(got.chance_uniform, 2 / 6)
        assert (got.chance_load > 0.4) == (odds is weight)


# ---- reuse


def test_reuse_of_neighbours_equals_loops(rng):
    table, mask = random_table(rng, tokens=90)
    sequence = np.sort(rng.integers(0, 12, 90))
    got, by_token = (
        f(table, mask, sequence) for f in (reuse.consecutive_reuse, reuse.reuse_by_token)
    )
    for layer in range(3):
        sets = [set(chosen(table, mask, layer, t)) for t in range(90)]
        pairs = [
            (t, sets[t - 1], sets[t])
            for t in range(1, 90)
            if sequence[t] == sequence[t - 1] and sets[t - 1] and sets[t]
        ]
        want = np.full(90, np.nan)
        for t, a, b in pairs:
            want[t] = len(a & b) / len(b)
        same(by_token[layer], want)
        assert got.pairs[layer] == len(pairs)
        same(got.share[layer], mean(len(a & b) / len(b) for _, a, b in pairs))
        same(got.any[layer], mean(bool(a & b) for _, a, b in pairs))
        every = list(itertools.product([a for _, a, _ in pairs], [b for *_, b in pairs]))
        same(got.chance_share[layer], mean(len(a & b) / len(b) for a, b in every))
        e = int(mask[layer].sum())
        apart = (math.comb(e - len(a), len(b)) / math.comb(e, len(b)) for a, b in every)
        same(got.chance_any[layer], 1 - mean(apart))
        first = [
            (first_choice(table, mask, layer, t - 1), first_choice(table, mask, layer, t))
            for t, _, _ in pairs
        ]
        first = [(a, b) for a, b in first if a is not None and b is not None]
        assert got.first_pairs[layer] == len(first)
        same(got.first[layer], mean(a == b for a, b in first))
        every = itertools.product([a for a, _ in first], [b for _, b in first])
        same(got.chance_first[layer], mean(a == b for a, b in every))


def test_reuse_levels_of_mixtral_and_its_chance_by_simulation(rng):
    table = np.argsort(rng.random((40_000, 8)), -1)[None, :, :2]
    got = reuse.consecutive_reuse(table, np.ones((1, 8), bool), np.arange(40_000) // 100)
    same(got.chance_any, 1 - 6 / 8 * 5 / 7)
    for name in ("share", "any", "first"):
        close(getattr(got, name), getattr(got, f"chance_{name}"))
    close(got.chance_first, 1 / 8)


def test_one_token_has_no_neighbour():
    got = reuse.consecutive_reuse(TABLE[:, :1], FOUR, np.zeros(1))
    assert (got.pairs, got.first_pairs) == (0, 0)
    assert np.isnan([got.share, got.any, got.first, got.chance_share, got.chance_any]).all()
    apart = reuse.consecutive_reuse(TABLE, FOUR, np.arange(3))
    assert apart.pairs == 0
    full = reuse.consecutive_reuse(np.tile(np.arange(4), (1, 5, 1)), FOUR, np.zeros(5))
    assert (full.share, full.chance_share, full.any, full.chance_any) == (1, 1, 1, 1)


# ---- co-activation


def test_H4_co_activation_of_all_pairs():
    got = co.co_activation(TABLE, FOUR)[0]
    want = {(0, 1): 1, (0, 2): 2 / 3, (0, 3): 1 / 3, (2, 0): 1, (3, 2): 0}
    for place, value in want.items():
        assert got[place] == pytest.approx(value)


def test_H4_co_activation_of_neighbours_only():
    got = co.co_activation_adjacent_ranks(TABLE, FOUR)[0]
    for place, value in {(0, 1): 1 / 3, (2, 0): 0.5, (2, 1): 1}.items():
        assert got[place] == pytest.approx(value)


@pytest.mark.parametrize("by_product", [False, True])
def test_co_activation_equals_loops(rng, monkeypatch, by_product):
    monkeypatch.setattr("moejax.analysis.routing.pairs.PAIR_COST", 1e9 if by_product else 0)
    monkeypatch.setattr(co, "BLOCK_CELLS", 70)
    table, mask = random_table(rng)
    both, adjacent = co.co_activation(table, mask), co.co_activation_adjacent_ranks(table, mask)
    lift = co.lift(both, tables.counts(table, mask), 60)
    for layer in range(3):
        sets = [chosen(table, mask, layer, t) for t in range(60)]
        rows = [[int(e) for e in row] for row in table[layer]]
        for i, j in itertools.product(range(6), repeat=2):
            n_i, n_j = (sum(e in s for s in sets) for e in (i, j))
            if not (n_i and mask[layer, j]):
                assert np.isnan(both[layer, i, j]) and np.isnan(adjacent[layer, i, j])
                continue
            together = 0 if i == j else sum(i in s and j in s for s in sets)
            beside = sum(
                {a, b} == {i, j} and a != b for row in rows for a, b in itertools.pairwise(row)
            )
            same(both[layer, i, j], together / n_i)
            same(adjacent[layer, i, j], beside / n_i)
            same(lift[layer, i, j], together / n_i / (n_j / 60) if n_j else math.nan)


def test_chance_of_co_activation_by_simulation(rng):
    """Tokens draw 1 to 4 of 7 experts at random."""
    table = np.argsort(rng.random((20_000, 7)), -1)[None, :, :4]
    table = np.where(np.arange(4) < rng.integers(1, 5, (20_000, 1)), table, 7)
    mask = np.ones((1, 7), bool)
    active = compute.active_experts(table, mask)
    off = ~np.eye(7, dtype=bool)
    close(co.co_activation(table, mask)[0][off].mean(), co.chance_co_activation(active, [7]))
    close(
        co.co_activation_adjacent_ranks(table, mask)[0][off].mean(),
        co.chance_co_activation_adjacent_ranks(active, [7]),
    )
    same(co.chance_co_activation(np.full((1, 9), 3), [7]), 2 / 6)


# ---- matching of seeds


def brute_force(both):
    best = max(
        itertools.permutations(range(both.shape[1]), both.shape[0]),
        key=lambda p: sum(both[i, j] for i, j in enumerate(p)),
    )
    return sum(both[i, j] for i, j in enumerate(best))


@pytest.mark.parametrize("by_product", [False, True])
def test_matching_is_the_best_of_all_permutations(rng, monkeypatch, by_product):
    monkeypatch.setattr("moejax.analysis.routing.pairs.PAIR_COST", 1e9 if by_product else 0)
    monkeypatch.setattr("moejax.analysis.routing.pairs.BLOCK_CELLS", 200)
    first, mask_a = random_table(rng)
    second, mask_b = random_table(rng, slots=3)
    mask_b[0, 3] = False
    got = matching.match_experts(first, mask_a, second, mask_b, permutations=3, seed=4)
    orders = np.random.default_rng(4)
    orders = [orders.permutation(60) for _ in range(3)]
    for layer in range(3):
        a = [chosen(first, mask_a, layer, t) for t in range(60)]
        b = [chosen(second, mask_b, layer, t) for t in range(60)]
        ours, theirs = np.flatnonzero(mask_a[layer]), np.flatnonzero(mask_b[layer])

        def usage(b, a=a, ours=ours, theirs=theirs):
            table = [
                [sum(i in x and j in y for x, y in zip(a, b, strict=True)) for j in theirs]
                for i in ours
            ]
            table = np.array(table)
            return table if len(ours) <= len(theirs) else table.T

        most = max(sum(map(len, a)), sum(map(len, b)))
        same(got.overlap[layer], brute_force(usage(b)) / most)
        dealt = [brute_force(usage([b[t] for t in order])) / most for order in orders]
        same(got.chance[layer], mean(dealt))
        partners = got.partner_LE[layer][ours]
        partners = partners[partners >= 0].tolist()
        assert len(set(partners)) == len(partners) == min(len(ours), len(theirs))
        assert set(partners) <= set(theirs.tolist())
        assert (got.partner_LE[layer][~mask_a[layer]] == -1).all()


def test_matching_undoes_renamed_experts(rng):
    first, mask = random_table(rng, layers=1, tokens=400)
    name = rng.permutation(6)
    second = np.append(name, np.full(65530, 6))[first]
    got = matching.match_experts(first, mask, second, mask)
    assert got.partner_LE[0].tolist() == name.tolist()
    assert got.overlap == 1 and got.above_chance == 1 and 0.4 < got.chance[0] < 0.6
    renamed = matching.relabel(first, mask, got.partner_LE, 6)
    assert stability.saturation(renamed, second, mask).observed == 1
    assert stability.saturation(first, second, mask).observed < 1


def test_unrelated_seeds_match_at_chance(rng):
    mask = np.ones((1, 8), bool)
    first, second = np.argsort(rng.random((2, 3000, 8)), -1)[:, None, :, :2]
    got = matching.match_experts(first, mask, second, mask, permutations=4)
    assert abs(got.above_chance[0]) < 0.02
    assert got.chance[0] > 2 / 8  # the best matching of noise is above k/E


def test_runs_that_cannot_be_matched():
    with pytest.raises(ValueError, match="runs of 1 and 1 layers, 3 and 2 tokens"):
        matching.match_experts(TABLE, FOUR, TABLE[:, :2], FOUR)
    got = matching.match_experts(np.full((1, 3, 2), 9), FOUR, np.full((1, 3, 2), 9), FOUR)
    assert np.isnan(got.overlap[0]) and (got.partner_LE == -1).all()
    missing = matching.relabel(TABLE, FOUR, np.array([[2, -1, 0, 1]]), 5)
    assert missing[0, 0].tolist() == [2, 5, 0]
