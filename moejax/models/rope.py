"""Rotary position embeddings (Su et al. 2021), half-split pairs as in Llama/Hugging Face, YaRN and
Llama 3's longer contexts.

Pairs are `(x[i], x[i + d/2])`. DeepSeek's checkpoints pair neighbours, `(x[2i], x[2i + 1])`; their
rotary rows (of `q_b_proj` and `kv_a_proj_with_mqa`) become ours in the order 0, 2, ..., 1, 3, ...:
queries and keys are permuted alike, so scores are the same.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from moejax.config.knobs import ConfigError, knob


@dataclasses.dataclass(frozen=True)
class Yarn:
    """YaRN (Peng et al. 2023, 2309.00071): longer contexts than trained on; off at factor 1."""

    factor: float = knob(
        1.0, low=1.0, doc="How many times longer the context becomes (s; DeepSeek: 40); 1: off."
    )
    original_max_position: int = knob(
        4096, low=1, unit="tokens", doc="Context length that was trained on."
    )
    beta_fast: float = knob(
        32.0, low=0.0, low_open=True, doc="Pairs with more turns than this in it stay as they are."
    )
    beta_slow: float = knob(
        1.0, low=0.0, low_open=True, doc="Pairs with fewer turns slow down by the whole factor."
    )
    mscale: float = knob(
        1.0, low=0.0, doc="Rotated vectors grow by m(mscale) / m(mscale_all_dim), with m(c) = "
        "0.1 c ln(factor) + 1 (DeepSeek-V2: 0.707).",
    )  # fmt: skip
    mscale_all_dim: float = knob(
        0.0, low=0.0, doc="Scores grow by m(mscale_all_dim)^2 (DeepSeek-V2: 0.707, V3: 1)."
    )

    def validate(self, path: str) -> None:
        """Raises ConfigError when the two turns are in the wrong order."""
        if self.beta_slow >= self.beta_fast:
            raise ConfigError(
                f"{path}.beta_slow={self.beta_slow}: must be below beta_fast={self.beta_fast}; "
                f"nearest valid value {self.beta_fast / 2}"
            )

    def check_theta(self, theta: float, path: str) -> None:
        """Raises ConfigError when all pairs turn at one speed, which YaRN cannot tell apart."""
        if self.factor > 1 and theta <= 1:
            raise ConfigError(
                f"{path}.rope_theta={theta}: YaRN needs a base above 1; nearest valid value 10000.0"
            )

    def slowdown(self, width: int, theta: float) -> np.ndarray:
        """float64 `[width / 2]`: factor on each pair's frequency, from 1 (fast) to 1/s (slow).

        Pair `i` turns `original * theta**(-2i/width) / 2 pi` times in the original context. Between
        the pairs that turn `beta_fast` and `beta_slow` times the two regimes are mixed linearly.
        """

        def pair_that_turns(times: float) -> float:
            reach = self.original_max_position / (times * 2 * math.pi)
            return width * math.log(reach) / (2 * math.log(theta))

        low = max(math.floor(pair_that_turns(self.beta_fast)), 0)
        high = min(math.ceil(pair_that_turns(self.beta_slow)), width - 1)
        slow = np.clip((np.arange(width // 2) - low) / max(high - low, 1e-3), 0.0, 1.0)
        return slow / self.factor + (1 - slow)

    def _m(self, strength: float) -> float:
        return 0.1 * strength * math.log(self.factor) + 1

    @property
    def amplitude(self) -> float:
        """Factor on the rotated vectors."""
        return self._m(self.mscale) / self._m(self.mscale_all_dim)

    @property
    def score_factor(self) -> float:
        """Factor on the attention scores."""
        return self._m(self.mscale_all_dim) ** 2


@dataclasses.dataclass(frozen=True)
class Llama3Rope:
    """Slower rotation for longer contexts as in Llama 3.1 (2407.21783; its released code); off at
    factor 1."""

    factor: float = knob(
        1.0, low=1.0, doc="Slow pairs slow down by it (Llama 3.1: 8, 3.2: 32); 1: off."
    )
    low_freq_factor: float = knob(
        1.0, low=0.0, low_open=True, doc="Pairs with fewer turns in the original context are slow."
    )
    high_freq_factor: float = knob(
        4.0, low=0.0, low_open=True, doc="Pairs with more turns in it stay as they are."
    )
    original_max_position: int = knob(
        8192, low=1, unit="tokens", doc="Context length that was trained on."
    )

    def validate(self, path: str) -> None:
        """Raises ConfigError when the two turns are in the wrong order."""
        if self.low_freq_factor >= self.high_freq_factor:
            raise ConfigError(
                f"{path}.low_freq_factor={self.low_freq_factor}: must be below high_freq_factor="
                f"{self.high_freq_factor}; nearest valid value {self.high_freq_factor / 2}"
            )

    def slowdown(self, width: int, theta: float) -> np.ndarray:
        """float64 `[width / 2]`: factor on each pair's frequency, from 1 (fast) to 1/factor (slow).

        Pair `i` turns `original * theta**(-2i/width) / 2 pi` times in the original context; between
        the two turns the regimes are mixed linearly in the number of turns.
        """
        half = width // 2
        turns = self.original_max_position * theta ** (-np.arange(half) / half) / (2 * math.pi)
        span = self.high_freq_factor - self.low_freq_factor
        fast = np.clip((turns - self.low_freq_factor) / span, 0.0, 1.0)
        return fast + (1 - fast) / self.factor


OFF = Yarn()
LLAMA3_OFF = Llama3Rope()


def rotate(
    x_BSHd: jax.Array,
    positions_BS: jax.Array,
    theta: float,
    yarn: Yarn = OFF,
    llama3: Llama3Rope = LLAMA3_OFF,
) -> jax.Array:
    """Rotates pairs `(x[i], x[i + d/2])` of each head by `position * theta**(-2i/d)`.

    With YaRN, slower by `yarn.slowdown` and longer by `yarn.amplitude`; with Llama 3's, slower by
    `llama3.slowdown`. Angles and rotation are float32 at least; the result has the dtype of
    `x_BSHd`.
    """
    half = x_BSHd.shape[-1] // 2
    wide = jnp.promote_types(x_BSHd.dtype, jnp.float32)
    frequency_d = theta ** (-jnp.arange(half, dtype=wide) / half)
    if yarn.factor > 1:
        frequency_d = frequency_d * jnp.asarray(yarn.slowdown(2 * half, theta), wide)
    if llama3.factor > 1:
        frequency_d = frequency_d * jnp.asarray(llama3.slowdown(2 * half, theta), wide)
    angle_BS1d = positions_BS.astype(wide)[..., None, None] * frequency_d
    cos, sin = jnp.cos(angle_BS1d), jnp.sin(angle_BS1d)
    first, second = jnp.split(x_BSHd.astype(wide), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    if yarn.factor > 1:
        rotated = rotated * yarn.amplitude
    return rotated.astype(x_BSHd.dtype)
