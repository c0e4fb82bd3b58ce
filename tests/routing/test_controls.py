"""Routers that look at no hidden state (hash, random, round robin), and the noise of a token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.routing import RouterInputs, noise
from moejax.routing.routers import Hash, Random, RoundRobin

E = 8


def ids(num_tokens):
    return np.arange(num_tokens, dtype=np.int32)


def route(router, inputs, num_experts=E):
    """Expert table `[T, K]` of a router that needs neither hidden states nor parameters."""
    inputs = dataclasses.replace(inputs, num_experts=num_experts)
    x_TD = np.zeros((inputs.valid_T.shape[0], 1), np.float32)
    return np.asarray(
        jax.jit(lambda x, inputs: router(x, inputs, {}, {})[0])(x_TD, inputs).expert_TK
    )


# ---- hash


def test_hash_is_a_fixed_table():
    """Written down: a trained model must find its experts again."""
    table_VK = route(Hash(k=2), RouterInputs.of(6, token_id_T=ids(6)))
    assert table_VK.tolist() == [[3, 0], [3, 0], [2, 4], [5, 0], [1, 0], [4, 3]]
    again = route(Hash(k=2), RouterInputs.of(6, token_id_T=ids(6)[::-1]))
    np.testing.assert_array_equal(again, table_VK[::-1])
    other = route(Hash(k=2, seed=1), RouterInputs.of(6, token_id_T=ids(6)))
    assert other.tolist() != table_VK.tolist()


@pytest.mark.parametrize("k", [1, 3])
def test_hash_spreads_the_vocabulary_evenly(k):
    vocabulary = 8000
    table_VK = route(Hash(k=k), RouterInputs.of(vocabulary, token_id_T=ids(vocabulary)))
    assert (np.diff(np.sort(table_VK, -1), axis=-1) > 0).all()  # distinct
    expected = vocabulary * k / E
    deviation_E = (np.bincount(table_VK.reshape(-1), minlength=E) - expected) / expected**0.5
    assert np.abs(deviation_E).max() < 3.5


def test_what_hash_routing_needs():
    with pytest.raises(ValueError, match=r"hash routing needs token ids: RouterInputs\(token_id_T"):
        route(Hash(), RouterInputs.of(3))
    with pytest.raises(ValueError, match=r"3 distinct experts of 0: RouterInputs\(num_experts"):
        route(Hash(k=3), RouterInputs.of(3, token_id_T=ids(3)), num_experts=0)
    with pytest.raises(ValueError, match=r"2 distinct experts of 1: RouterInputs\(num_experts"):
        route(RoundRobin(), RouterInputs.of(3), num_experts=1)


# ---- random


def test_two_documents_of_a_row_draw_their_own_noise():
    """Also where the same token stands at the same position of both."""
    zeros = np.zeros(2, np.int32)
    same = {"token_id_T": zeros, "position_T": zeros, "sequence_T": zeros}
    key = jax.random.key(0)
    one, two = noise.uniform(RouterInputs.of(2, **same, key=key), 4, noise.JITTER)
    assert (one == two).all()
    inputs = RouterInputs.of(2, **same, segment_T=np.asarray([1, 2], np.int32), key=key)
    one, two = noise.uniform(inputs, 4, noise.JITTER)
    assert (one != two).all()


def test_random_is_uniform_distinct_and_new_at_each_key():
    tokens = 8000
    inputs = RouterInputs.of(tokens, position_T=ids(tokens), key=jax.random.key(0), train=True)
    first = route(Random(k=2), inputs)
    pairs = np.zeros((E, E))
    np.add.at(pairs, tuple(np.sort(first, -1).T), 1)
    assert not pairs.diagonal().any()
    expected = tokens / (E * (E - 1) / 2)  # every pair of experts equally often
    deviation = (pairs[np.triu_indices(E, 1)] - expected) / expected**0.5
    assert np.abs(deviation).max() < 4
    second = route(Random(k=2), dataclasses.replace(inputs, key=jax.random.key(1)))
    # Two independent draws of an ordered pair agree once in 56.
    agree = (first == second).all(-1).mean()
    np.testing.assert_allclose(agree, 1 / (E * (E - 1)), atol=0.006)
    evaluated = dataclasses.replace(inputs, train=False)
    np.testing.assert_array_equal(
        route(Random(k=2), evaluated),
        route(Random(k=2), dataclasses.replace(evaluated, key=jax.random.key(1))),
    )
    assert (route(Random(k=2, seed=1), evaluated) != route(Random(k=2), evaluated)).any()


# ---- round robin


def test_round_robin_takes_turns_among_the_valid_tokens():
    table = route(RoundRobin(k=2), RouterInputs.of(5), num_experts=5)
    assert table.tolist() == [[0, 1], [2, 3], [4, 0], [1, 2], [3, 4]]
    valid_T = np.array([True, False, True, False, True])
    table = route(RoundRobin(k=2), RouterInputs.of(5, valid_T=valid_T), num_experts=5)
    assert table.tolist() == [[0, 1], [5, 5], [2, 3], [5, 5], [4, 0]]


# ---- noise


def murmur3_finaliser(h):
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h ^= h >> shift
        h = h * factor % 2**32
    return h ^ h >> 16


def test_mix_is_the_murmur3_finaliser_chained():
    golden, h = 0x9E3779B9, 0x9E3779B9
    for part in (7, 2**32 - 3, 12345):
        h = murmur3_finaliser(((h ^ part) + golden) % 2**32)
    assert int(noise.mix(7, jnp.int32(-3), jnp.uint32(12345))) == h


@pytest.fixture(scope="module")
def tokens():
    return RouterInputs.of(
        4000, position_T=ids(4000) % 500, sequence_T=ids(4000) // 500, key=jax.random.key(3)
    )


def test_uniform_noise_is_uniform_and_independent(tokens):
    draw_TN = np.asarray(jax.jit(noise.uniform, static_argnums=(1, 2))(tokens, 6, noise.JITTER))
    assert draw_TN.min() > 0 and draw_TN.max() < 1
    cells = np.histogram(draw_TN, 20, (0, 1))[0]
    assert np.abs(cells / (draw_TN.size / 20) - 1).max() < 0.1  # 3.5 standard deviations
    assert np.abs(np.corrcoef(draw_TN.T) - np.eye(6)).max() < 0.06
    assert abs(np.corrcoef(draw_TN[:-1, 0], draw_TN[1:, 0])[0, 1]) < 0.06  # neighbours in a row
    assert len(np.unique(draw_TN)) > 0.998 * draw_TN.size


def test_normal_noise_is_normal(tokens):
    draw_TN = np.asarray(jax.jit(noise.normal, static_argnums=(1, 2))(tokens, 6, noise.LOGITS))
    moments = [(draw_TN**power).mean() for power in (1, 2, 3, 4)]
    np.testing.assert_allclose(moments, [0, 1, 0, 3], atol=0.12)
    assert np.isfinite(draw_TN).all()


@pytest.mark.parametrize("bits", [0, 2**32 - 1])
def test_the_rarest_draws_are_finite(bits, tokens, monkeypatch):
    monkeypatch.setattr(noise, "token_bits", lambda inputs, columns, salt: jnp.uint32([[bits]]))
    (draw,) = np.asarray(noise.uniform(tokens, 1, noise.JITTER))[0]
    assert 0 < draw < 1 and abs(draw - 0.5) == 0.5 - 2.0**-24
    (normal,) = np.asarray(noise.normal(tokens, 1, noise.LOGITS))[0]
    assert 5 < abs(normal) < 5.5 and np.sign(normal) == np.sign(draw - 0.5)


def test_noise_belongs_to_the_token_not_to_its_place(tokens):
    def draw(inputs):
        return np.asarray(noise.token_bits(inputs, 2, noise.CHOICE))

    order = np.random.default_rng(0).permutation(4000)
    moved = dataclasses.replace(
        tokens, position_T=tokens.position_T[order], sequence_T=tokens.sequence_T[order]
    )
    np.testing.assert_array_equal(draw(moved), draw(tokens)[order])
    # Without positions a token is known by its place among the valid ones.
    valid_T = np.array([False, True, False, True])
    padded = draw(RouterInputs.of(4, valid_T=valid_T, key=tokens.key))
    np.testing.assert_array_equal(padded[valid_T], draw(RouterInputs.of(2, key=tokens.key)))
    with pytest.raises(ValueError, match="noise needs a key"):
        draw(RouterInputs.of(2))
