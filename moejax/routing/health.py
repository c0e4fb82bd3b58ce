"""Routing health: what to look at first when a mixture misbehaves. Pure functions of stats."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from moejax.routing.ledger import CAUSES
from moejax.routing.stats import RoutingStats


def health(stats: RoutingStats, widths: tuple[int, ...]) -> dict[str, jax.Array]:
    """Health of each layer, float32, with the leading axes of `stats`.

    Args:
      stats: one layer's, or stacked `[L, ...]` statistics.
      widths: hidden width of each expert.

    Returns (value at perfect balance; what is bad):
      load_max_over_mean: busiest expert over the mean, in `[1, N]` (1; > 2 wastes a pod).
      load_cv: standard deviation of the load over its mean (0; > 1).
      dead_fraction: share of experts without a token in this window (0; > 0 for long).
      entropy: mean token entropy of the router in nats, `[0, log N]`; absent without scores.
      active_experts: experts computed per token (k for top-k).
      active_width: hidden units computed per token, routed experts only.
      dropped/<cause>: assignments per token lost to each cause (0).
    """
    kept_E = stats.kept_E.astype(jnp.float32)
    tokens = jnp.maximum(stats.tokens, 1).astype(jnp.float32)
    mean = kept_E.mean(-1)
    safe_mean = jnp.where(mean > 0, mean, 1.0)
    result = {
        "load_max_over_mean": kept_E.max(-1) / safe_mean,
        "load_cv": kept_E.std(-1) / safe_mean,
        "dead_fraction": (stats.kept_E == 0).mean(-1, dtype=jnp.float32),
        "active_experts": kept_E.sum(-1) / tokens,
        "active_width": (kept_E * jnp.asarray(widths, jnp.float32)).sum(-1) / tokens,
    }
    if stats.entropy is not None:
        result["entropy"] = stats.entropy / tokens
    for cause in CAUSES:
        result[f"dropped/{cause}"] = getattr(stats.ledger, cause) / tokens
    return result
