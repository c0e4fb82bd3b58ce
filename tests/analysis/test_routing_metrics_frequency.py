"""Frequencies by language: kinds of experts, similarity, families; against loops and known
answers."""

from __future__ import annotations

import itertools
import statistics

import numpy as np
import pytest
from routing_oracles import mean, same

from moejax.analysis import languages
from moejax.analysis.routing import frequency
from moejax.analysis.routing.specialisation import specialisation


@pytest.fixture
def shares(rng):
    """`[3, 5, 7]` with experts that layers lack, and a language without tokens."""
    mask = rng.random((3, 7)) < 0.8
    mask[:, :3] = True
    share = rng.random((3, 5, 7))
    share[:, 3] = np.nan
    share[~np.broadcast_to(mask[:, None], share.shape)] = np.nan
    return share, mask


def test_frequencies_of_a_top_k_router_sum_to_k(rng):
    """Known answer (iv) of the specification: over the experts k, on average k/N."""
    table = np.stack([rng.permutation(6)[:2] for _ in range(60)])[None]
    found = specialisation(
        table, np.ones((1, 6), bool), rng.integers(0, 3, 60), 3, np.arange(60) // 5
    )
    np.testing.assert_allclose(found.share.sum(-1), 2.0)
    np.testing.assert_allclose(found.chance_uniform, 2 / 6)


# ---- kinds


def test_kinds_equal_loops(shares):
    share, mask = shares
    got = frequency.usage(share, mask, 1.4)
    there = [0, 1, 2, 4]
    for layer in range(3):
        experts = np.flatnonzero(mask[layer])
        even = mean(share[layer, g, e] for g in there for e in experts)
        for e in range(7):
            if not mask[layer, e]:
                assert got.kind_LE[layer, e] == -1 == got.owner_LE[layer, e]
                continue
            high = [g for g in there if share[layer, g, e] >= 1.4 * even]
            assert np.flatnonzero(got.high_LGE[layer, :, e]).tolist() == high
            assert got.languages_LE[layer, e] == len(high)
            kind = "several" if len(high) > 1 else "specific" if high else "ordinary"
            kind = "shared" if len(high) == 4 else kind
            if all(share[layer, g, e] <= even / 1.4 for g in there):
                kind = "unused"
            assert frequency.KINDS[got.kind_LE[layer, e]] == kind
            assert got.owner_LE[layer, e] == (high[0] if kind == "specific" else -1)
    counts = got.counts()
    assert counts.shape == (3, 5) and (counts.sum(1) == mask.sum(1)).all()


def test_kinds_by_hand():
    share = np.array([[[0.9, 0.8, 0.1, 0.1, 0.3], [0.9, 0.1, 0.7, 0.1, 0.3]]])
    found = frequency.usage(share, np.ones((1, 5), bool), 1.5)
    kinds = [frequency.KINDS[kind] for kind in found.kind_LE[0]]
    assert kinds == ["shared", "specific", "specific", "unused", "ordinary"]
    assert found.owner_LE.tolist() == [[-1, 0, 1, -1, -1]]
    alone = frequency.usage(share[:, :1], np.ones((1, 5), bool), 1.5)
    assert frequency.SHARED not in alone.kind_LE  # of one language nothing is shared
    with pytest.raises(ValueError, match="not above 1"):
        frequency.usage(share, np.ones((1, 5), bool), 1.0)


# ---- similarity


def test_similarity_equals_loops(shares):
    share, mask = shares
    got = frequency.language_similarity(share, mask)
    there = [0, 1, 2, 4]
    assert np.isnan(got[:, 3]).all() and np.isnan(got[:, :, 3]).all()
    for layer, g, h in itertools.product(range(3), there, there):
        experts = np.flatnonzero(mask[layer])
        middle = {e: mean(share[layer, one, e] for one in there) for e in experts}
        rows = [[share[layer, one, e] - middle[e] for e in experts] for one in (g, h)]
        same(got[layer, g, h], statistics.correlation(*rows))
    flat = [[share[x, g, e] for x in range(3) for e in np.flatnonzero(mask[x])] for g in there]
    flat = np.array(flat) - np.mean(flat, 0)
    want = np.corrcoef(flat)
    np.testing.assert_allclose(
        frequency.overall_similarity(share, mask)[np.ix_(there, there)], want
    )


def test_unrelated_languages_average_minus_one_over_g_minus_one(rng):
    found = frequency.overall_similarity(rng.random((4, 6, 500)), np.ones((4, 500), bool))
    off = found[~np.eye(6, dtype=bool)]
    assert abs(off.mean() + 1 / 5) < 0.01 and np.abs(off + 1 / 5).max() < 0.1


