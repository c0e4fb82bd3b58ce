"""Group-limited selection: a token's experts come from a few groups (devices, nodes) only.

DeepSeek-V2 (2405.04434, section 2.2.2) keeps the groups that hold the highest scores, DeepSeek-V3
(2412.19437; official `Gate`) those with the highest sum of their two best biased scores. Groups are
neighbours: group g holds the experts `g*E/G ... (g+1)*E/G - 1`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from moejax.config.knobs import ConfigError


def limit_to_groups(scores_TE: jax.Array, groups: int, kept: int, *, best: int) -> jax.Array:
    """Scores with -inf outside the `kept` best groups of each token.

    -inf, never 0 (V2's code): a 0 would win over a negative score (methods C.8).

    Args:
      scores_TE: float32 `[T, E]`, what the selection ranks.
      groups: number of groups G; divides E.
      kept: groups that a token's experts may come from. Ties go to the lowest group.
      best: a group counts for the sum of this many of its best scores (V2: 1, V3: 2).
    """
    num_tokens, num_experts = scores_TE.shape
    if kept >= groups:
        return scores_TE
    scores_TGN = scores_TE.reshape(num_tokens, groups, num_experts // groups)
    best_TGB, _ = jax.lax.top_k(scores_TGN, min(best, num_experts // groups))
    _, group_TM = jax.lax.top_k(best_TGB.sum(-1), kept)
    open_TG = (group_TM[..., None] == jnp.arange(groups)).any(1)
    return jnp.where(open_TG[..., None], scores_TGN, -jnp.inf).reshape(scores_TE.shape)


def check_groups(k: int, groups: int, kept: int, num_experts: int, path: str) -> None:
    """Raises ConfigError when `k` experts cannot come from `kept` of `groups` equal groups."""
    if num_experts % groups:
        divisors = [n for n in range(1, num_experts + 1) if num_experts % n == 0]
        nearest = min(divisors, key=lambda n: abs(n - groups))
        raise ConfigError(
            f"{path}.groups={groups}: does not divide {num_experts} experts; "
            f"nearest valid value {nearest}"
        )
    if kept > groups:
        raise ConfigError(
            f"{path}.groups_kept={kept}: there are {groups} groups; nearest valid value {groups}"
        )
    reach = kept * (num_experts // groups)
    if k > reach:
        raise ConfigError(
            f"{path}.k: asks for {k} experts per token but the {kept} kept of {groups} groups hold "
            f"{reach}; nearest valid value {reach}"
        )
