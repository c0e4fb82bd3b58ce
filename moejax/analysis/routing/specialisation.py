"""Specialisation: which labels use which experts, against what chance would give.

A label is anything that a token has one of: domain, language, token class, part of speech, bin of
position. How much a label and an expert have to do with each other, in one number, is
`information.mutual_information`; token ids, which are many, have `vocabulary`.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray
from scipy import special

from moejax.analysis.metrics import divide
from moejax.analysis.routing.tables import (
    Bools,
    Floats,
    Ints,
    Rows,
    check_routing,
    per_token,
    tables,
)


@dataclasses.dataclass(frozen=True)
class Specialisation:
    """Share of each label's tokens that use each expert, with its uncertainty and chance.

    Attributes:
      tokens, sequences: `[G]`, tokens and sequences of each label.
      share: `[L, G, E]`, N_ED / N_D. A row sums to the label's experts per token.
      half_width: `[L, G, E]`, half of its 95 % interval, sequences taken as independent draws; NaN
        with fewer than 2.
      chance_uniform: `[L]`, k/E with the layer's mean k: even loads, no relation.
      chance_load: `[L, E]`, share of all labelled tokens that use the expert: no relation. Exactly
        the mean of `share` over all ways to deal labels to tokens, so a share is not biased.
    """

    tokens: Ints
    sequences: Ints
    share: Floats
    half_width: Floats
    chance_uniform: Floats
    chance_load: Floats


def specialisation(
    routing_LTX: NDArray,
    mask_LE: Bools,
    label_T: NDArray,
    labels: int,
    sequence_T: NDArray,
) -> Specialisation:
    """Specialisation(E, D) = N_ED / N_D: of label D's tokens, the share that uses expert E.

    No unit, 0..1. Chance k/E for even loads, the overall share `chance_load` for the loads there
    are. Far above chance: an expert for the label. Bad: all bars at chance (labels look alike to
    the router; expected of random or collapsed ones), or one label on experts that nobody else
    uses, if its data were to be left out. Half widths that reach the line: cannot tell.

    Source: OLMoE (2409.02060) eq. 7; Mixtral (2401.04088) section 5 with first choices.

    The interval is that of a ratio of sums over sequences (`grouped.reduce_groups` states it).

    Args:
      routing_LTX: chosen experts (integers `[L, T, K]`), or router probabilities (floats
        `[L, T, E]`): then shares are mean probabilities and k is 1.
      label_T: 0..labels-1; tokens with others are left out.
      sequence_T: sequence of each token.
    """
    routing, mask = check_routing(routing_LTX, mask_LE)
    tokens = routing.shape[1]
    label = per_token(label_T, tokens, "label_T").astype(np.int64)
    sequence = per_token(sequence_T, tokens, "sequence_T")
    label = np.where((label >= 0) & (label < labels), label, -1)
    share, half = (np.full((len(mask), labels, mask.shape[1]), np.nan) for _ in range(2))
    overall = np.full(mask.shape, np.nan)
    units, label_U = label_units(label, sequence)
    for layer, mask_E in enumerate(mask):
        if routing.dtype.kind == "f":  # a layer's router may have no distribution for a token
            unknown_T = np.isnan(routing[layer]).any(-1)
            units, label_U = label_units(np.where(unknown_T, -1, label), sequence)
        size_G = np.bincount(label_U, units.size_R, minlength=labels)
        sums, share[layer], half[layer] = _layer(routing[layer], mask_E, units, label_U, size_G)
        overall[layer] = divide(sums.sum(0), size_G.sum())
    for array in (share, half):
        array[~np.broadcast_to(mask[:, None], array.shape)] = np.nan
    overall[~mask] = np.nan
    known = ~np.isnan(overall).all(-1)
    uniform = np.where(known, divide(np.nansum(overall, -1), mask.sum(-1)), np.nan)
    units, label_U = label_units(label, sequence)
    return Specialisation(
        np.bincount(label[label >= 0], minlength=labels),
        np.bincount(label_U, minlength=labels),
        *(share, half, uniform, overall),
    )


def label_units(label_T: Ints, sequence_T: NDArray) -> tuple[Rows, Ints]:
    """Rows of the pairs (label, sequence) that occur, label by label, and the label of each.

    Tokens of a negative label are in none.
    """
    _, sequence = np.unique(sequence_T, return_inverse=True)
    span = int(sequence.max(initial=0)) + 1
    rows = Rows.of(np.where(label_T >= 0, label_T * span + sequence, -1))
    return rows, rows.value_R // span


def _layer(
    routing_TX: NDArray, mask_E: Bools, units: Rows, label_U: Ints, size_G: NDArray
) -> tuple[Floats, Floats, Floats]:
    """Sums, shares and half widths of one layer, `[G, E]`."""
    sums = np.zeros((len(size_G), len(mask_E)))
    for block, part in tables(routing_TX, mask_E, units):
        _add(sums, label_U[block], part)
    mean = divide(sums, size_G[:, None])
    squares = np.zeros_like(sums)
    for block, part in tables(routing_TX, mask_E, units):
        residual = part - mean[label_U[block]] * units.size_R[block, None]
        _add(squares, label_U[block], residual**2)
    sequences = np.bincount(label_U, minlength=len(size_G))
    t = special.stdtrit(np.maximum(sequences - 1, 1), 0.975)
    factor = t * np.sqrt(divide(sequences, np.maximum(sequences - 1, 0)))
    return sums, mean, divide(factor, size_G)[:, None] * np.sqrt(squares)


def _add(total_GE: Floats, label_U: Ints, part_UE: NDArray) -> None:
    """Adds rows to those of their labels; equal labels are neighbours."""
    if label_U.size:
        start = np.flatnonzero(np.append(True, np.diff(label_U) != 0))
        total_GE[label_U[start]] += np.add.reduceat(part_UE, start, axis=0)
