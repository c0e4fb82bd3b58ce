"""Random routing tables with every oddity, and slow, obvious ways to read them."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

EMPTY = 65535


def random_table(rng, layers=3, tokens=60, slots=4, experts=6, dtype=np.uint16):
    """`expert_LTK, mask_LE`: empty slots anywhere, ids out of range, of experts that are missing
    (another set in each layer) and, in layer 1, an expert that nobody uses."""
    mask = np.ones((layers, experts), bool)
    if layers > 1:
        mask[1, experts - 1] = False
    if layers > 2:
        mask[2, [1, experts - 2]] = False  # a hole, too
    table = np.stack(
        [np.stack([rng.permutation(experts)[:slots] for _ in range(tokens)]) for _ in range(layers)]
    ).astype(np.int64)
    table[rng.random(table.shape) < 0.25] = EMPTY
    table[rng.random(table.shape) < 0.05] = experts  # one past the last
    if tokens > 4:
        table[:, 2] = EMPTY  # a token without any
    if layers > 1:
        table[1][table[1] == 0] = EMPTY  # dead
    if np.dtype(dtype).kind == "i":
        table[(table == EMPTY) & (rng.random(table.shape) < 0.5)] = -1
    return table.astype(dtype), mask


def chosen(table, mask, layer, token):
    """The experts of one token, best first."""
    row = [int(e) for e in table[layer, token]]
    return [e for e in row if 0 <= e < mask.shape[1] and mask[layer, e]]


def first_choice(table, mask, layer, token):
    """The expert in the first slot, or None."""
    e = int(table[layer, token, 0])
    return e if 0 <= e < mask.shape[1] and mask[layer, e] else None


def entropy(counts):
    """In nats, of a Counter or a list of counts."""
    counts = [c for c in (counts.values() if isinstance(counts, Counter) else counts) if c > 0]
    n = sum(counts)
    return -sum(c / n * math.log(c / n) for c in counts) if n else math.nan


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else math.nan


def same(got, want, **tolerance):
    np.testing.assert_allclose(got, want, **{"rtol": 1e-9, "atol": 1e-12, **tolerance})