def test_similarity_of_nothing():
    mask = np.ones((1, 3), bool)
    assert np.isnan(frequency.language_similarity(np.full((1, 2, 3), np.nan), mask)).all()
    equal = frequency.language_similarity(np.full((1, 2, 3), 0.5), mask)
    assert np.isnan(equal).all()  # no deviation


# ---- relatives


def test_relatedness_equals_loops_over_all_deals(rng):
    similar = rng.random((5, 5))
    similar = (similar + similar.T) / 2
    similar[4] = similar[:, 4] = np.nan  # a language without tokens
    groups = ["a", "a", "b", "", "b"]
    got = frequency.relatedness(similar, groups, deals=2999)
    assert got.pairs == 1  # 0 and 1; 4 is left out, and 3 has no group

    def difference(names):
        pairs = list(itertools.combinations(range(3), 2))
        inside = [similar[i, j] for i, j in pairs if names[i] == names[j]]
        across = [similar[i, j] for i, j in pairs if names[i] != names[j]]
        return mean(inside), mean(across)

    within, between = difference("aab")
    same(got.within, within)
    same(got.between, between)
    same(got.difference, within - between)
    deals = [difference(names) for names in itertools.permutations("aab")]
    larger = mean(a - b >= within - between - 1e-12 for a, b in deals)
    assert abs(got.p_value - larger) < 0.04
    nearest = [max((j for j in range(3) if j != i), key=lambda j: similar[i, j]) for i in (0, 1)]
    same(got.nearest, mean(j in (0, 1) for j in nearest))


def test_relatives_are_found_and_strangers_are_not(rng):
    """Six languages of three families of two; and of families that mean nothing."""
    family = np.repeat(rng.random((3, 40)), 2, axis=0)
    share = (family + 0.2 * rng.random((6, 40)))[None]
    similar = frequency.language_similarity(share, np.ones((1, 40), bool))[0]
    found = frequency.relatedness(similar, list("aabbcc"))
    assert found.within > 0.8 > found.between and found.nearest == 1.0
    # Of 15 ways to pair six languages one is as good: no p-value below 1/15 is to be had.
    assert abs(found.p_value - 1 / 15) < 0.01
    other = frequency.relatedness(similar, list("abcabc"))
    assert other.difference < 0 and other.p_value > 0.5 and other.nearest == 0.0
    for groups in ("aaaaaa", "abcdef", [""] * 6):
        assert np.isnan(frequency.relatedness(similar, list(groups)).p_value)


# ---- over all layers


def test_a_choice_over_all_layers_equals_loops(rng):
    mask = np.array([[True] * 4, [True, True, True, False]])
    probs = rng.random((2, 30, 4)).astype(np.float16)
    probs[1, :, 3] = 0
    label = rng.integers(-1, 3, 30)
    got = frequency.cross_layer_frequency(probs, mask, label, 4, 1.5)
    want = np.zeros((2, 4, 4))
    for t in range(30):
        pairs = [(x, e) for x in range(2) for e in range(4) if mask[x, e]]
        for x, e in sorted(pairs, key=lambda pair: -float(probs[pair[0], t, pair[1]]))[:3]:
            if label[t] >= 0:
                want[x, label[t], e] += 1 / (label == label[t]).sum()
    np.testing.assert_allclose(got[:, :3][:, :, :3], want[:, :3][:, :, :3])
    assert np.isnan(got[:, 3]).all() and np.isnan(got[1, :, 3]).all()
    np.testing.assert_allclose(np.nansum(got[:, :3], (0, 2)), 3.0)
    with pytest.raises(ValueError, match="of 7"):
        frequency.cross_layer_frequency(probs, mask, label, 3, 4)


# ---- the table of languages


def test_the_table_has_the_languages_of_the_labelled_texts():
    from moejax.data.evaluation.languages import VERSIONS
    from moejax.data.evaluation.udhr import CODES

    assert {*VERSIONS, *CODES.values()} <= set(languages.LANGUAGES)
    assert len(languages.LANGUAGES) == len({one.name for one in languages.LANGUAGES.values()})


def test_languages_by_code_group_and_order():
    assert languages.language_of("pt_BR").name == "Portuguese"
    assert languages.language_of("xx") is None and languages.language_of("") is None
    codes = ["ko", "en", "xx", "de", "fa"]
    assert languages.groups_of(codes, "branch") == ("Korean", "Germanic", "", "Germanic", "Iranian")
    assert languages.groups_of(codes, "script")[-1] == "Arabic"
    assert [codes[i] for i in languages.in_order(codes)] == ["en", "de", "fa", "ko", "xx"]
    with pytest.raises(ValueError, match="one of family, branch, script"):
        languages.groups_of(codes, "continent")
