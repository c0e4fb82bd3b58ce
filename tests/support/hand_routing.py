"""Routings written down by hand, for known answers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from moejax.routing import RouterInputs, Routing, routing_stats


def selection_routing(selection, probs, logits=None):
    """A Routing of exactly this selection, without a router."""
    probs = jnp.asarray(probs, jnp.float32)
    filled = selection.expert_TK < probs.shape[-1]
    return Routing(
        expert_TK=selection.expert_TK,
        weight_TK=selection.weight_TK,
        requested_T=filled.sum(-1, dtype=jnp.int32),
        scores_TE=probs,
        logits_TE=logits,
        num_experts=probs.shape[-1],
        max_rows=selection.expert_TK.size,
    )


@functools.partial(jax.jit, static_argnames=("num_sequences", "num_groups"))
def stats_of(routing, num_sequences=None, num_groups=None, **kwargs):
    """One compiled program is made sooner than an eager call's many small ones."""
    inputs = RouterInputs.of(routing.expert_TK.shape[0], **kwargs)
    return routing_stats(routing, inputs, num_sequences=num_sequences, num_groups=num_groups)


def hand_routing(experts, probs, num_experts):
    """Routing with given experts per token (lists) and probabilities."""
    slots = max(len(row) for row in experts)
    padded = [row + [num_experts] * (slots - len(row)) for row in experts]
    expert_TK = np.asarray(padded, np.int32)
    filled = expert_TK < num_experts
    return Routing(
        jnp.asarray(expert_TK),
        jnp.asarray(filled, jnp.float32),
        jnp.asarray(filled.sum(-1), jnp.int32),
        jnp.asarray(probs, jnp.float32),
        None,
        num_experts,
        expert_TK.size,
    )
