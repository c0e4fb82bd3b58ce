"""Which hidden units of an FFN go together: partitions into experts of equal size.

MoEfication (2110.01786) clusters the neurons' weights by k-means whose clusters have equal sizes
(`KMeansConstrained`), or cuts the graph of neurons that are active together (METIS). Both are done
here by one algorithm, balanced k-means on a matrix of inner products: of the normalised weights, or
of the normalised activations over a text. NumPy and SciPy.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

STARTS = 4
ROUNDS = 30


@dataclasses.dataclass(frozen=True)
class Partition:
    """Hidden units by expert.

    Attributes:
      expert_F: expert of each hidden unit. Experts are numbered by their first unit.
      spread: mean squared distance of a unit to the mean of its expert, in the space that was
        clustered, by round; it never rises. Empty where nothing was clustered.
    """

    expert_F: NDArray[np.int64]
    spread: tuple[float, ...] = ()


def contiguous(width: int, experts: int) -> Partition:
    """Neighbours go together."""
    return Partition(np.repeat(np.arange(experts), width // experts))


def dealt(width: int, experts: int, seed: int | tuple[int, ...]) -> Partition:
    """At random: the control."""
    labels = np.random.default_rng(seed).permutation(contiguous(width, experts).expert_F)
    return Partition(numbered(labels, experts))


def numbered(label_F: NDArray, experts: int) -> NDArray[np.int64]:
    """The same partition with experts numbered by their first unit, so that equal partitions are
    equal arrays."""
    first = np.full(experts, len(label_F))
    np.minimum.at(first, label_F, np.arange(len(label_F)))
    rank = np.empty(experts, np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(experts)
    return rank[label_F]


def order_of(expert_F: NDArray) -> NDArray[np.int64]:
    """The hidden units expert by expert, in their own order inside each."""
    return np.argsort(expert_F, kind="stable")


def unit_rows(row_FD: NDArray) -> NDArray[np.float32]:
    """Rows of length 1; a row of zeros stays one."""
    row_FD = np.asarray(row_FD, np.float32)
    length_F1 = np.linalg.norm(row_FD, axis=1, keepdims=True)
    scale_F1 = np.where(length_F1 > 0, length_F1, 1.0)
    return np.asarray(row_FD / scale_F1, np.float32)


def cosines(gram_FF: NDArray) -> NDArray[np.float64]:
    """Inner products of the normalised vectors, from those of the vectors; 0 with one of zeros."""
    length_F = np.sqrt(np.maximum(np.diag(gram_FF).astype(np.float64), 0.0))
    length_F = np.where(length_F > 0, length_F, np.inf)
    return gram_FF / length_F[:, None] / length_F


def balanced_clusters(
    gram_FF: NDArray,
    experts: int,
    seed: int | tuple[int, ...] = 0,
    *,
    starts: int = STARTS,
    rounds: int = ROUNDS,
) -> Partition:
    """k-means whose clusters all have `F / experts` members.

    Lloyd's two steps, of which the first is an assignment problem (Hungarian method: every cluster
    has as many places as members): both only lower the spread, so it ends. Starts from k-means++
    centres, several times, and keeps the start that ends lowest (KMeansConstrained: of 10). It is a
    local optimum: another seed gives another partition.

    Args:
      gram_FF: inner products of the units' vectors, symmetric. Distances to the mean of a cluster
        follow from it, so the vectors themselves (a text's activations, say) are not needed.
      experts: a divisor of F.
      seed: of the first centres.
      starts: how often.
      rounds: of each start, at most.

    Raises:
      ValueError: `experts` does not divide F.
    """
    gram = np.asarray(gram_FF, np.float64)
    if experts < 1 or len(gram) % experts:
        raise ValueError(f"{len(gram)} units in {experts} equal parts")
    random = np.random.default_rng(seed)
    found = [_lloyd(gram, experts, random, rounds) for _ in range(starts)]
    return min(found, key=lambda partition: partition.spread[-1])


def _lloyd(
    gram: NDArray[np.float64], experts: int, random: np.random.Generator, rounds: int
) -> Partition:
    width = len(gram)
    size = width // experts
    centres = _spread_out(gram, experts, random)
    square_F = np.diag(gram)
    distance_FE = square_F[:, None] - 2 * gram[:, centres] + square_F[centres]
    label = np.full(width, -1)
    spread: list[float] = []
    for _ in range(rounds):
        found = _assign(distance_FE, size)
        own_FE = np.equal.outer(found, np.arange(experts)).astype(np.float64)
        sum_FE = gram @ own_FE  # inner products with the sum of each cluster
        mean_E = (sum_FE * own_FE).sum(0) / size**2
        distance_FE = square_F[:, None] - 2 * sum_FE / size + mean_E
        value = float(distance_FE[np.arange(width), found].mean())
        if np.array_equal(found, label) or (spread and value >= spread[-1]):
            break
        label = found
        spread.append(value)
    return Partition(numbered(label, experts), tuple(spread))


def _assign(distance_FE: NDArray, size: int) -> NDArray[np.int64]:
    """The cheapest assignment that gives each cluster `size` units."""
    place_FF = np.repeat(distance_FE, size, axis=1)
    row_F, column_F = optimize.linear_sum_assignment(place_FF)
    label = np.empty(len(row_F), np.int64)
    label[row_F] = column_F // size
    return label


def _spread_out(gram_FF: NDArray, experts: int, random: np.random.Generator) -> NDArray[np.int64]:
    """k-means++: each next centre is drawn in proportion to the squared distance from those so
    far (Arthur & Vassilvitskii 2007)."""
    square_F = np.diag(gram_FF)
    chosen = [int(random.integers(len(square_F)))]
    nearest_F = np.full(len(square_F), np.inf)
    while len(chosen) < experts:
        last = chosen[-1]
        distance_F = square_F - 2 * gram_FF[:, last] + square_F[last]
        nearest_F = np.minimum(nearest_F, np.maximum(distance_F, 0.0))
        nearest_F[chosen] = 0.0
        total = nearest_F.sum()
        if total > 0:
            chosen.append(int(random.choice(len(square_F), p=nearest_F / total)))
        else:  # all units alike
            chosen.append(int(np.setdiff1d(np.arange(len(square_F)), chosen)[0]))
    return np.asarray(chosen, np.int64)
