"""Hard-concrete gates: how a 0/1 mask is learned by gradient (Louizos et al. 2018, 1712.01312).

A gate `z` in [0, 1] is a sigmoid of `log_alpha` and logistic noise, stretched to (LOW, HIGH) and
clipped, so that it is exactly 0 or exactly 1 with positive probability. The constants, the clamp
and the rule that closes as many gates as are expected to be closed are those of LLM-Shearing
(Xia et al. 2024, 2310.06694; llmshearing/models/l0_module.py); methods.md F.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

LOW, HIGH, TEMPERATURE = -0.1, 1.1, 2 / 3
LEAST, MOST = math.log(1e-2), math.log(1e2)
"""`log_alpha` is kept within these."""
FULLY_OPEN = math.log((1 - LOW) / (HIGH - 1))
"""From this `log_alpha` on `clip(sigmoid(log_alpha) (HIGH - LOW) + LOW)`, without noise, is 1."""
_ODDS = TEMPERATURE * math.log(-LOW / HIGH)
_EDGE = 1e-6


@jax.custom_vjp
def clamped(log_alpha: jax.Array) -> jax.Array:
    """`log_alpha` within [LEAST, MOST]. Where it is at an end, a gradient passes only if a step
    against it leads back inside: as though it had been clamped after every step."""
    return jnp.clip(log_alpha, LEAST, MOST)


def _clamped_forward(log_alpha: jax.Array) -> tuple[jax.Array, jax.Array]:
    return clamped(log_alpha), log_alpha


def _clamped_backward(log_alpha: jax.Array, slope: jax.Array) -> tuple[jax.Array]:
    outwards = ((log_alpha >= MOST) & (slope < 0)) | ((log_alpha <= LEAST) & (slope > 0))
    return (jnp.where(outwards, 0.0, slope),)


clamped.defvjp(_clamped_forward, _clamped_backward)


def open_probability(log_alpha: jax.Array) -> jax.Array:
    """`P(z > 0) = sigmoid(log_alpha - TEMPERATURE log(-LOW / HIGH))`: what L0 counts."""
    return jax.nn.sigmoid(log_alpha - _ODDS)


def sample(log_alpha: jax.Array, key: jax.Array) -> jax.Array:
    """A draw of every gate, in [0, 1]; differentiable in `log_alpha` where it is inside."""
    u = jax.random.uniform(key, log_alpha.shape, log_alpha.dtype, _EDGE, 1 - _EDGE)
    s = jax.nn.sigmoid((jnp.log(u) - jnp.log1p(-u) + log_alpha) / TEMPERATURE)
    return jnp.clip(s * (HIGH - LOW) + LOW, 0.0, 1.0)


def decided(log_alpha_ME: jax.Array) -> jax.Array:
    """bool `[..., E]`: the gates that stay, without noise.

    Of each row as many are closed as are expected to be, `round(sum P(z = 0))`, those with the
    smallest `log_alpha` (of equal ones the last first). But never one that would be 1 without
    noise, so that a fresh mask is all ones however many gates there are, and never the last one.

    LLM-Shearing keeps soft values for the gates that stay; here they are 1, because an expert that
    is left out or runs at its true cost has no half-open gate.
    """
    log_alpha_ME = jax.lax.stop_gradient(log_alpha_ME)
    num = log_alpha_ME.shape[-1]
    expected_M1 = (1.0 - open_probability(log_alpha_ME)).sum(-1, keepdims=True)
    closed_M1 = jnp.minimum(jnp.round(expected_M1), num - 1)
    # Backwards, so that a stable sort puts the later of equal gates first.
    order_ME = jnp.argsort(log_alpha_ME[..., ::-1], axis=-1, stable=True)
    rank_ME = jnp.argsort(order_ME, axis=-1)[..., ::-1]
    return (rank_ME >= closed_M1) | (log_alpha_ME >= FULLY_OPEN)
