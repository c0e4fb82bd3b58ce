"""Similarity of experts by their weights: do two experts look for, or do, the same?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from moejax.analysis.metrics import divide
from moejax.analysis.routing.tables import Bools, Floats


def cosine_matrix(vector_EX: NDArray) -> Floats:
    """Cosine of every pair of rows, `[E, E]`. No unit, -1..1; NaN in rows without length or with a
    NaN. Chance for random directions: mean 0, standard deviation 1/sqrt(dimensions)."""
    vector = np.asarray(vector_EX, np.float64)
    unit = divide(vector, np.linalg.norm(vector, axis=1, keepdims=True))
    return np.clip(unit @ unit.T, -1.0, 1.0)


def gate_similarity(gate_LED: NDArray, mask_LE: Bools) -> Floats:
    """Cosine of the router's embeddings of every pair of experts, `[L, E, E]`: rows of its weight
    matrix. No unit, -1..1; NaN for experts that do not exist.

    Chance: mean 0, standard deviation 1/sqrt(D). Bad: pairs near 1, which get the same tokens by
    construction (the router cannot tell them apart). Source: Lo et al. (2406.18219).
    """
    gate, mask = np.asarray(gate_LED, np.float64), np.asarray(mask_LE, bool)
    similar = np.full((*mask.shape, mask.shape[1]), np.nan)
    for layer, mask_E in enumerate(mask):
        similar[layer][np.ix_(mask_E, mask_E)] = cosine_matrix(gate[layer, mask_E])
    return similar


def expert_similarity(weight_E: Sequence[NDArray]) -> Floats:
    """Cosine of the weights of every pair of experts of a layer, flattened, `[E, E]`. No unit,
    -1..1; NaN between experts of different shape.

    Only meaningful between experts that began alike (upcycled, or copied): hidden units have no
    order, so two experts that do the same may have cosine 0; then use `matched_unit_similarity`.
    Chance: mean 0, standard deviation 1/sqrt(weights). Bad: near 1 for all pairs late in training
    (experts never parted), as Lo et al. (2406.18219) found of upcycled models.

    Args:
      weight_E: one array per expert, of any shape.
    """
    weight = [np.asarray(w, np.float64) for w in weight_E]
    similar = np.full((len(weight), len(weight)), np.nan)
    for shape in {w.shape for w in weight}:
        alike = [i for i, w in enumerate(weight) if w.shape == shape]
        rows = np.stack([weight[i].ravel() for i in alike])
        similar[np.ix_(alike, alike)] = cosine_matrix(rows)
    return similar


def matched_unit_similarity(first_FX: NDArray, second_FX: NDArray) -> float:
    """Mean cosine of the hidden units of two experts, each unit of the narrower one with a unit of
    its own in the other, the best such matching (Hungarian method). No unit, -1..1.

    For experts of any width and any order of units. Chance is above 0, because the best of many is
    taken: match against an expert of another layer to see it. NaN without units.

    Args:
      first_FX, second_FX: a row per hidden unit (its weights of gate, up and down, say).
    """
    first, second = (np.asarray(w, np.float64) for w in (first_FX, second_FX))
    if first.ndim != 2 or first.shape[1:] != second.shape[1:]:
        raise ValueError(f"units of {first.shape} and {second.shape}; expected equal row lengths")
    if not len(first) or not len(second):
        return float("nan")
    a, b = (divide(w, np.linalg.norm(w, axis=1, keepdims=True)) for w in (first, second))
    cosine = np.nan_to_num(a @ b.T)  # a unit of zeros is like no other
    row, column = optimize.linear_sum_assignment(cosine, maximize=True)
    return float(cosine[row, column].mean())
