"""Reuse: does a token go where the token before it went?"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray
from scipy import special

from moejax.analysis.metrics import divide
from moejax.analysis.routing.tables import (
    Bools,
    Floats,
    Ints,
    check_choices,
    per_token,
    shared,
    slots,
    token_blocks,
)


@dataclasses.dataclass(frozen=True)
class Reuse:
    """How often consecutive tokens share experts, by layer, all `[L]`, with chance levels.

    A pair is two neighbouring tokens of one sequence that both have an expert (for `first`: a first
    choice). Chance deals the experts of the first tokens of the pairs to the second ones at random:
    loads and experts per token stay as they are, order is lost.

    Attributes:
      pairs: pairs of tokens.
      share: mean of |A & B| / |B|: experts of the second token that the first one used.
      chance_share: sum_i a_i b_i, exact (a_i share of the first tokens that use expert i, b_i mean
        of [i in B] / |B| over the second ones). k/E for even loads.
      any: pairs that have at least one expert in common.
      chance_any: 1 - mean of C(E - a, b) / C(E, b) over all pairings of sizes a and b: exact for
        even loads. A lower bound, roughly, for uneven ones.
      first_pairs, first, chance_first: the same for first choices only; chance sum_i f_i g_i, the
        first choices' loads over first and second tokens, exact. 1/E for even loads.
    """

    pairs: Ints
    share: Floats
    chance_share: Floats
    any: Floats
    chance_any: Floats
    first_pairs: Ints
    first: Floats
    chance_first: Floats


def consecutive_reuse(expert_LTK: NDArray, mask_LE: Bools, sequence_T: NDArray) -> Reuse:
    """Share of consecutive tokens that keep their experts, by layer; see `Reuse`. No unit, 0..1.

    Far above chance: experts follow stretches of text (topic, language, syntax), good for caches
    and prefetching; at chance: the token alone decides, or nothing does. Bad: near 1 with an uneven
    load (one expert has whole texts). Sequences are not crossed.

    Source: Mixtral (2401.04088) section 5, table 5: first choice (chance 1/8 = 12.5 %) and first or
    second (chance 1 - 6/8 * 5/7 = 46 %), here `first` and `any`.
    """
    expert, mask = check_choices(expert_LTK, mask_LE)
    second = _second_tokens(per_token(sequence_T, expert.shape[1], "sequence_T"))
    found = np.asarray(
        [_layer(expert[layer], mask_E, second) for layer, mask_E in enumerate(mask)]
    ).reshape(-1, 8)
    pairs, share, chance_share, any_, chance_any, first_pairs, first, chance_first = found.T
    return Reuse(
        pairs.astype(np.int64),
        share,
        chance_share,
        any_,
        chance_any,
        first_pairs.astype(np.int64),
        first,
        chance_first,
    )


def reuse_by_token(expert_LTK: NDArray, mask_LE: Bools, sequence_T: NDArray) -> Floats:
    """|A & B| / |B| of each token (experts B) and the one before it (A), `[L, T]`, 0..1, for
    grouping: what `Reuse.share` averages, with its chance.

    NaN for the first token of a sequence and where either has no expert.
    """
    expert, mask = check_choices(expert_LTK, mask_LE)
    second = _second_tokens(per_token(sequence_T, expert.shape[1], "sequence_T"))
    value = np.full(expert.shape[:2], np.nan)
    for layer, mask_E in enumerate(mask):
        hits, _, size_b, both = _overlaps(expert[layer], mask_E, second)
        value[layer, second] = np.where(both, divide(hits, size_b), np.nan)
    return value


def _second_tokens(sequence_T: NDArray) -> Ints:
    return np.flatnonzero(sequence_T[1:] == sequence_T[:-1]) + 1


def _overlaps(
    expert_TK: NDArray, mask_E: Bools, second_P: Ints
) -> tuple[NDArray, NDArray, NDArray, Bools]:
    """Experts in common, sizes of the first and the second token, are both above 0, all `[P]`."""
    size_T = (slots(expert_TK, mask_E) < len(mask_E)).sum(-1)
    hits = np.zeros(len(second_P), np.int64)
    for block in token_blocks(len(second_P)):
        second = second_P[block]
        before, after = slots(expert_TK[second - 1], mask_E), slots(expert_TK[second], mask_E)
        hits[block] = shared(before, after, len(mask_E))
    size_a, size_b = size_T[second_P - 1], size_T[second_P]
    return hits, size_a, size_b, (size_a > 0) & (size_b > 0)


def _layer(expert_TK: NDArray, mask_E: Bools, second_P: Ints) -> tuple[float, ...]:
    experts = int(mask_E.sum())
    hits, size_a, size_b, both = _overlaps(expert_TK, mask_E, second_P)
    hits, size_a, size_b, second_P = hits[both], size_a[both], size_b[both], second_P[both]
    pairs = len(hits)
    first_pairs, first, chance_first = _first_choices(expert_TK, mask_E, second_P)
    if not pairs:
        return 0, *[math.nan] * 4, first_pairs, first, chance_first
    used_E = _weights(expert_TK[second_P - 1], mask_E, np.ones(pairs))
    weight_E = _weights(expert_TK[second_P], mask_E, 1.0 / size_b)
    chance_share = float(used_E @ weight_E) / pairs**2
    apart = _chance_apart(size_a, size_b, experts)
    return (
        *(pairs, (hits / size_b).mean(), chance_share, (hits > 0).mean(), 1.0 - apart),
        *(first_pairs, first, chance_first),
    )


def _first_choices(expert_TK: NDArray, mask_E: Bools, second_P: Ints) -> tuple[int, float, float]:
    experts = len(mask_E)
    choice_T = slots(expert_TK[:, :1], mask_E).ravel()
    if not choice_T.size:
        return 0, math.nan, math.nan
    a, b = choice_T[second_P - 1], choice_T[second_P]
    a, b = a[(a < experts) & (b < experts)], b[(a < experts) & (b < experts)]
    if not a.size:
        return 0, math.nan, math.nan
    f, g = np.bincount(a, minlength=experts), np.bincount(b, minlength=experts)
    return a.size, float((a == b).mean()), float(f @ g) / a.size**2


def _weights(expert_PK: NDArray, mask_E: Bools, weight_P: Floats) -> Floats:
    """Sum of the weights of the tokens that use each expert, `[E]`."""
    chosen = slots(expert_PK, mask_E)
    each = np.broadcast_to(weight_P[:, None], chosen.shape)
    return np.bincount(chosen.ravel(), each.ravel(), len(mask_E) + 1)[:-1].astype(np.float64)


def _chance_apart(size_a: NDArray, size_b: NDArray, experts: int) -> float:
    """Probability that random sets of the sizes of a random pairing have nothing in common."""
    a, count_a = np.unique(size_a, return_counts=True)
    b, count_b = np.unique(size_b, return_counts=True)
    left = experts - a[:, None] - b  # C(E-a, b) / C(E, b) = (E-a)! (E-b)! / (E! (E-a-b)!)
    log_factorial = special.gammaln(np.arange(experts + 1) + 1.0)
    log_apart = log_factorial[experts - a][:, None] + log_factorial[experts - b]
    log_apart -= log_factorial[experts] + log_factorial[np.maximum(left, 0)]
    apart = np.where(left >= 0, np.exp(log_apart), 0.0)
    return float(count_a @ apart @ count_b) / (len(size_a) * len(size_b))
