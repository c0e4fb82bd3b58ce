"""Sampling: temperature, top-k, top-p and greedy, with random numbers that belong to the text."""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from moejax.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn: logits are divided by the temperature, cut to the `top_k`
    largest, and these to the fewest whose probabilities reach `top_p` (the order of transformers).

    Attributes:
      temperature: 0 takes the most probable token (the lowest id among equals).
      top_k: 0 keeps all; among equal logits lower ids come first.
      top_p: in (0, 1]; at least one token is kept, and 1 keeps all.
      seed: of the random numbers, at least 0.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def validate(self) -> None:
        """Raises ConfigError, by the name of the flag, when a number is out of its range."""
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ConfigError(
                f"--temperature={self.temperature:g}: must be 0 (greedy) or above; nearest valid "
                "value 0"
            )
        if self.top_k < 0:
            raise ConfigError(
                f"--top_k={self.top_k}: must be 0 (all) or above; nearest valid value 0"
            )
        if not 0 < self.top_p <= 1:
            near = 1.0 if not self.top_p <= 1 else 0.01
            raise ConfigError(
                f"--top_p={self.top_p:g}: must be in (0, 1]; nearest valid value {near:g}"
            )
        if not 0 <= self.seed < 1 << 32:
            raise ConfigError(
                f"--seed={self.seed}: must be in [0, {(1 << 32) - 1}]; nearest valid value "
                f"{min(max(self.seed, 0), (1 << 32) - 1)}"
            )

    @property
    def cuts(self) -> bool:
        """Whether some tokens are out of reach."""
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Draws:
    """A `Sampling` for each row of a batch, as arrays.

    Attributes:
      temperature_B, top_p_B: float32 `[B]`.
      top_k_B: int32 `[B]`, 0 for all.
      key_B: PRNG keys `[B]`, of the texts (`text_key`).
    """

    temperature_B: jax.Array
    top_k_B: jax.Array
    top_p_B: jax.Array
    key_B: jax.Array


def text_key(seed: int, prompt: np.ndarray, sample: int) -> jax.Array:
    """PRNG key of a text: of the seed, the ids of its prompt and the number of the sample.

    Not of a row or a batch, so that a text does not depend on what else is written beside it. The
    prompt is in it (by its CRC-32) because texts of different prompts should be independent.
    """
    checksum = zlib.crc32(np.asarray(prompt, "<i4").tobytes())
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), checksum), sample)


def stack_draws(samplings: Sequence[Sampling], keys: Sequence[jax.Array]) -> Draws:
    """The samplings and keys of all rows."""
    return Draws(
        jnp.asarray([s.temperature for s in samplings], jnp.float32),
        jnp.asarray([s.top_k for s in samplings], jnp.int32),
        jnp.asarray([s.top_p for s in samplings], jnp.float32),
        jnp.stack(list(keys)),
    )


def draw(
    logits_BV: jax.Array, position_B: jax.Array, draws: Draws, *, greedy: bool, cut: bool
) -> tuple[jax.Array, jax.Array]:
    """The next token of each row.

    Args:
      logits_BV: float32 or wider.
      position_B: int32, position of the new token in its text: with the row's key it determines
        the random numbers.
      draws: how each row draws.
      greedy: static; every row has temperature 0, whatever `draws` says.
      cut: static; some row has a `top_k` or `top_p` that leaves tokens out.

    Returns:
      int32 `[B]` ids, -1 where logits are not finite; and `[B]` their log-probabilities under the
      model itself (temperature 1, nothing left out), in nats.
    """
    best_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    token_B = best_B
    if not greedy:
        key_B = jax.vmap(jax.random.fold_in)(draws.key_B, position_B)
        shape = logits_BV.shape[1:]
        noise_BV = jax.vmap(lambda key: jax.random.gumbel(key, shape, jnp.float32))(key_B)
        allowed_BV = allowed(logits_BV, draws) if cut else None
        # The largest of logits / temperature + Gumbel noise is a draw from their softmax.
        noisy_BV = _tempered(logits_BV, draws.temperature_B) + noise_BV
        if allowed_BV is not None:
            noisy_BV = jnp.where(allowed_BV, noisy_BV, -jnp.inf)
        drawn_B = jnp.argmax(noisy_BV, axis=-1).astype(jnp.int32)
        token_B = jnp.where(draws.temperature_B > 0, drawn_B, best_B)
    nll_B = jax.nn.logsumexp(logits_BV, axis=-1)
    logprob_B = jnp.take_along_axis(logits_BV, token_B[:, None], axis=-1)[:, 0] - nll_B
    return jnp.where(jnp.isfinite(logits_BV).all(-1), token_B, -1), logprob_B


def allowed(logits_BV: jax.Array, draws: Draws) -> jax.Array:
    """bool `[B, V]`: the tokens that `top_k` and then `top_p` leave."""
    vocab_size = logits_BV.shape[-1]
    tempered_BV = _tempered(logits_BV, draws.temperature_B)
    order_BV = jnp.argsort(-tempered_BV, axis=-1, stable=True)
    sorted_BV = jnp.take_along_axis(tempered_BV, order_BV, axis=-1)
    k_B1 = jnp.where(draws.top_k_B > 0, draws.top_k_B, vocab_size)[:, None]
    kept_BV = jnp.arange(vocab_size) < k_B1
    probs_BV = jax.nn.softmax(jnp.where(kept_BV, sorted_BV, -jnp.inf), axis=-1)
    before_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV
    # In a sum of many float32 the last ones may find no room below 1.
    p_B1 = draws.top_p_B[:, None]
    kept_BV &= (before_BV < p_B1) | (p_B1 >= 1)
    kept_BV = kept_BV.at[:, 0].set(True)
    row_B1 = jnp.arange(logits_BV.shape[0])[:, None]
    return jnp.zeros(logits_BV.shape, bool).at[row_B1, order_BV].set(kept_BV)


def _tempered(logits_BV: jax.Array, temperature_B: jax.Array) -> jax.Array:
    """Logits over temperature, the largest at 0 so that no temperature overflows."""
    below_BV = logits_BV - logits_BV.max(-1, keepdims=True)
    return below_BV / jnp.where(temperature_B > 0, temperature_B, 1.0)[:, None]
