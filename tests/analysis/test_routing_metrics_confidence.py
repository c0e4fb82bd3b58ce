"""Confidence of a router's distribution: loops, uniform routers, odd rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from routing_oracles import same

from moejax.analysis.routing import confidence as c

P = (0.0, 0.3, 0.5, 0.9, 1.0)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_equals_a_loop_over_tokens(rng, dtype):
    probs = rng.dirichlet(np.full(7, 0.4), 40).astype(dtype)
    mask = np.array([True] * 4 + [False] + [True] * 2)
    got = [
        c.top1(probs, mask),
        c.margin(probs, mask),
        c.token_entropy(probs, mask),
        c.mass_in_top(probs, 3, mask),
        c.experts_needed(probs, P, mask),
    ]
    for t, row in enumerate(probs.astype(float)):
        p = sorted((x for x, m in zip(row, mask, strict=True) if m), reverse=True)
        p = [x / sum(p) for x in p]
        need = [next((m for m in range(7) if sum(p[:m]) >= q - 1e-6), 6) for q in P]
        entropy = -sum(x * math.log(x) for x in p if x > 0)
        want = [p[0], p[0] - p[1], entropy, sum(p[:3]), need]
        for ours, theirs in zip(got, want, strict=True):
            same(ours[t], theirs)


@pytest.mark.parametrize("experts", [1, 2, 10])
def test_a_uniform_router_is_at_chance(experts):
    probs = np.full((1, experts), 1 / experts)
    same(c.top1(probs), [1 / experts])
    same(c.margin(probs), [0 if experts > 1 else 1])
    same(c.mass_in_top(probs, 1), [1 / experts])
    same(c.experts_needed(probs, [0.5, 0.9])[0], np.ceil([experts / 2, round(experts * 0.9, 9)]))
    normal = c.normalised_entropy(c.token_entropy(probs)[None], [experts])
    same(normal, [[1.0 if experts > 1 else np.nan]])


def test_a_certain_router():
    probs = np.array([[0.0, 1.0, 0.0]])
    assert c.top1(probs) == c.margin(probs) == c.mass_in_top(probs, 2) == 1
    assert c.token_entropy(probs) == 0
    assert c.experts_needed(probs, [0.99, 1.0]).tolist() == [[1, 1]]


def test_entropy_is_normalised_by_each_layers_experts():
    got = c.normalised_entropy(np.full((3, 2), math.log(4)), [4, 16, 1])
    same(got, [[1, 1], [0.5, 0.5], [np.nan, np.nan]])


def test_rows_without_a_distribution_are_unknown():
    probs = np.array([[np.nan, 0.5], [0.0, 0.0], [1.0, 1.0]])
    for got in (c.top1(probs), c.margin(probs), c.token_entropy(probs), c.mass_in_top(probs, 1)):
        assert np.isnan(got).tolist() == [True, True, False]
    assert np.isnan(c.experts_needed(probs, [0.5]))[:, 0].tolist() == [True, True, False]


def test_layers_in_front_of_tokens(rng):
    probs = rng.dirichlet(np.ones(5), (3, 8))
    mask = np.ones((3, 5), bool)
    mask[1, 3:] = False
    got = c.experts_needed(probs, [0.6], mask[:, None])
    same(got, [c.experts_needed(probs[i], [0.6], mask[i]) for i in range(3)])
