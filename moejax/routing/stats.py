"""`RoutingStats`: one MoE layer's routing, condensed into sums that simply add up.

Everything here is a *sum over tokens*, so statistics of shards and micro-batches are added first
and turned into ratios last: the order that makes a loss independent of the mesh.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from moejax.routing.contract import RouterInputs, Routing
from moejax.routing.ledger import Ledger, open_ledger


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RoutingStats:
    """Additive sums over the valid tokens of a batch; leading axes (layers) are allowed.

    Attributes:
      tokens: int32 `[...]`, valid tokens.
      count_E: int32 `[..., E]`, assignments made by the router (after `k_max`, before capacity).
      kept_E: int32 `[..., E]`, assignments that the experts computed.
      ledger: requested, kept and dropped assignments.
      score_E: float32 `[..., E]`, sum of raw scores; carries gradient. None if no scores.
      prob_E: float32 `[..., E]`, sum of normalised scores; carries gradient. None if no scores.
      entropy: float32 `[...]`, sum of `-sum_e P log P` in nats; carries gradient. None if none.
      z: float32 `[...]`, sum of `logsumexp(logits)^2`; carries gradient. None if no logits.
      count_BE, prob_BE, tokens_B: the same per sequence, or None unless a loss asks for them.
      sent_G, sent_BG: int32 `[..., G]`, `[..., B, G]`, tokens with an expert in each group of
        experts (device), or None unless a loss asks for them.
    """

    tokens: jax.Array
    count_E: jax.Array
    kept_E: jax.Array
    ledger: Ledger
    score_E: jax.Array | None
    prob_E: jax.Array | None
    entropy: jax.Array | None
    z: jax.Array | None
    count_BE: jax.Array | None = None
    prob_BE: jax.Array | None = None
    tokens_B: jax.Array | None = None
    sent_G: jax.Array | None = None
    sent_BG: jax.Array | None = None


def routing_stats(
    routing: Routing,
    inputs: RouterInputs,
    *,
    kept: Routing | None = None,
    ledger: Ledger | None = None,
    num_sequences: int | None = None,
    num_groups: int | None = None,
) -> RoutingStats:
    """Condenses a routing. Padding never counts.

    Args:
      routing: what the router chose.
      kept: what is left of it after capacity and budgets (default: all of it).
      ledger: the matching books (default: opened from `routing`).
      num_sequences: also keep sums per sequence, by `inputs.sequence_T` in `[0, num_sequences)`.
      num_groups: also count the tokens that have an expert in each of `G` equal groups of
        neighbouring experts (a divisor of the number of experts).

    Raises:
      ValueError: `num_sequences` without `inputs.sequence_T`.
    """
    valid_T, sequence_T = inputs.valid_T, inputs.sequence_T
    if num_sequences is not None and sequence_T is None:
        raise ValueError("statistics per sequence need inputs.sequence_T")
    count_E = routing.count_E
    score_E = prob_E = entropy = z = None
    count_BE = prob_BE = tokens_B = sent_G = sent_BG = None
    if routing.scores_TE is not None:
        score_E = jnp.where(valid_T[:, None], routing.scores_TE, 0.0).sum(0)
        prob_TE = jnp.where(valid_T[:, None], routing.probs_TE, 0.0)
        prob_E = prob_TE.sum(0)
        entropy = token_entropy(prob_TE).sum()
        if num_sequences is not None and sequence_T is not None:
            prob_BE = jax.ops.segment_sum(prob_TE, sequence_T, num_sequences)
    if routing.logits_TE is not None:
        lse_T = jax.nn.logsumexp(routing.logits_TE, axis=-1)
        z = jnp.where(valid_T, lse_T**2, 0.0).sum()
    if num_sequences is not None and sequence_T is not None:
        slots = routing.expert_TK.shape[1]
        row_TK = jnp.broadcast_to(sequence_T[:, None], (valid_T.shape[0], slots))
        count_BE = (
            jnp.zeros((num_sequences, routing.num_experts), jnp.int32)
            .at[row_TK, routing.expert_TK]
            .add(1, mode="drop")
        )
        tokens_B = jax.ops.segment_sum(valid_T.astype(jnp.int32), sequence_T, num_sequences)
    if num_groups is not None:
        sent_TG = _sent_to(routing, num_groups)
        sent_G = sent_TG.sum(0, dtype=jnp.int32)
        if num_sequences is not None and sequence_T is not None:
            sent_BG = jax.ops.segment_sum(sent_TG.astype(jnp.int32), sequence_T, num_sequences)
    return RoutingStats(
        tokens=valid_T.sum(dtype=jnp.int32),
        count_E=count_E,
        kept_E=count_E if kept is None else kept.count_E,
        ledger=open_ledger(routing) if ledger is None else ledger,
        score_E=score_E,
        prob_E=prob_E,
        entropy=entropy,
        z=z,
        count_BE=count_BE,
        prob_BE=prob_BE,
        tokens_B=tokens_B,
        sent_G=sent_G,
        sent_BG=sent_BG,
    )


def _sent_to(routing: Routing, num_groups: int) -> jax.Array:
    """bool `[T, G]`: the groups of neighbouring experts in which a token has an expert."""
    group_TK = routing.expert_TK // (routing.num_experts // num_groups)  # sentinel: group G
    return (group_TK[..., None] == jnp.arange(num_groups)).any(1)


def token_entropy(prob_TE: jax.Array) -> jax.Array:
    """`-sum_e P log P` in nats, `[T]`; 0 log 0 = 0, with finite gradients there."""
    safe_TE = jnp.where(prob_TE > 0, prob_TE, 1.0)
    return -(prob_TE * jnp.log(safe_TE)).sum(-1)
