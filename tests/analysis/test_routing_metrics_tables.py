"""Tables, and what tokens cost: against loops over tokens."""

from __future__ import annotations

import numpy as np
import pytest
from routing_oracles import EMPTY, chosen, random_table, same

from moejax.analysis.routing import compute, tables


@pytest.fixture(params=["uint16", "int64", "int32"])
def trace(request, rng):
    return random_table(rng, dtype=request.param)


def test_slots_members_and_counts_know_empty_ones_in_every_dtype(trace):
    table, mask = trace
    count = tables.counts(table, mask)
    for layer in range(len(mask)):
        sets = [chosen(table, mask, layer, t) for t in range(table.shape[1])]
        member = tables.members(table[layer], mask[layer])
        ids = tables.slots(table[layer], mask[layer])
        for t, want in enumerate(sets):
            assert np.flatnonzero(member[t]).tolist() == sorted(want)
            assert [e for e in ids[t] if e < 6] == want
        assert count[layer].tolist() == [sum(e in s for s in sets) for e in range(6)]


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint32", "uint64", "int64"])
def test_ids_of_any_integer_type(dtype):
    ids = np.array([[0, 1, 120, np.iinfo(dtype).max]], dtype)
    got = tables.slots(ids, np.array([True, False, True] + [True] * 150))
    assert got[0, :2].tolist() == [0, 153]
    assert got[0, 2] == 120
    assert got[0, 3] == (127 if dtype == "int8" else 153)


def test_more_experts_than_ids_of_16_bits_can_name():
    got = tables.slots(np.array([[65534, EMPTY]], np.uint16), np.ones(70_000, bool))
    assert got.tolist() == [[65534, 65535]]


def test_shared_counts_the_intersection(rng):
    first, mask = random_table(rng)
    second = random_table(rng, slots=3, tokens=60)[0]
    for layer in range(3):
        a, b = (tables.slots(x[layer], mask[layer]) for x in (first, second))
        got = tables.shared(a, b, 6)
        for t in range(60):
            want = set(chosen(first, mask, layer, t)) & set(chosen(second, mask, layer, t))
            assert got[t] == len(want)


def test_blocks_of_tokens_and_rows_change_nothing(rng, monkeypatch):
    table, mask = random_table(rng)
    label = rng.integers(-1, 9, 60)
    rows = tables.Rows.of(label)
    whole = tables.counts(table, mask), tables.table(table[0], mask[0], rows)
    monkeypatch.setattr(tables, "BLOCK_TOKENS", 7)
    monkeypatch.setattr(tables, "BLOCK_CELLS", 25)
    np.testing.assert_array_equal(tables.counts(table, mask), whole[0])
    np.testing.assert_array_equal(tables.table(table[0], mask[0], rows), whole[1])
    blocks = [block for block, _ in tables.tables(table[0], mask[0], rows, together=2)]
    assert all((block.stop - block.start) % 2 == 0 for block in blocks[:-1])
    assert len(blocks) > 1


@pytest.mark.parametrize("high", [5, 70_000])
def test_rows_hold_the_tokens_of_each_label(rng, high):
    label = rng.integers(-2, high, 200)
    rows = tables.Rows.of(label)
    assert rows.value_R.tolist() == sorted(set(label[label >= 0].tolist()))
    for r, value in enumerate(rows.value_R):
        part = rows.token_N[rows.start_R1[r] : rows.start_R1[r + 1]]
        assert part.tolist() == np.flatnonzero(label == value).tolist()
    assert len(tables.Rows.of(np.full(3, -1))) == 0


def test_tables_of_choices_and_of_probabilities(rng, monkeypatch):
    table, mask = random_table(rng)
    label = rng.integers(-1, 4, 60)
    rows = tables.Rows.of(label)
    probs = rng.dirichlet(np.ones(6), 60)
    probs[5] = np.nan
    for cells in (tables.BLOCK_CELLS, 13):
        monkeypatch.setattr(tables, "BLOCK_CELLS", cells)
        for layer in range(3):
            got = tables.table(table[layer], mask[layer], rows)
            soft = tables.table(probs, mask[layer], rows)
            for g in range(4):
                tokens = np.flatnonzero(label == g)
                sets = [chosen(table, mask, layer, t) for t in tokens]
                assert got[g].tolist() == [sum(e in s for s in sets) for e in range(6)]
                known = [probs[t] for t in tokens if t != 5]
                same(soft[g], np.sum(known, 0) * mask[layer])


def test_wrong_forms_are_one_line():
    mask = np.ones((2, 4), bool)
    with pytest.raises(ValueError, match=r"routing \(3, 5, 2\) is not \[L, T, K\] of the layers"):
        tables.counts(np.zeros((3, 5, 2), int), mask)
    with pytest.raises(ValueError, match="expert ids of float64; expected integers"):
        tables.counts(np.zeros((2, 5, 4)), mask)
    with pytest.raises(ValueError, match="probabilities of 3 experts, mask_LE has 4"):
        tables.check_routing(np.zeros((2, 5, 3)), mask)
    with pytest.raises(ValueError, match="routing of bool"):
        tables.check_routing(np.zeros((2, 5, 4), bool), mask)
    with pytest.raises(ValueError, match=r"label_T \(3,\) is not of 5 tokens"):
        tables.per_token(np.zeros(3), 5, "label_T")


# ---- compute


def test_experts_and_width_of_each_token(trace, rng):
    table, mask = trace
    width = np.where(mask, rng.integers(0, 50, mask.shape), -1)
    assert (tables.exists(width) == mask).all()
    active, units = compute.active_experts(table, mask), compute.active_width(table, width)
    mean_width = compute.expert_width(active, units)
    for layer in range(3):
        for t in range(60):
            experts = chosen(table, mask, layer, t)
            want = sum(int(width[layer, e]) for e in experts)
            assert (active[layer, t], units[layer, t]) == (len(experts), want)
            if experts:
                assert mean_width[layer, t] == pytest.approx(want / len(experts))
            else:
                assert np.isnan(mean_width[layer, t])


def test_cost_of_a_token_moves_the_plan_by_the_width_it_used():
    width = np.array([[10, 30], [20, 20]])
    got = compute.token_cost(width, [20, 20], 1000.0, 6.0)
    same(got, [1000 - 60, 1000 + 60])
    same(compute.token_cost(width, [20, 20], 1000.0, [6.0, 1.0]), [940, 1060])


def test_work_share_weighs_the_load_by_width():
    width = np.array([[10, 30, -1], [10, 10, 10]])
    got = compute.work_share(np.array([[3, 1, 5], [0, 0, 0]]), width)
    same(got, [[0.5, 0.5, np.nan], [np.nan] * 3])
