"""Load: how evenly a layer's experts share its assignments, and what was dropped.

All functions take assignment counts `[..., L, E]` and work on the last axis, so that one call does
one evaluation, all evaluations of a training run (`[S, L, E]`: a curve) or single batches (the
batch-wise variants of the literature are the mean over batches of the metric of each). `mask_LE`
is True where the expert exists, because layers may differ in how many they have.

Chance. Even a router that draws experts at random does not load them equally in a finite window:
`chance_load_cv` and `chance_dead_experts` say what it would reach.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moejax.analysis.metrics import divide
from moejax.analysis.routing.tables import Bools, Floats, Ints

PERCENTILES = (50.0, 75.0, 90.0, 95.0)


def _every_expert(count_LE: NDArray, mask_LE: Bools | None) -> tuple[Floats, Bools]:
    mask = np.ones(np.shape(count_LE), bool) if mask_LE is None else np.asarray(mask_LE, bool)
    return np.where(mask, np.asarray(count_LE, np.float64), 0.0), mask


def load_fraction(count_LE: NDArray, mask_LE: Bools | None = None) -> Floats:
    """Share of a layer's assignments, f_i = n_i / sum_j n_j. No unit, 0..1, sums to 1 over experts.

    NaN where there is no expert and in a layer that saw no token. Bad: any f_i far from 1/E.
    Source: Switch (2101.03961) eq. 5, with f summing to 1 for any k.
    """
    count, mask = _every_expert(count_LE, mask_LE)
    return np.where(mask, divide(count, count.sum(-1, keepdims=True)), np.nan)


def utilisation(count_LE: NDArray, mask_LE: Bools | None = None) -> Floats:
    """Load relative to a balanced layer, u_i = f_i * E. No unit, 0..E; 1 balanced, 0 dead.

    E is the number of experts that exist in that layer. Bad: above about 2, below about 1/2.
    """
    _, mask = _every_expert(count_LE, mask_LE)
    return load_fraction(count_LE, mask_LE) * mask.sum(-1, keepdims=True)


def load_max_over_mean(count_LE: NDArray, mask_LE: Bools | None = None) -> Floats:
    """Busiest expert over the mean expert, max_i u_i, per layer. No unit, 1..E. Bad: above about 2.

    What an expert-parallel step waits for.
    """
    u = utilisation(count_LE, mask_LE)
    return np.where(
        np.isnan(u).all(-1), np.nan, np.nan_to_num(u, nan=-np.inf).max(-1, initial=-np.inf)
    )


def max_violation(count_LE: NDArray, mask_LE: Bools | None = None) -> Floats:
    """MaxVio = max_i u_i - 1, per layer. No unit, 0..E-1; 0 balanced. Bad: above about 1.

    Source: Wang et al. 2024 (2408.15664): MaxVio_global on the counts of a whole
    evaluation, MaxVio_batch as the mean over batches.
    """
    return load_max_over_mean(count_LE, mask_LE) - 1.0


def min_violation(count_LE: NDArray, mask_LE: Bools | None = None) -> Floats:
    """MinVio = min_i u_i - 1, per layer. No unit, -1..0; 0 balanced, -1: an expert is dead.

    Bad: below about -1/2. The sign is that of `max_violation`; some programs report the size.
    """
    u = utilisation(count_LE, mask_LE)
    lowest = np.nan_to_num(u, nan=np.inf).min(-1, initial=np.inf)
    return np.where(np.isnan(u).all(-1), np.nan, lowest) - 1.0


def load_cv(count_LE: NDArray, mask_LE: Bools | None = None) -> Floats:
    """Coefficient of variation, std(n) / mean(n) (population), per layer. No unit, 0..sqrt(E-1).

    0 is balanced. Bad: above about 1, where one standard deviation is a whole balanced share.
    Chance: `chance_load_cv`. Source: Shazeer et al. 2017 (1701.06538) use its square as a loss.
    """
    u = utilisation(count_LE, mask_LE)
    count, mask = _every_expert(count_LE, mask_LE)
    # mean(u) = 1 by construction, so the standard deviation of u is already relative to the mean.
    variance = divide(np.nansum((u - 1.0) ** 2, -1), mask.sum(-1))
    return np.where(count.sum(-1) > 0, np.sqrt(variance), np.nan)


def chance_load_cv(assignments: ArrayLike, active: ArrayLike, experts: ArrayLike) -> Floats:
    """Root mean square CV of tokens that draw `active` distinct experts at random, uniformly:
    sqrt((E - k) / N), exact for fixed k. No unit, 0 and up. A CV at this level is as even as
    chance makes it.

    Args:
      assignments: N = sum_i n_i of the window.
      active: k, experts per token (its mean, where tokens differ: then an approximation).
      experts: E.
    """
    experts = np.asarray(experts, np.float64)
    return np.sqrt(np.maximum(divide(experts - np.asarray(active), assignments), 0.0))


def dead_experts(count_LE: NDArray, mask_LE: Bools | None = None) -> Ints:
    """Experts that no token chose, per layer: #{i : n_i = 0}. A count, 0..E. Bad: any, where the
    window is long enough to expect none (`chance_dead_experts`).

    A layer that saw no token at all counts 0: nothing is known about its experts.
    """
    count, mask = _every_expert(count_LE, mask_LE)
    saw_tokens = count.sum(-1, keepdims=True) > 0
    return (mask & (count == 0) & saw_tokens).sum(-1).astype(np.int64)


def dead_fraction(count_LE: NDArray, mask_LE: Bools | None = None) -> Floats:
    """Dead experts over experts, per layer. No unit, 0..1-1/E; NaN without tokens. Bad: above 0."""
    count, mask = _every_expert(count_LE, mask_LE)
    dead = divide(dead_experts(count_LE, mask_LE), mask.sum(-1))
    return np.where(count.sum(-1) > 0, dead, np.nan)


def chance_dead_experts(tokens: ArrayLike, active: ArrayLike, experts: ArrayLike) -> Floats:
    """Experts expected without a token if each of `tokens` draws `active` distinct ones at random:
    E * (1 - k/E)^T, exact for fixed k. A count, 0..E."""
    experts = np.asarray(experts, np.float64)
    return experts * (1.0 - divide(active, experts)) ** np.asarray(tokens, np.float64)


def underused_experts(
    count_LE: NDArray, mask_LE: Bools | None = None, *, below: float = 0.1
) -> Ints:
    """Experts with u_i < `below`, the dead ones included, per layer. A count, 0..E-1. Bad: any at
    the default, a tenth of a balanced share. 0 in a layer without tokens.
    """
    return (
        (np.nan_to_num(utilisation(count_LE, mask_LE), nan=np.inf) < below).sum(-1).astype(np.int64)
    )


def expert_diversity(count_LE: NDArray, mask_LE: Bools | None = None) -> Floats:
    """Effective number of experts over E, exp(H(f)) / E with H = -sum f ln f. No unit, 1/E..1.

    1 is balanced. Bad: below about 1/2 (half of the layer's parameters do nearly all the work).
    """
    count, mask = _every_expert(count_LE, mask_LE)
    effective = np.exp(_entropy(load_fraction(count_LE, mask_LE)))
    return np.where(count.sum(-1) > 0, divide(effective, mask.sum(-1)), np.nan)


def kl_to_uniform(count_LE: NDArray, mask_LE: Bools | None = None) -> Floats:
    """KL(f || uniform) = ln E - H(f), per layer. Nats, 0..ln E; 0 balanced. Bad: above about ln 2.

    `expert_diversity` is exp(-this). Chance: about (E - k) / (2 N) for N assignments, k a token.
    """
    count, mask = _every_expert(count_LE, mask_LE)
    with np.errstate(divide="ignore"):
        value = np.log(mask.sum(-1)) - _entropy(load_fraction(count_LE, mask_LE))
    return np.where(count.sum(-1) > 0, np.maximum(value, 0.0), np.nan)


def gini(count_LE: NDArray, mask_LE: Bools | None = None) -> Floats:
    """Gini coefficient, sum_ij |n_i - n_j| / (2 E sum_i n_i), per layer. No unit, 0..1-1/E.

    0 balanced, 1-1/E one expert has it all. Bad: above about 1/2.
    """
    count, mask = _every_expert(count_LE, mask_LE)
    mask = np.broadcast_to(mask, count.shape)
    # In ascending order with ranks r = 1..E: sum_ij |n_i - n_j| = 2 sum_r (2 r - E - 1) n_(r).
    # Experts that do not exist sort first, as -1, and get no rank.
    experts = mask.sum(-1, keepdims=True)
    ordered = np.sort(np.where(mask, count, -1.0), -1)
    rank = np.arange(1, count.shape[-1] + 1) - (count.shape[-1] - experts)
    spread = np.where(rank > 0, (2 * rank - experts - 1) * ordered, 0.0).sum(-1)
    return divide(spread, experts[..., 0] * count.sum(-1))


def layer_percentiles(value_L: NDArray, percentiles: tuple[float, ...] = PERCENTILES) -> Floats:
    """Percentiles over layers (the last axis) of any per-layer metric, linear interpolation;
    `[..., P]`, layers that are NaN left out. The 95th finds one bad layer of many.
    """
    value = np.sort(np.asarray(value_L, np.float64), -1)  # NaN sorts last
    known = np.isfinite(value).sum(-1)
    place = np.asarray(percentiles) / 100.0 * np.maximum(known - 1, 0)[..., None]
    low = np.floor(place).astype(np.int64)
    high = np.minimum(low + 1, np.maximum(known - 1, 0)[..., None])
    if value.shape[-1] == 0:
        return np.full(place.shape, np.nan)
    at_low, at_high = (np.take_along_axis(value, at, -1) for at in (low, high))
    return np.where(known[..., None] > 0, at_low + (place - low) * (at_high - at_low), np.nan)


def drop_fraction(requested: ArrayLike, kept: ArrayLike) -> Floats:
    """Assignments asked for and not computed, 1 - kept / requested. No unit, 0..1. Bad: above 0.01.

    Below 0 would mean that more was computed than asked for: a corrupt file.
    """
    return divide(np.asarray(requested, np.float64) - np.asarray(kept, np.float64), requested)


def drop_by_position(
    kept_LT: NDArray, requested_LT: ArrayLike, position_T: NDArray, edges: NDArray
) -> Floats:
    """`drop_fraction` by position in the sequence, `[L, P]` for bins [edges[i], edges[i+1]).

    Bad: a curve that rises to the end, where later tokens find the experts full ("drop towards the
    end", OpenMoE, 2402.01739). NaN in bins without a request.

    Args:
      kept_LT: experts that computed the token.
      requested_LT: experts asked for, `[L, T]` or a number (k of a top-k router).
    """
    kept = np.asarray(kept_LT, np.float64)
    requested = np.broadcast_to(np.asarray(requested_LT, np.float64), kept.shape)
    bins = len(edges) - 1
    which = np.searchsorted(edges, position_T, "right") - 1
    which = np.where((which >= 0) & (which < bins), which, bins)

    def total(value_T: NDArray) -> NDArray:
        return np.bincount(which, value_T, minlength=bins + 1)[:bins]

    found = [drop_fraction(total(r), total(k)) for r, k in zip(requested, kept, strict=True)]
    return np.asarray(found, np.float64).reshape(len(kept), bins)


def _entropy(f_LE: Floats) -> Floats:
    """-sum f ln f in nats over the last axis; NaN cells count nothing."""
    log_f = np.log(f_LE, where=f_LE > 0, out=np.zeros_like(f_LE))
    return -np.nansum(f_LE * log_f, -1)
