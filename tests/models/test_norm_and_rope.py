import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.models.norm import RMSNorm
from moejax.models.rope import rotate as rotate_eagerly

rotate = jax.jit(rotate_eagerly, static_argnums=2)


def numpy_rope(x_BSHd, positions_BS, theta):
    batch, length, heads, width = x_BSHd.shape
    out = np.zeros(x_BSHd.shape)
    for b, s, h, i in np.ndindex(batch, length, heads, width // 2):
        angle = positions_BS[b, s] * theta ** (-2 * i / width)
        first, second = x_BSHd[b, s, h, i], x_BSHd[b, s, h, i + width // 2]
        out[b, s, h, i] = first * np.cos(angle) - second * np.sin(angle)
        out[b, s, h, i + width // 2] = first * np.sin(angle) + second * np.cos(angle)
    return out


def test_rms_norm_is_the_formula(rng):
    x, scale = rng.standard_normal((3, 5, 8)), rng.standard_normal(8)
    norm = RMSNorm(8, 1e-3)
    norm.scale_D[...] = jnp.asarray(scale, jnp.float32)
    want = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-3) * scale
    np.testing.assert_allclose(norm(jnp.asarray(x, jnp.float32)), want, rtol=1e-5, atol=1e-6)


def test_rms_norm_ignores_the_scale_of_its_input_and_survives_zeros(rng):
    x = jnp.asarray(rng.standard_normal((4, 8)), jnp.float32)
    norm = RMSNorm(8, 1e-9)
    step = jax.jit(jax.value_and_grad(lambda x: (norm(x).sum(), norm(x)), has_aux=True))
    np.testing.assert_allclose(step(1000 * x)[0][1], step(x)[0][1], rtol=1e-5)
    (_, zeros), gradient = step(jnp.zeros((4, 8)))
    assert np.all(np.asarray(zeros) == 0)
    assert np.isfinite(gradient).all()


def test_rms_norm_in_bfloat16_has_float32_statistics(rng):
    # 256 equal squares: a bfloat16 running sum would stop growing long before the end.
    x = jnp.full((1, 4096), 3.0, jnp.bfloat16)
    norm = RMSNorm(4096, 1e-6, jnp.bfloat16)
    assert norm(x).dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(norm(x), np.float32), 1.0, rtol=1e-2)
    assert norm.scale_D[...].dtype == jnp.bfloat16


@pytest.mark.parametrize("theta", [10_000.0, 100.0])
def test_rope_is_the_formula(rng, theta):
    x = rng.standard_normal((2, 5, 2, 6))
    positions = rng.integers(0, 300, (2, 5))
    got = rotate(jnp.asarray(x, jnp.float32), jnp.asarray(positions), theta)
    np.testing.assert_allclose(got, numpy_rope(x, positions, theta), atol=1e-4)


def test_rope_keeps_lengths_and_leaves_position_zero_alone(rng):
    x = jnp.asarray(rng.standard_normal((1, 4, 2, 8)), jnp.float32)
    rotated = rotate(x, jnp.asarray([[0, 1, 77, 4095]]), 10_000.0)
    np.testing.assert_array_equal(rotated[:, 0], x[:, 0])
    np.testing.assert_allclose(
        np.linalg.norm(rotated, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5
    )


def test_scores_under_rope_depend_on_the_distance_only(rng):
    q = jnp.asarray(rng.standard_normal(8), jnp.float32)
    k = jnp.asarray(rng.standard_normal(8), jnp.float32)

    def score(at_q, at_k):
        pair = jnp.stack([q, k])[None, :, None]
        q_m, k_n = rotate(pair, jnp.asarray([[at_q, at_k]]), 10_000.0)[0, :, 0]
        return float(q_m @ k_n)

    for distance in (0, 1, 5):
        scores = [score(start + distance, start) for start in (0, 3, 50, 1000)]
        np.testing.assert_allclose(scores, scores[0], atol=5e-4)
    assert abs(score(9, 0) - score(0, 0)) > 1e-2


def test_rope_in_bfloat16_rotates_in_float32(rng):
    x = jnp.asarray(rng.standard_normal((1, 2, 1, 8)), jnp.bfloat16)
    positions = jnp.asarray([[4001, 4002]])  # bfloat16 holds neither
    got = rotate(x, positions, 10_000.0)
    assert got.dtype == jnp.bfloat16
    want = numpy_rope(np.asarray(x, np.float64), np.asarray(positions), 10_000.0)
    np.testing.assert_allclose(np.asarray(got, np.float32), want, atol=0.02)
