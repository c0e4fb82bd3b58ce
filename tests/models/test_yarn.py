"""YaRN (2309.00071) against its formulas, written out pair by pair."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.models.attention import AttentionConfig, AttentionInputs
from moejax.models.rope import Yarn, rotate

DEEPSEEK_V2 = Yarn(40.0, 4096, mscale=0.707, mscale_all_dim=0.707)
DEEPSEEK_V3 = Yarn(40.0, 4096, mscale=1.0, mscale_all_dim=1.0)
QWEN = Yarn(4.0, 32_768)


def slowdown(yarn, width, theta):
    """By turns: `r(i)`, how often pair `i` turns in the original context (section 3.2)."""

    def pair(turns):  # solves r(i) = turns for i
        return width * math.log(yarn.original_max_position / (turns * 2 * math.pi)) / (
            2 * math.log(theta)
        )  # fmt: skip

    low, high = max(math.floor(pair(yarn.beta_fast)), 0), math.ceil(pair(yarn.beta_slow))
    factors = []
    for i in range(width // 2):
        share = 0.0 if i <= low else 1.0 if i >= high else (i - low) / (high - low)
        factors.append((1 - share) + share / yarn.factor)
    return np.array(factors)


@pytest.mark.parametrize(
    "yarn, width, theta", [(DEEPSEEK_V2, 64, 1e4), (QWEN, 128, 1e6), (Yarn(2.0, 64), 16, 100.0)]
)
def test_each_pair_slows_down_by_its_turns(yarn, width, theta):
    got = yarn.slowdown(width, theta)
    np.testing.assert_allclose(got, slowdown(yarn, width, theta), rtol=1e-14)
    turns = yarn.original_max_position * theta ** (-2 * np.arange(width // 2) / width) / 2 / np.pi
    assert (got[turns > theta ** (2 / width) * yarn.beta_fast] == 1).all()
    assert (got[turns < theta ** (-2 / width) * yarn.beta_slow] == 1 / yarn.factor).all()
    assert (np.diff(got) <= 0).all() and got[0] > got[-1]


def test_deepseek_known_answers():
    """64 rotary dimensions, base 10000, 4096 tokens: pairs 10 to 23 mix both regimes."""
    got = DEEPSEEK_V2.slowdown(64, 1e4)
    assert (got[:11] == 1).all() and got[11] < 1
    assert (got[23:] == 1 / 40).all() and got[22] > 1 / 40
    assert got[12] == pytest.approx(1 - 2 / 13 * 39 / 40)
    m = 0.1 * 0.707 * math.log(40) + 1
    assert (DEEPSEEK_V2.amplitude, DEEPSEEK_V2.score_factor) == (1, pytest.approx(m**2))
    assert DEEPSEEK_V3.score_factor == pytest.approx((0.1 * math.log(40) + 1) ** 2)
    # Without mscale_all_dim (Qwen, Llama): the rotated vectors grow, and both sides of the score.
    assert QWEN.amplitude == pytest.approx(0.1 * math.log(4) + 1)
    assert QWEN.score_factor == 1


def test_rotate_uses_slower_angles_and_longer_vectors(rng):
    yarn = Yarn(8.0, 32, mscale=1.0, mscale_all_dim=0.5)
    x_BSHd, positions_BS = rng.standard_normal((2, 5, 3, 8)), rng.integers(0, 200, (2, 5))
    with jax.enable_x64(True):
        got = rotate(jnp.asarray(x_BSHd), jnp.asarray(positions_BS), 1e3, yarn)
    grown = (0.1 * math.log(8) + 1) / (0.05 * math.log(8) + 1)
    want = np.zeros(x_BSHd.shape)
    for i, factor in enumerate(slowdown(yarn, 8, 1e3)):
        turn = np.exp(1j * positions_BS * 1e3 ** (-i / 4) * factor)[..., None]
        pair = (x_BSHd[..., i] + 1j * x_BSHd[..., i + 4]) * turn * grown
        want[..., i], want[..., i + 4] = pair.real, pair.imag
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def test_off_by_default_and_at_factor_one(rng):
    x_BSHd, positions_BS = rng.standard_normal((1, 4, 2, 8)), np.arange(4)[None]
    plain = rotate(jnp.asarray(x_BSHd), jnp.asarray(positions_BS), 1e4)
    off = rotate(jnp.asarray(x_BSHd), jnp.asarray(positions_BS), 1e4, Yarn(1.0, 2, mscale=3.0))
    np.testing.assert_array_equal(plain, off)
    assert Yarn(1.0, 2, mscale=3.0).amplitude == Yarn(1.0, 2, mscale_all_dim=3.0).score_factor == 1


def test_neighbouring_pairs_are_half_split_ones_in_another_order(rng):
    """DeepSeek's layout: rotate `(x[2i], x[2i+1])`; ours takes rows 0, 2, ..., 1, 3, ..."""
    x_BSHd, positions_BS = rng.standard_normal((2, 3, 1, 8)), rng.integers(0, 50, (2, 3))
    turn = np.exp(1j * positions_BS[..., None] * 1e4 ** (-np.arange(4) / 4))[:, :, None]
    pairs = (x_BSHd[..., 0::2] + 1j * x_BSHd[..., 1::2]) * turn
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    with jax.enable_x64(True):
        got = rotate(jnp.asarray(x_BSHd[..., order]), jnp.asarray(positions_BS), 1e4)
    want = np.concatenate([pairs.real, pairs.imag], -1)
    np.testing.assert_allclose(got, want, atol=1e-12)


def test_grouped_attention_takes_it_too(rng):
    """YaRN's tempering is nothing but a scale of queries: queries grown by hand give the same."""
    yarn = Yarn(8.0, 4, mscale=0.0, mscale_all_dim=2.0)
    x_BSD = jnp.asarray(rng.standard_normal((1, 6, 8)), jnp.float32)
    inputs = AttentionInputs(jnp.arange(6)[None] * 3, jnp.ones((1, 6), jnp.int32))

    def output(yarn, grow=1.0):
        from flax import nnx

        module = AttentionConfig(heads=2, yarn=yarn).build(8, rngs=nnx.Rngs(0))
        module.q_DHd[...] = grow * module.q_DHd[...]
        return np.asarray(jax.jit(lambda x: module(x, inputs)[0])(x_BSD))

    m = 0.2 * math.log(8) + 1
    # m(0) / m(2) shrinks both rotated vectors, m(2)^2 gives it back: only the angles differ.
    plain_angles = output(Yarn())
    got = output(yarn)
    np.testing.assert_allclose(got, output(Yarn(8.0, 4, mscale=0.0)), atol=1e-6)
    np.testing.assert_allclose(
        output(Yarn(8.0, 4, mscale=2.0, mscale_all_dim=2.0)), output(yarn, m**2), atol=1e-6
    )
    assert np.abs(got - plain_angles).max() > 1e-4
