"""Divergence of languages (or domains, or any labels) from a reference, layer by layer.

Two distributions over experts, made of finitely many tokens, differ even where nothing does. As in
`information` (which states why), each number comes three times: `plug_in`, `chance` (its mean with
the label dealt at random) and `adjusted`, C (plug_in - chance) / (C - chance), C the largest value.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from moejax.analysis.metrics import divide
from moejax.analysis.routing.information import adjust
from moejax.analysis.routing.specialisation import label_units
from moejax.analysis.routing.tables import (
    Bools,
    Floats,
    Ints,
    Rows,
    check_routing,
    per_token,
    table,
    tables,
)

LN2 = float(np.log(2.0))


@dataclasses.dataclass(frozen=True)
class Corrected:
    """A biased estimate with its chance level and what is left of it, all `[L, G]`."""

    plug_in: Floats
    chance: Floats
    adjusted: Floats


@dataclasses.dataclass(frozen=True)
class Divergence:
    """Divergence of each label's expert shares from the reference's; NaN for the reference itself.

    Attributes:
      units: `[G]`, sequences of the label, or aligned units that both have: what is independent. Of
        the reference: all its own.
      js: Jensen-Shannon divergence, nats.
      normalised: entropy-normalised, no unit.
    """

    units: Ints
    js: Corrected
    normalised: Corrected


@dataclasses.dataclass(frozen=True)
class ParallelDivergence:
    """Mean over aligned units of the entropy-normalised divergence; NaN for the reference itself.

    Attributes:
      units: `[G]`, aligned units that both have; of the reference, all its own.
      value: see `Corrected`.
      half_width: `[L, G]`, half of the 95 % interval of `value.plug_in`, units taken as
        independent; NaN with fewer than 2.
    """

    units: Ints
    value: Corrected
    half_width: Floats


def js_divergence(p_E: NDArray, q_E: NDArray) -> Floats:
    """Jensen-Shannon divergence over the last axis, H((p+q)/2) - (H(p) + H(q))/2. Nats, 0..ln 2.

    0 equal, ln 2 no expert in common. Symmetric; its square root is a distance. Finite samples of
    equal distributions give about (E-1)/8 * (1/n + 1/m) nats for n and m independent draws.
    Source: Lin 1991.
    """
    p, q = np.asarray(p_E, np.float64), np.asarray(q_E, np.float64)
    value = _entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2
    return np.where(np.isnan(value), np.nan, np.clip(value, 0.0, LN2))


def normalised_js_divergence(p_E: NDArray, q_E: NDArray, experts: ArrayLike) -> Floats:
    """JS(p, q) / (ln E - (H(p) + H(q))/2): the share of the largest divergence that distributions
    of these entropies over E experts could have. No unit, 0..1; NaN where both are uniform.

    Layers differ in entropy, which alone moves JS; this does not. Source: Bandarkar et al.
    (2510.04694) eq. 6-8, as quoted by a public reproduction.
    """
    p, q = np.asarray(p_E, np.float64), np.asarray(q_E, np.float64)
    room = np.log(np.asarray(experts, np.float64)) - (_entropy(p) + _entropy(q)) / 2
    value = divide(js_divergence(p, q), np.where(room > 1e-12, room, np.nan))
    return np.where(np.isnan(value), np.nan, np.clip(value, 0.0, 1.0))


def divergence_to_reference(
    routing_LTX: NDArray,
    mask_LE: Bools,
    label_T: NDArray,
    labels: int,
    reference: int,
    sequence_T: NDArray,
    *,
    parallel_T: NDArray | None = None,
    permutations: int = 16,
    seed: int = 0,
) -> Divergence:
    """Divergence of each label's distribution over experts, all its tokens together, from that of
    label `reference`, by layer: JS in nats (0..ln 2) and entropy-normalised (0..1).

    Chance: sequences of the two labels are pooled and dealt to two heaps of the same sizes; given
    `parallel_T`, only units that both labels have are used, and a deal swaps a unit's two versions
    or not, so that the content of the heaps stays equal. Needs 2 units of each, else NaN.

    In a multilingual model: high in early and late layers, low in the middle (a U). Bad: high in
    the middle too (languages share nothing: little transfer), or `adjusted` near 0 everywhere.
    Different content diverges as well: use parallel text, or read it as an upper bound.

    Args:
      routing_LTX: choices (integers), whose shares sum to 1 over experts, or router probabilities
        (floats `[L, T, E]`).
      sequence_T: sequence of each token; a unit of dealing without `parallel_T`.
      parallel_T: aligned unit of each token (a verse, say); negative: none.

    Raises:
      ValueError: lengths differ, or `reference` is no label.
    """
    routing, mask, label = _arguments(routing_LTX, mask_LE, label_T, labels, reference)
    unit = per_token(
        sequence_T if parallel_T is None else parallel_T, len(label), "unit of each token"
    )
    rng = np.random.default_rng(seed)
    shape = (2, 3, len(mask), labels)  # (js, normalised), (plug-in, chance, adjusted)
    found, units = np.full(shape, np.nan), np.zeros(labels, np.int64)
    for g in range(labels):
        if g == reference:
            units[g] = np.unique(unit[(label == g) & (unit >= 0)]).size
            continue
        side = np.where(label == g, 0, np.where(label == reference, 1, -1))
        if parallel_T is not None:
            side = _common(side, unit)
        rows, side_U = label_units(side, unit)
        size = np.bincount(side_U, minlength=2)
        units[g] = size[0]
        if not size.all():
            continue
        deals = _deals(size, parallel_T is not None, permutations, rng)
        for layer, mask_E in enumerate(mask):
            table_UE = table(routing[layer], mask_E, rows)
            first = np.concatenate([(side_U == 0)[None], deals]).astype(np.float64) @ table_UE
            p, q = _shares(first), _shares(table_UE.sum(0) - first)
            experts = int(mask_E.sum())
            for i, (value, most) in enumerate(
                [(js_divergence(p, q), LN2), (normalised_js_divergence(p, q, experts), 1.0)]
            ):
                chance = float(value[1:].mean()) if len(deals) else np.nan
                found[i, :, layer, g] = value[0], chance, adjust(value[0], chance, most)
    return Divergence(units, Corrected(*found[0]), Corrected(*found[1]))


def parallel_divergence(
    routing_LTX: NDArray,
    mask_LE: Bools,
    label_T: NDArray,
    labels: int,
    reference: int,
    parallel_T: NDArray,
    *,
    permutations: int = 2,
    seed: int = 0,
) -> ParallelDivergence:
    """Mean over aligned units u of D(q_u, r_u), by layer: q_u and r_u are the mean distributions
    over experts of the unit's tokens in the label and in the reference, D is
    `normalised_js_divergence`.

    No unit, 0..1. With router probabilities this is Div(lang, l) of Bandarkar et al. (2510.04694)
    eq. 1-2; with choices it is the same of expert frequencies, and much more biased, because a
    sentence has few tokens. Chance: within each unit its tokens are dealt to the two versions at
    random. Good and bad: as `divergence_to_reference`.

    Raises:
      ValueError: lengths differ, or `reference` is no label.
    """
    routing, mask, label = _arguments(routing_LTX, mask_LE, label_T, labels, reference)
    unit = per_token(parallel_T, len(label), "parallel_T").astype(np.int64)
    rng = np.random.default_rng(seed)
    found, units = np.full((3, len(mask), labels), np.nan), np.zeros(labels, np.int64)
    half = np.full((len(mask), labels), np.nan)
    for g in range(labels):
        if g == reference:
            units[g] = np.unique(unit[(label == g) & (unit >= 0)]).size
            continue
        side = _common(np.where(label == g, 0, np.where(label == reference, 1, -1)), unit)
        _, place = np.unique(unit, return_inverse=True)
        rows = Rows.of(np.where(side >= 0, place * 2 + side, -1))
        units[g] = len(rows) // 2
        if not len(rows):
            continue
        unit_N = np.repeat(rows.value_R // 2, rows.size_R)
        shuffles = [
            dataclasses.replace(
                rows, token_N=rows.token_N[np.lexsort((rng.random(len(unit_N)), unit_N))]
            )
            for _ in range(permutations)
        ]
        for layer, mask_E in enumerate(mask):
            value = _pairs(routing[layer], mask_E, rows)
            mean, half[layer, g] = _interval(value)
            dealt = [_interval(_pairs(routing[layer], mask_E, deal))[0] for deal in shuffles]
            chance = float(np.mean(dealt or [np.nan]))
            found[:, layer, g] = mean, chance, adjust(mean, chance, 1.0)
    return ParallelDivergence(units, Corrected(*found), half)


def _arguments(
    routing: NDArray, mask: NDArray, label: NDArray, labels: int, reference: int
) -> tuple[NDArray, Bools, Ints]:
    routing, mask = check_routing(routing, mask)
    if not 0 <= reference < labels:
        raise ValueError(f"reference {reference} is not one of {labels} labels")
    return routing, mask, per_token(label, routing.shape[1], "label_T").astype(np.int64)


def _common(side_T: NDArray, unit_T: NDArray) -> NDArray:
    """The side of tokens whose unit is on both sides, -1 of others."""
    both = np.intersect1d(unit_T[(side_T == 0) & (unit_T >= 0)], unit_T[side_T == 1])
    return np.where(np.isin(unit_T, both), side_T, -1)


def _deals(size: NDArray, paired: bool, permutations: int, rng: np.random.Generator) -> Bools:
    """bool `[permutations, U]`: units dealt to the first heap; rows are side by side, 0 first."""
    if size.min() < 2:
        return np.zeros((0, int(size.sum())), bool)
    if paired:
        swap = rng.random((permutations, size[0])) < 0.5
        return np.concatenate([swap, ~swap], 1)
    first = np.arange(size.sum()) < size[0]
    return np.stack([rng.permutation(first) for _ in range(permutations)])


def _pairs(routing_TX: NDArray, mask_E: Bools, rows: Rows) -> Floats:
    """Divergence of rows 0 and 1, 2 and 3, ...; NaN where one of them has no expert."""
    value = np.full(len(rows) // 2, np.nan)
    experts = int(mask_E.sum())
    for block, part in tables(routing_TX, mask_E, rows, together=2):
        p, q = _shares(part[0::2]), _shares(part[1::2])
        value[block.start // 2 : block.stop // 2] = normalised_js_divergence(p, q, experts)
    return value


def _interval(value_U: Floats) -> tuple[float, float]:
    """Mean and half of its 95 % t interval."""
    value = value_U[~np.isnan(value_U)]
    n = value.size
    if n < 2:
        return (float(value[0]) if n else np.nan), np.nan
    half = special.stdtrit(n - 1, 0.975) * value.std(ddof=1) / np.sqrt(n)
    return float(value.mean()), float(half)


def _shares(total_RE: NDArray) -> Floats:
    return divide(total_RE, total_RE.sum(-1, keepdims=True))


def _entropy(p: Floats) -> Floats:
    log_p = np.log(p, where=p > 0, out=np.zeros_like(p))
    return -(p * log_p).sum(-1)
