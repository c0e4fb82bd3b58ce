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


def test_H1_capacity_conventions_differ_by_k():
    with_k = CapacityConfig(factor=1.0)
    without = dataclasses.replace(with_k, convention="without_k")
    four = (1,) * 4
    assert with_k.expert_capacity(8, 1, four) == without.expert_capacity(8, 1, four) == (2,) * 4
    assert with_k.expert_capacity(8, 2, four) == (4,) * 4  # methods H.1
    assert without.expert_capacity(8, 2, four) == (2,) * 4
    least = dataclasses.replace(without, minimum=4)
    assert least.expert_capacity(8, 1, four) == (4,) * 4  # flaxformer
    assert CapacityConfig(factor=1.25).expert_capacity(9, 2, four) == (6,) * 4  # ceil(5.625)
    assert CapacityConfig().expert_capacity(8, 1, four) is None


def test_H6_capacity_of_experts_that_compute_nothing():
    """MoE++: 82.5 assignments for each of 8 FFN experts, 110 for each of 4 others."""
    config = CapacityConfig(factor=1.1, convention="moe_plus_plus", tau=0.75)
    capacity = config.expert_capacity(1000, 1, (16,) * 8 + (0,) * 4)
    assert capacity == (83,) * 8 + (110,) * 4
    # Complexity against a plain MoE, tau N_FFN / (tau N_FFN + N_ZC) = 0.6.
    assert sum(capacity[:8]) / sum(capacity) == pytest.approx(0.6, abs=2e-3)


@pytest.mark.parametrize("name", ["remoe", "expert_choice"])
def test_a_row_budget_takes_second_choices_whatever_the_expert(name):
    routing = routing_under_test(name)
    kept, dropped = limit_rows(routing, 12)
    assert int(dropped) > 0
    best_T = np.asarray(routing.combine_TE()).argmax(-1)
    for token, row in enumerate(np.asarray(kept.combine_TE())):
        assert not row.any() or row[best_T[token]] > 0


def test_evaluation_may_have_its_own_factor():
    config = CapacityConfig(factor=1.25, eval_factor=2.0)
    assert config.expert_capacity(8, 1, (1, 1), train=True) == (5, 5)
    assert config.expert_capacity(8, 1, (1, 1), train=False) == (8, 8)
    assert CapacityConfig(factor=1.25).expert_capacity(8, 1, (1, 1), train=False) == (5, 5)


@pytest.mark.parametrize("limit", [limit_expert_rows, limit_rows])
def test_H1_the_most_confident_may_be_served_first(limit):
    probs = [[0.6, 0.4], [0.9, 0.1], [0.7, 0.3], [0.9, 0.1]]
    routing = hand_routing([[0]] * 4, probs, 2)
    by_position, _ = limit(routing, 2)
    assert by_position.expert_TK[:, 0].tolist() == [0, 0, 2, 2]
    confident, dropped = limit(routing, 2, priority="confidence")
    assert confident.expert_TK[:, 0].tolist() == [2, 0, 2, 0] and int(dropped) == 2
    assert confident.weight_TK[:, 0].tolist() == [0, 1, 0, 1]


def test_every_expert_may_have_its_own_bound():
    routing = hand_routing([[0], [0], [1], [1], [1]], np.full((5, 2), 0.5), 2)
    bounded, dropped = limit_expert_rows(routing, (1, 2))
    assert bounded.expert_TK[:, 0].tolist() == [0, 2, 1, 1, 2]
    assert int(dropped) == 2 and bounded.max_rows == 3


def test_only_a_bound_on_first_choices_by_position_is_causal():
    assert CapacityConfig(factor=1.0).causal(1)
    assert CapacityConfig(priority="confidence").causal(2)  # nothing is dropped
    assert not CapacityConfig(factor=1.0, priority="confidence").causal(1)
    assert not CapacityConfig(factor=1.0).causal(2) and not CapacityConfig(row_budget=1.0).causal(2)
    # A later token's first choice displaces the second choice of an earlier one.
    probs = np.full((2, 2), 0.5)
    for later, first_token in (([1, 0], [0, 2]), ([0, 1], [0, 1])):
        kept, _ = limit_expert_rows(hand_routing([[0, 1], later], probs, 2), 1)
        assert kept.expert_TK[0].tolist() == first_token


def test_H1_first_tokens_are_served_first():
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


@pytest.mark.parametrize("convention", ["with_k", "without_k", "moe_plus_plus"])
@pytest.mark.parametrize("priority", ["position", "confidence"])
@pytest.mark.parametrize("bound", [{"factor": 0.7}, {"row_budget": 0.9}])
def test_padding_has_no_share_in_a_bound(convention, priority, bound):
    config = CapacityConfig(convention=convention, priority=priority, **bound)
    widths = (1,) * 5 + (0,) * 3
    routing = routing_under_test("top_k")
    valid_T = np.arange(32) % 5 != 0

    def bounded(routing, valid_T=None):
        return config.apply(routing, open_ledger(routing), active=2, widths=widths, valid_T=valid_T)

    padded, padded_ledger = jax.jit(bounded)(routing, valid_T)
    real = {name: getattr(routing, name)[valid_T] for name in ("expert_TK", "weight_TK")}
    real |= {name: getattr(routing, name)[valid_T] for name in ("requested_T", "scores_TE")}
    compact, ledger = jax.jit(bounded)(dataclasses.replace(routing, **real, logits_TE=None))
    np.testing.assert_array_equal(padded.expert_TK[valid_T], compact.expert_TK)
    assert jax.tree.leaves(padded_ledger) == jax.tree.leaves(ledger)
    assert int(ledger.capacity) + int(ledger.row_budget) > 0


def test_bounds_that_are_data_equal_the_static_ones():
    for factor in (0.7, 1.0, 1.1, 1.25):
        config = CapacityConfig(factor=factor)
        for active in (1.0, 2.0, 2.2):
            bounds = jax.vmap(
                lambda n, c=config, a=active: c._capacity_of(n, 10_000, a, (1,) * 6, True)[0]
            )(jnp.arange(1000))
            static = [config.expert_capacity(n, active, (1,) * 6)[0] for n in range(1000)]
            np.testing.assert_array_equal(bounds, static)


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
        capacity = config.expert_capacity(32, 2, (1,) * E)[0]
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
