"""Randomness that belongs to a token, not to its place in an array.

Noise drawn as one array changes when padding is added, when rows move or when devices share the
batch. Here a number is a hash (murmur3's 32-bit finaliser, chained) of the key, of who the token
is (row of the batch, document, position, token id) and of a column: pure, counted in nothing, the
same on every mesh. Good for routing noise and controls; not for cryptography.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from moejax.routing.contract import RouterInputs

_GOLDEN = 0x9E3779B9
JITTER, LOGITS, CHOICE = 1, 2, 3
"""Salts: uses of one key that share nothing."""


def mix(*parts: jax.Array | int) -> jax.Array:
    """uint32 hash of integers; arrays broadcast. Every bit of every part moves every bit."""
    h = jnp.uint32(_GOLDEN)
    for part in parts:
        h = (h ^ jnp.asarray(part).astype(jnp.uint32)) + jnp.uint32(_GOLDEN)
        h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
        h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
        h = h ^ (h >> 16)
    return h


def valid_index(inputs: RouterInputs) -> jax.Array:
    """int32 `[T]`: how many valid tokens come before each token; padding changes nothing."""
    return jnp.cumsum(inputs.valid_T.astype(jnp.int32)) - inputs.valid_T


def token_hash(inputs: RouterInputs) -> jax.Array:
    """uint32 `[T]`: who a token is, by row of the batch, document in the row, position in the
    document and token id.

    Without positions (a layer used outside a language model) a token is known by its place among
    the valid tokens.
    """
    if inputs.position_T is None:
        return mix(valid_index(inputs))
    parts = (inputs.sequence_T, inputs.segment_T, inputs.position_T, inputs.token_id_T)
    return mix(*(0 if part is None else part for part in parts))


def token_bits(inputs: RouterInputs, columns: int, salt: int) -> jax.Array:
    """uint32 `[T, columns]`, fresh for every key; `salt` tells uses of one key apart.

    Raises:
      ValueError: there is no key.
    """
    if inputs.key is None:
        raise ValueError("noise needs a key; without one a router is deterministic")
    key_2 = jax.random.bits(inputs.key, (2,), "uint32")
    token_T1 = mix(key_2[0], key_2[1], salt, token_hash(inputs))[:, None]
    return mix(token_T1, jnp.arange(columns))


def uniform(inputs: RouterInputs, columns: int, salt: int) -> jax.Array:
    """float32 `[T, columns]`, 2^23 equally likely values, symmetric in (0, 1).

    0 and 1 are none of them: a half added to 24 bits would round the greatest to 1, whose normal
    is infinite, and a million draws make a run.
    """
    bits = token_bits(inputs, columns, salt) >> 9
    return (bits.astype(jnp.float32) + 0.5) * 2.0**-23


def normal(inputs: RouterInputs, columns: int, salt: int) -> jax.Array:
    """float32 `[T, columns]`, standard normal (no value lies beyond 5.5)."""
    return 2.0**0.5 * jax.lax.erf_inv(2.0 * uniform(inputs, columns, salt) - 1.0)
