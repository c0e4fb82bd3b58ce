"""Mutual information: loops, the ends of its range, and that the correction removes the bias.

Measured with 20 simulated corpora each (nats):

    router                                     truth  plug-in  Miller-Madow  - chance  adjusted
    400 ids, 8 tokens each, 16 experts
      no relation                               0.00     0.97          0.63      0.00      0.00
      half of the tokens to their id's expert   0.81     1.56          1.35      0.59      0.91
      all of them                               2.77     2.77          2.77      1.80      2.77
    4 languages, 20 sequences of 40 tokens      0.00     0.11          0.10      0.00      0.00
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from routing_oracles import chosen, entropy, random_table, same

from moejax.analysis.routing import information as info


def slow(table, mask, layer, label):
    """n, labels, plug-in, Miller-Madow, ceiling by counting pairs."""
    pairs = [
        (label[t], e)
        for t in range(len(label))
        if label[t] >= 0
        for e in chosen(table, mask, layer, t)
    ]
    joint, x, e = Counter(pairs), Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    n = len(pairs)
    plug_in = sum(c / n * math.log((c / n) / (x[a] / n * e[b] / n)) for (a, b), c in joint.items())
    correction = ((len(x) - 1) + (len(e) - 1) - (len(joint) - 1)) / (2 * n)
    active = [len(chosen(table, mask, layer, t)) for t in range(len(label)) if label[t] >= 0]
    within = sum(k * math.log(k) for k in active if k) / n
    return n, len(x), plug_in, plug_in + correction, min(entropy(x), entropy(e) - within)


def test_equals_a_loop_over_pairs(rng):
    table, mask = random_table(rng)
    label = rng.integers(-1, 7, 60)
    got = info.mutual_information(table, mask, label, permutations=3, seed=5)
    deals = info.shuffled(label, None, 3, 5)
    for layer in range(3):
        n, labels, plug_in, corrected, ceiling = slow(table, mask, layer, label)
        assert (got.assignments[layer], got.labels[layer]) == (n, labels)
        same(got.plug_in[layer], plug_in)
        same(got.miller_madow[layer], corrected)
        same(got.ceiling[layer], ceiling)
        chance = sum(slow(table, mask, layer, deal)[2] for deal in deals) / 3
        same(got.chance[layer], chance)
        same(got.adjusted[layer], ceiling * (plug_in - chance) / (ceiling - chance))
        same(got.share[layer], (plug_in - chance) / (ceiling - chance))


def test_shuffles_keep_counts_and_deal_whole_sequences(rng):
    label = rng.integers(-1, 4, 40)
    for deal in info.shuffled(label, None, 3, 0):
        assert Counter(deal.tolist()) == Counter(label.tolist())
        assert ((deal < 0) == (label < 0)).all()
        assert (deal != label).any()
    sequence = np.repeat(rng.permutation(10), 4)
    label = (sequence % 3)[:]
    label[:4] = -1
    for deal in info.shuffled(label, sequence, 3, 0):
        assert all(len(set(deal[sequence == s].tolist())) == 1 for s in range(10))
        assert (deal[:4] == -1).all()
        assert Counter(deal.tolist()) == Counter(label.tolist())  # sequences of equal length
    with pytest.raises(ValueError, match="a label changes within a sequence"):
        info.shuffled(np.arange(4), np.zeros(4), 1, 0)


def test_undefined_is_nan():
    mask = np.ones((1, 4), bool)
    silent = info.mutual_information(np.full((1, 5, 2), 9), mask, np.arange(5))
    assert silent.assignments == 0 and np.isnan(silent.plug_in) and np.isnan(silent.adjusted)
    one = info.mutual_information(np.zeros((1, 1, 1), int), mask, np.zeros(1, int))
    assert one.plug_in == 0 and one.ceiling == 0 and np.isnan(one.adjusted)
    # As many labels as tokens: nothing can be told from a shuffle.
    each = info.mutual_information(np.arange(4).reshape(1, 4, 1), mask, np.arange(4))
    assert each.plug_in == pytest.approx(math.log(4)) and np.isnan(each.adjusted)


def test_sets_that_are_a_function_of_the_label_reach_the_ceiling(rng):
    """k of E experts by label, and k differs between labels."""
    sets = np.argsort(rng.random((30, 8)), -1)[:, :3]
    sets[::2, 2] = 99
    label = rng.integers(0, 30, 600)
    got = info.mutual_information(sets[label][None], np.ones((1, 8), bool), label)
    same(got.plug_in, got.ceiling)
    same(got.share, 1)
    assert 0 < got.chance < got.ceiling


# ---- bias


def corpora(rng, own, count=40):
    """Tokens of 400 ids, 8 of each; a token takes its id's expert with probability `own`, else one
    of 16 at random. Yields the estimates."""
    label = np.repeat(np.arange(400), 8)
    mask = np.ones((1, 16), bool)
    for _ in range(count):
        expert = rng.integers(0, 16, label.size)
        expert = np.where(rng.random(label.size) < own, label % 16, expert)
        yield info.mutual_information(expert[None, :, None], mask, label, permutations=2)


def truth(own):
    """Of that router, from its probabilities: H(E) - H(E | id), E even."""
    p = [own + (1 - own) / 16] + [(1 - own) / 16] * 15
    return math.log(16) + sum(x * math.log(x) for x in p if x)


def means(estimates):
    names = ("plug_in", "miller_madow", "adjusted")
    values = [[float(getattr(e, name)[0]) for name in names] for e in estimates]
    return dict(zip(names, np.mean(values, 0), strict=True))


@pytest.mark.parametrize("own, better", [(0.0, 50), (0.25, 20), (0.5, 6), (0.75, 3)])
def test_adjusted_information_of_rare_ids_is_nearer_to_the_truth(rng, own, better):
    got, want = means(corpora(rng, own, 10)), truth(own)
    bias = {name: value - want for name, value in got.items()}
    assert bias["plug_in"] > 0.5
    assert abs(bias["adjusted"]) < bias["plug_in"] / better
    # Miller-Madow leaves most of it where cells are nearly empty.
    assert 2 * abs(bias["adjusted"]) < bias["miller_madow"] < bias["plug_in"]


def test_information_that_has_no_bias_is_left_alone(rng):
    assert means(corpora(rng, 1.0, 3))["adjusted"] == pytest.approx(truth(1.0), abs=1e-6)


def test_labels_of_sequences_need_sequences_dealt(rng):
    """No relation to the language, but each of 20 sequences has favourite experts of its own. The
    layers are 60 such corpora."""
    sequence = np.repeat(np.arange(20), 40)
    label = sequence % 4
    favour = np.log(rng.dirichlet(np.full(8, 0.5), (60, 20)))[:, sequence]
    expert = (favour + rng.gumbel(size=favour.shape)).argmax(-1)[..., None]
    mask = np.ones((60, 8), bool)
    got = info.mutual_information(expert, mask, label, sequence_T=sequence, permutations=20)
    plug_in = got.plug_in.mean()
    assert plug_in > 0.1
    assert abs(got.adjusted.mean()) < 0.1 * plug_in
    # Dealing tokens, or an expansion in their number, misses it: they are not independent.
    assert info.mutual_information(expert, mask, label).adjusted.mean() > 0.8 * plug_in
    assert got.miller_madow.mean() > 0.8 * plug_in


def test_few_labels_of_independent_tokens_are_corrected_alike_by_both(rng):
    label, expert = rng.integers(0, 3, 500), rng.integers(0, 8, (200, 500, 1))
    got = info.mutual_information(expert, np.ones((200, 8), bool), label)
    assert got.plug_in.mean() == pytest.approx((3 - 1) * (8 - 1) / 1000, rel=0.1)
    assert abs(got.miller_madow.mean()) < 0.001
    assert abs(got.adjusted.mean()) < 0.001
