"""Which experts go: scores by activation frequency or magnitude, and how many of each layer.

NumPy only; what is done with the answer is `pruning`. Axis letters: `L` MoE layers in model order,
`E` experts of the layer with most; NaN, or False, where a layer has no such expert.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moejax.analysis.traces import EMPTY_SLOT, Trace
from moejax.config import ConfigError, nearest

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

UNIFORM, GLOBAL, PROPORTIONAL = "uniform", "global", "proportional"
SPREADS: dict[str, str] = {
    UNIFORM: "every layer loses the same share",
    GLOBAL: "experts of all layers are ranked together (cross-layer selection)",
    PROPORTIONAL: "a layer's share is proportional to 1 - its mean score",
}
"""How a rate is spread over the layers: `--spread`."""


def activation_frequency(trace: Trace, where_T: Bools | None = None) -> Floats:
    """float64 `[L, E]`: tokens that used the expert over tokens, 0..1; `sum_e` is the experts per
    token. NaN where there is no such expert, and everywhere if no token is counted.

    Args:
      trace: what a model did with a text.
      where_T: the tokens that count (of one language, say); None: all.
    """
    chosen_LTK = trace.expert_LTK if where_T is None else trace.expert_LTK[:, where_T]
    layers, tokens, _ = chosen_LTK.shape
    experts = trace.num_experts
    found_LE = np.full((layers, experts), np.nan)
    for layer in range(layers if tokens else 0):
        used = chosen_LTK[layer]
        counts = np.bincount(used[used != EMPTY_SLOT].astype(np.int64), minlength=experts)
        found_LE[layer] = counts / tokens
    return np.where(trace.exists_LE, found_LE, np.nan)


def keep_mask(score_LE: Floats, rate: float, spread: str = UNIFORM, least: int = 1) -> Bools:
    """bool `[L, E]`: the experts that stay when a share of them goes, those of lowest score.

    Args:
      score_LE: higher stays; NaN: no such expert. Of equal scores the later expert goes first (and
        of the later layer, where layers are ranked together).
      rate: share of experts to remove, 0 to below 1. `uniform` rounds it in each layer, the others
        once over all layers, so that they remove as many to within one per layer.
      spread: a key of `SPREADS`. `proportional` needs scores in 0..1: those of frequency.
      least: experts that each layer keeps at least (all, if it has no more).

    Raises:
      ConfigError: a rate or spread that is none, or rates that leave more than the experts there.
    """
    if not 0.0 <= rate < 1.0:
        near = min(max(rate, 0.0), 0.9) if rate == rate else 0.3
        raise ConfigError(f"--rate={rate}: a share from 0 to below 1; nearest valid value {near}")
    if spread not in SPREADS:
        known = ", ".join(SPREADS)
        raise ConfigError(f"--spread={spread!r}: one of {known}{nearest(spread, SPREADS)}")
    if least < 1:
        raise ConfigError(f"--least={least}: a layer keeps an expert; nearest valid value 1")
    exists_LE = ~np.isnan(score_LE)
    size_L = exists_LE.sum(-1)
    free_L = np.maximum(size_L - least, 0)
    if spread == GLOBAL:
        return _ranked_together(score_LE, exists_LE, free_L, _rounded(rate * size_L.sum()))
    if spread == UNIFORM:
        gone_L = np.minimum([_rounded(rate * size) for size in size_L], free_L)
    else:
        gone_L = _proportional(score_LE, size_L, free_L, rate)
    return _lowest_gone(score_LE, exists_LE, gone_L)


def random_mask(like_LE: Bools, exists_LE: Bools, seed: int) -> Bools:
    """As many experts of each layer as `like_LE` keeps, drawn at random."""
    kept_LE = np.zeros_like(like_LE)
    for layer, (like_E, exists_E) in enumerate(zip(like_LE, exists_LE, strict=True)):
        there = np.flatnonzero(exists_E)
        drawn = np.random.default_rng([seed, layer]).permutation(there)
        kept_LE[layer, drawn[: int(like_E.sum())]] = True
    return kept_LE


def _rounded(value: float) -> int:
    """To the nearest whole number, halves up; 0.3 of 10 is 3, whatever the float says."""
    return int(np.floor(value + 0.5 + 1e-9))


def _order(score_LE: Floats, exists_LE: Bools) -> NDArray[np.int64]:
    """Flat indices of the experts that there are, first to go first."""
    flat = np.flatnonzero(exists_LE)
    return flat[np.lexsort((-flat, score_LE.reshape(-1)[flat]))]


def _ranked_together(
    score_LE: Floats, exists_LE: Bools, free_L: NDArray[np.int64], wanted: int
) -> Bools:
    kept_LE, left_L = exists_LE.copy(), free_L.copy()
    for index in _order(score_LE, exists_LE):
        layer = int(index) // score_LE.shape[1]
        if wanted and left_L[layer]:
            kept_LE.reshape(-1)[index] = False
            left_L[layer] -= 1
            wanted -= 1
    return kept_LE


def _lowest_gone(score_LE: Floats, exists_LE: Bools, gone_L: NDArray[np.int64]) -> Bools:
    kept_LE = exists_LE.copy()
    for layer, gone in enumerate(gone_L):
        order = _order(score_LE[layer : layer + 1], exists_LE[layer : layer + 1])
        kept_LE[layer, order[: int(gone)]] = False
    return kept_LE


def _proportional(
    score_LE: Floats, size_L: NDArray[np.int64], free_L: NDArray[np.int64], rate: float
) -> NDArray[np.int64]:
    """Experts to remove by layer: `r_l` proportional to `1 - mean score`, mean `rate`; what a layer
    cannot give, the others give in the same proportion."""
    idle_L = 1.0 - np.nan_to_num(np.nanmean(score_LE, axis=-1))
    if (idle_L < 0).any():
        raise ConfigError(
            f"--spread={PROPORTIONAL}: needs scores in 0..1, like frequencies; nearest valid "
            f"--spread={GLOBAL}"
        )
    wanted = min(_rounded(rate * size_L.sum()), int(free_L.sum()))
    weight_L = idle_L * size_L
    if not weight_L.any():
        weight_L = size_L.astype(np.float64)
    gone_L = np.zeros_like(free_L)
    while gone_L.sum() < wanted:
        # One at a time to the layer that is furthest behind its due: largest remainder.
        due_L = np.where(gone_L < free_L, weight_L / max(weight_L.sum(), 1e-30) * wanted, -np.inf)
        gone_L[int(np.argmax(due_L - gone_L))] += 1
    return gone_L
