"""Capacity and row budget: who is turned away, and that the ledger counts each of them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand_routing import hand_routing
from routers_under_test import E, make_inputs, route

from moejax.routing import CAUSES, CapacityConfig, open_ledger
from moejax.routing.capacity import limit_expert_rows, limit_rows, rank_in_expert


def test_capacity_conventions_differ_by_k():
    with_k = CapacityConfig(factor=1.0)
    without = dataclasses.replace(with_k, count_slots=False)
    assert with_k.expert_capacity(8, 1, 4) == without.expert_capacity(8, 1, 4) == 2  # H.1
    assert with_k.expert_capacity(8, 2, 4) == 4
    assert without.expert_capacity(8, 2, 4) == 2
    assert dataclasses.replace(without, minimum=4).expert_capacity(8, 1, 4) == 4  # flaxformer
    assert CapacityConfig(factor=1.25).expert_capacity(9, 2, 4) == 6  # ceil(5.625)
    assert CapacityConfig().expert_capacity(8, 1, 4) is None


def test_first_tokens_are_served_first():
    routing = hand_routing([[0]] * 5, np.full((5, 4), 0.25), 4)
    bounded, dropped = limit_expert_rows(routing, 2)
    assert bounded.expert_TK[:, 0].tolist() == [0, 0, 4, 4, 4]
    assert bounded.weight_TK[:, 0].tolist() == [1, 1, 0, 0, 0]
    assert int(dropped) == 3 and bounded.max_rows == 5


def test_every_first_choice_comes_before_any_second_choice():
    routing = hand_routing([[1, 0], [0, 1], [0, 1]], np.full((3, 2), 0.5), 2)
    bounded, dropped = limit_expert_rows(routing, 2)
    # Expert 0: first choices of tokens 1, 2 beat the second choice of token 0.
    assert bounded.expert_TK.tolist() == [[1, 2], [0, 1], [0, 2]]
    assert int(dropped) == 2


def test_row_budget_keeps_the_first_rows_slot_major():
    routing = hand_routing([[1, 0], [0, 1], [1, 0]], np.full((3, 2), 0.5), 2)
    bounded, dropped = limit_rows(routing, 4)
    assert bounded.expert_TK.tolist() == [[1, 0], [0, 2], [1, 2]]
    assert int(dropped) == 2 and bounded.max_rows == 4


def test_ranks_count_earlier_assignments_of_the_same_expert():
    expert_N = jnp.asarray([2, 0, 2, 1, 3, 2, 0, 3])
    assert rank_in_expert(expert_N, 3).tolist() == [0, 0, 1, 0, 0, 2, 1, 1]


@functools.cache
def routing_under_test(name):
    x_TD = jax.random.normal(jax.random.key(0), (32, 12))
    return route(name, x_TD, make_inputs(32, valid_T=jnp.arange(32) % 5 != 0))


@pytest.mark.parametrize("name", ["top_k", "top_p_k_max", "expert_choice"])
@pytest.mark.parametrize("factor", [0.0, 0.5, 8.0])
@pytest.mark.parametrize("row_budget", [0.0, 1.5])
def test_the_ledger_balances_by_cause(name, factor, row_budget):
    routing = routing_under_test(name)
    config = CapacityConfig(factor=factor, row_budget=row_budget)
    kept, ledger = jax.jit(lambda r: config.apply(r, open_ledger(r), active=2))(routing)
    assert bool(ledger.balanced)
    assert set(ledger.dropped) == set(CAUSES)
    assert int(ledger.kept) == int((np.asarray(kept.expert_TK) < E).sum())
    assert int(ledger.requested) == int(routing.requested_T.sum())
    chosen = int(routing.filled_TK.sum())
    assert int(ledger.k_max) == int(ledger.requested) - chosen
    if factor:
        capacity = config.expert_capacity(32, 2, E)
        assert kept.count_E.max() <= capacity
        over = np.maximum(np.asarray(routing.count_E) - capacity, 0).sum()
        assert int(ledger.capacity) == over
    if row_budget:
        assert int(ledger.kept) <= 48
        assert int(ledger.row_budget) == max(0, chosen - int(ledger.capacity) - 48)
    if factor == 0.0 and row_budget == 0.0:
        np.testing.assert_array_equal(kept.expert_TK, routing.expert_TK)
    # What survives keeps its weight; what is dropped has none.
    survived = np.asarray(kept.filled_TK)
    np.testing.assert_array_equal(
        np.asarray(kept.weight_TK)[survived], np.asarray(routing.weight_TK)[survived]
    )
    assert not np.asarray(kept.weight_TK)[~survived].any()
