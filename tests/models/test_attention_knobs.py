"""Knobs of attention that checkpoints of others need, against slow oracles."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moejax.config import ConfigError
from moejax.models.attention import AttentionConfig, AttentionInputs, LatentAttentionConfig
from moejax.models.rope import Llama3Rope, Yarn, rotate

D, B, S = 10, 2, 5


def inputs():
    positions = jnp.tile(jnp.arange(S, dtype=jnp.int32), (B, 1))
    return AttentionInputs(positions, jnp.ones((B, S), jnp.int32))


def built(rng, **knobs):
    """A layer with weights that are no round numbers anywhere."""
    config = AttentionConfig(heads=4, kv_heads=2, head_dim=6, rope_theta=50.0, **knobs)
    layer = nnx.eval_shape(lambda: config.build(D, rngs=nnx.Rngs(0), norm_eps=0.1))
    drawn = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), nnx.state(layer)
    )
    nnx.update(layer, drawn)
    return layer


def output(layer, x_BSD):
    """Of one program: operation by operation takes ten times as long."""
    return np.asarray(jax.jit(lambda x: layer(x, inputs())[0])(x_BSD))


def oracle(layer, x_BSD, *, normed=lambda x, scale: x, clip=math.inf):
    """One query at a time; float64."""
    q, k, v = (
        np.einsum("bsd,dhe->bshe", x_BSD, np.asarray(w[...], np.float64))
        for w in (layer.q_DHd, layer.k_DGd, layer.v_DGd)
    )
    if layer.config.qk_norm:
        q = normed(q, np.asarray(layer.q_norm.scale_D[...], np.float64))
        k = normed(k, np.asarray(layer.k_norm.scale_D[...], np.float64))
    q, k, v = (np.clip(x, -clip, clip) for x in (q, k, v))

    def turned(x):
        out = x.copy()
        for place in range(S):
            for pair in range(3):
                angle = place * 50.0 ** (-pair / 3)
                a, b = x[:, place, :, pair], x[:, place, :, pair + 3]
                out[:, place, :, pair] = a * math.cos(angle) - b * math.sin(angle)
                out[:, place, :, pair + 3] = b * math.cos(angle) + a * math.sin(angle)
        return out

    q, k = turned(q), turned(k)
    y = np.zeros((B, S, D))
    for b in range(B):
        for s in range(S):
            for h in range(4):
                scores = np.array([q[b, s, h] @ k[b, c, h // 2] for c in range(s + 1)]) / 6**0.5
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                mixed = sum(w * v[b, c, h // 2] for c, w in enumerate(weights))
                y[b, s] += mixed @ np.asarray(layer.o_HdD[...], np.float64)[h]
    return y


def test_norm_over_the_projection_is_over_all_heads_together(rng):
    def normed(x, scale):
        flat = x.reshape(B, S, -1)
        flat = flat / np.sqrt((flat**2).mean(-1, keepdims=True) + 0.1) * scale
        return flat.reshape(x.shape)

    layer = built(rng, qk_norm=True, qk_norm_over="projection")
    assert layer.q_norm.scale_D.shape == (24,) and layer.k_norm.scale_D.shape == (12,)
    assert layer.config.num_vector_parameters == 36
    x_BSD = rng.normal(size=(B, S, D)).astype(np.float32)
    got = output(layer, x_BSD)
    np.testing.assert_allclose(got, oracle(layer, x_BSD, normed=normed), atol=2e-4)
    apart = oracle(layer, x_BSD, normed=lambda x, scale: x)
    assert np.abs(got - apart).max() > 0.1


def test_clipping_is_of_queries_keys_and_values_before_they_turn(rng):
    layer = built(rng, clip_qkv=0.7)
    x_BSD = rng.normal(size=(B, S, D)).astype(np.float32)
    got = output(layer, x_BSD)
    np.testing.assert_allclose(got, oracle(layer, x_BSD, clip=0.7), atol=2e-4)
    assert np.abs(got - oracle(layer, x_BSD)).max() > 0.1


def test_neither_changes_what_was_there_before():
    assert AttentionConfig().qk_norm_over == "head" and AttentionConfig().clip_qkv == 0
    assert AttentionConfig().llama3.factor == 1 and LatentAttentionConfig().latent_norm_eps == 0


def test_latents_have_an_epsilon_of_their_own():
    def layer(**knobs):
        config = LatentAttentionConfig(heads=2, q_lora_rank=6, kv_lora_rank=8, qk_nope_head_dim=4,
                                       qk_rope_head_dim=4, v_head_dim=4, **knobs)  # fmt: skip
        return nnx.eval_shape(lambda: config.build(D, rngs=nnx.Rngs(0), norm_eps=0.5))

    assert layer().q_norm.eps == layer().kv_norm.eps == 0.5
    own = layer(latent_norm_eps=1e-3)
    assert own.q_norm.eps == own.kv_norm.eps == 1e-3


ROPE = Llama3Rope(8.0, 1.0, 4.0, 8192)


def test_llama3_slows_pairs_down_by_their_wavelength():
    """As the released code says it (`apply_scaling`), pair by pair."""
    width, theta = 128, 500_000.0
    got = ROPE.slowdown(width, theta)
    for pair in range(width // 2):
        frequency = theta ** (-2 * pair / width)
        wavelength = 2 * math.pi / frequency
        if wavelength < 8192 / 4:
            wanted = frequency
        elif wavelength > 8192 / 1:
            wanted = frequency / 8
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            wanted = (1 - smooth) * frequency / 8 + smooth * frequency
        assert got[pair] * frequency == pytest.approx(wanted, rel=1e-12)
    assert got[0] == 1 and got[-1] == 1 / 8 and (np.diff(got) <= 0).all()


def test_rotate_takes_the_slower_angles(rng):
    rope = Llama3Rope(4.0, 1.0, 4.0, 16)
    x = rng.normal(size=(1, 3, 1, 8)).astype(np.float32)
    positions = np.array([[0, 7, 30]], np.int32)
    got = np.asarray(rotate(jnp.asarray(x), jnp.asarray(positions), 100.0, llama3=rope))
    slow = rope.slowdown(8, 100.0)
    for place, position in enumerate(positions[0]):
        for pair in range(4):
            angle = position * 100.0 ** (-pair / 4) * slow[pair]
            a, b = x[0, place, 0, pair], x[0, place, 0, pair + 4]
            want = a * math.cos(angle) - b * math.sin(angle)
            assert got[0, place, 0, pair] == pytest.approx(want, abs=1e-5)


def test_wrong_stretchings_are_refused():
    with pytest.raises(ConfigError, match="must be below high_freq_factor"):
        Llama3Rope(8.0, 4.0, 4.0).validate("x")
    both = AttentionConfig(yarn=Yarn(2.0), llama3=Llama3Rope(2.0))
    with pytest.raises(ConfigError, match="stretched by"):
        both.resolve(64)
