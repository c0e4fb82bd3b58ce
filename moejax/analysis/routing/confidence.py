"""Confidence: what the router's distribution over experts says about one token.

A trace has most of these per token already (`top1_LT`, `margin_LT`, `entropy_LT`, `need_LTQ`); the
functions here make them from whole distributions `probs_TE`, whose rows are normalised first
(float16 rows sum to 1 only roughly). Rows with a NaN, or without mass, are NaN throughout, as is
everything for routers without a distribution (hash, random). `mask_E` is True where the expert
exists; leading axes may be added in front of `T` (`probs_LTE` with `mask_LE[:, None]`).

Chance, for a router that knows nothing (uniform): top-1 1/E, margin 0, normalised entropy 1, mass
in the top k k/E, experts needed for p: ceil(p E).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moejax.analysis.metrics import divide
from moejax.analysis.routing.tables import Bools, Floats

_ROUNDING = 1e-6  # sums of rounded probabilities reach p if they come this near


def top1(probs_TE: NDArray, mask_E: Bools | None = None) -> Floats:
    """Largest probability, max_i p_i, `[T]`. No unit, 1/E..1. Chance 1/E.

    Bad: near 1/E (the router does not choose), or 1 for all tokens from early on (it cannot learn
    to choose otherwise: the gradient through a saturated softmax vanishes).
    """
    return _descending(probs_TE, mask_E)[..., :1].sum(-1)


def margin(probs_TE: NDArray, mask_E: Bools | None = None) -> Floats:
    """Largest minus second largest probability, `[T]`. No unit, 0..1. Chance 0.

    Bad: near 0 for most tokens, where rounding or a small step of training changes the choice.
    """
    ordered = _descending(probs_TE, mask_E)
    return ordered[..., :1].sum(-1) - ordered[..., 1:2].sum(-1)


def token_entropy(probs_TE: NDArray, mask_E: Bools | None = None) -> Floats:
    """Entropy of a token's distribution, H = -sum_i p_i ln p_i, `[T]`. Nats, 0..ln E. Chance ln E.

    Not the entropy of the load: a router may be sure of every token and balanced.
    """
    p = _normalised(probs_TE, mask_E)
    log_p = np.log(p, where=p > 0, out=np.zeros_like(p))
    return np.maximum(-(p * log_p).sum(-1), 0.0)


def normalised_entropy(entropy_LT: NDArray, experts_L: ArrayLike) -> Floats:
    """H / ln E, `[L, T]`: comparable between layers and runs that differ in E. No unit, 0..1.

    Chance 1. Bad: near 1 (undecided), or 0 for all tokens (see `top1`). NaN where E < 2.
    """
    with np.errstate(divide="ignore"):
        most = np.log(np.asarray(experts_L, np.float64))
    return divide(np.asarray(entropy_LT, np.float64), np.where(most > 0, most, np.nan)[..., None])


def mass_in_top(probs_TE: NDArray, k: int, mask_E: Bools | None = None) -> Floats:
    """Probability of the k best experts together, `[T]`. No unit, min(k/E, 1)..1. Chance k/E.

    What a top-k router keeps of its distribution. Bad: near k/E. A layer of fewer than k experts
    has 1.
    """
    return _descending(probs_TE, mask_E)[..., :k].sum(-1)


def experts_needed(probs_TE: NDArray, p_Q: ArrayLike, mask_E: Bools | None = None) -> Floats:
    """Experts needed to gather probability p, `[T, Q]`: the smallest m whose m best sum to >= p. A
    count, 1..E (0 for p <= 0). Chance ceil(p E).

    What a top-p router would use at each p (2403.07652; its code stops at > p, which differs only
    where a sum meets p exactly). Bad: near p E.
    """
    mass = np.cumsum(_descending(probs_TE, mask_E), -1)
    wanted = np.clip(np.asarray(p_Q, np.float64).reshape(-1), 0.0, 1.0)
    need = np.stack([(mass < p - _ROUNDING).sum(-1) + (p > 0) for p in wanted], -1)
    known = ~np.isnan(mass).any(-1, keepdims=True) & (mass.shape[-1] > 0)
    return np.where(known, need.astype(np.float64), np.nan)


def _normalised(probs_TE: NDArray, mask_E: Bools | None) -> Floats:
    probs = np.asarray(probs_TE, np.float64)
    if mask_E is not None:
        probs = np.where(mask_E, probs, 0.0)
    return divide(probs, probs.sum(-1, keepdims=True))


def _descending(probs_TE: NDArray, mask_E: Bools | None) -> Floats:
    return -np.sort(-_normalised(probs_TE, mask_E), -1)
