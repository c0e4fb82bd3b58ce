import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moejax.models.attention import (
    BACKENDS,
    Attention,
    AttentionConfig,
    AttentionInputs,
    Documents,
    KVCache,
    document_mask,
)
from moejax.models.attention.backends import einsum_attention

# Two packed rows: documents of 4 and 3 tokens, and of 6 tokens with a padding token behind.
IDS = np.asarray([[1, 1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 1, 1, 0]], np.int32)
POSITIONS = np.asarray([[0, 1, 2, 3, 0, 1, 2], [0, 1, 2, 3, 4, 5, 0]], np.int32)
BATCH, LENGTH = IDS.shape
D_MODEL = 12


def visible(b, query, key):
    return IDS[b, query] == IDS[b, key] and key <= query


def slow_attention(q, k, v, dout):
    """Output and gradients of grouped attention, one query of one head at a time."""
    heads, groups, width = q.shape[2], k.shape[2], q.shape[3]
    out, dq, dk, dv = (np.zeros(a.shape) for a in (dout, q, k, v))
    for b, s, h in np.ndindex(BATCH, LENGTH, heads):
        g = h * groups // heads
        keys = [c for c in range(LENGTH) if visible(b, s, c)]
        scores = k[b, keys, g] @ q[b, s, h] / np.sqrt(width)
        p = np.exp(scores - scores.max())
        p /= p.sum()
        out[b, s, h] = p @ v[b, keys, g]
        dp = v[b, keys, g] @ dout[b, s, h]
        dscores = p * (dp - p @ dp) / np.sqrt(width)
        dq[b, s, h] = dscores @ k[b, keys, g]
        dk[b, keys, g] += dscores[:, None] * q[b, s, h]
        dv[b, keys, g] += p[:, None] * dout[b, s, h]
    return out, (dq, dk, dv)


def layer(heads=4, kv_heads=2, seed=0, **knobs):
    config = AttentionConfig(heads=heads, kv_heads=kv_heads, head_dim=4, **knobs)
    return Attention(D_MODEL, config, rngs=nnx.Rngs(seed))


@pytest.fixture(scope="module")
def module():
    return layer(qk_norm=True)


def inputs(ids=IDS, positions=POSITIONS):
    return AttentionInputs(jnp.asarray(positions), jnp.asarray(ids))


def hidden(rng, batch=BATCH):
    return jnp.asarray(rng.standard_normal((batch, LENGTH, D_MODEL)), jnp.float32)


def run(module, x_BSD):
    return np.asarray(jax.jit(lambda x_BSD: module(x_BSD, inputs())[0])(x_BSD))


@pytest.mark.parametrize("heads, kv_heads, value_dim", [(3, 3, 4), (4, 2, 3), (4, 1, 6)])
def test_einsum_attention_against_a_loop_and_the_library(rng, heads, kv_heads, value_dim):
    def draw(number, width=4):
        return rng.standard_normal((BATCH, LENGTH, number, width))

    q, k = draw(heads), draw(kv_heads)
    v, dout = draw(kv_heads, value_dim), draw(heads, value_dim)
    want = slow_attention(q, k, v, dout)
    with jax.enable_x64(True):
        documents = Documents(jnp.asarray(IDS), jnp.asarray(IDS))
        arguments = [jnp.asarray(a, jnp.float64) for a in (q, k, v)]
        for attend in (einsum_attention, BACKENDS["xla"]):

            def value_and_gradient(q, k, v, attend=attend):
                out, vjp = jax.vjp(lambda *qkv: attend(*qkv, documents, 0.5), q, k, v)
                return out, vjp(jnp.asarray(dout))

            got = jax.jit(value_and_gradient)(*arguments)
            # The library's softmax is float32 whatever its inputs.
            bound = 1e-10 if attend is einsum_attention else 1e-5
            for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
                assert np.abs(a - b).max() <= bound * np.abs(b).max()


def test_the_document_mask_is_causal_and_within_documents():
    mask = np.asarray(document_mask(jnp.asarray(IDS), jnp.asarray(IDS)))
    assert mask.shape == (BATCH, 1, LENGTH, LENGTH)
    for b, s, c in np.ndindex(BATCH, LENGTH, LENGTH):
        assert mask[b, 0, s, c] == visible(b, s, c)
    assert mask.any(-1).all()  # no softmax over nothing, padding included


def test_the_document_mask_counts_queries_from_where_they_start():
    ids = jnp.asarray([[1, 1, 1, 0, 0]])
    mask = np.asarray(document_mask(jnp.asarray([[1]]), ids, 2))[0, 0]
    np.testing.assert_array_equal(mask, [[True, True, True, False, False]])


def test_a_token_sees_no_later_token_no_other_document_and_no_padding(rng, module):
    x_BSD = hidden(rng)
    f = jax.jit(lambda x_BSD: module(x_BSD, inputs())[0])
    before = np.asarray(f(x_BSD))
    for b, changed in np.ndindex(BATCH, LENGTH):
        after = np.asarray(f(x_BSD.at[b, changed].add(3.0)))
        for other in range(LENGTH):
            if visible(b, other, changed):
                assert np.abs(after[b, other] - before[b, other]).max() > 1e-6
            else:
                np.testing.assert_array_equal(after[b, other], before[b, other])
        np.testing.assert_array_equal(after[1 - b], before[1 - b])


def test_qk_norm_makes_the_scale_of_queries_and_keys_irrelevant(rng, module):
    x_BSD = hidden(rng)
    plain = layer(qk_norm=False)
    for loud in (layer(qk_norm=True), layer(qk_norm=False)):
        for name in ("q_DHd", "k_DGd"):
            getattr(loud, name)[...] = 30.0 * getattr(loud, name)[...]
        reference = module if loud.config.qk_norm else plain
        difference = np.abs(run(loud, x_BSD) - run(reference, x_BSD)).max()
        assert (difference < 1e-4) == loud.config.qk_norm
    assert module.q_norm.scale_D[...].shape == (4,)


def test_equal_kv_heads_are_multi_head_attention(rng):
    # A grouped layer whose key-value heads are repeated by hand is the multi-head layer.
    grouped, full = layer(4, 2), layer(4, 4)
    for name in ("q_DHd", "o_HdD"):
        getattr(full, name)[...] = getattr(grouped, name)[...]
    for name in ("k_DGd", "v_DGd"):
        getattr(full, name)[...] = jnp.repeat(getattr(grouped, name)[...], 2, axis=1)
    x_BSD = hidden(rng)
    np.testing.assert_allclose(run(grouped, x_BSD), run(full, x_BSD), atol=1e-6)


def test_back_ends_agree(rng, module):
    library = layer(qk_norm=True, backend="xla")
    x_BSD = hidden(rng)
    np.testing.assert_allclose(run(library, x_BSD), run(module, x_BSD), atol=1e-5)


@pytest.mark.parametrize("chunks", [(7,), (4, 1, 1, 1), (1, 3, 3)])
def test_a_cache_filled_piece_by_piece_gives_the_full_forward(rng, module, chunks):
    x_BSD = hidden(rng)
    want = run(module, x_BSD)
    cache = KVCache.empty(BATCH, LENGTH + 2, 2, 4, jnp.float32)
    step = jax.jit(lambda x, tokens, cache: module(x, tokens, cache))
    start, pieces = 0, []
    for size in chunks:
        part = slice(start, start + size)
        tokens = inputs(IDS[:, part], POSITIONS[:, part])
        y_BSD, cache = step(x_BSD[:, part], tokens, cache)
        pieces.append(y_BSD)
        start += size
    np.testing.assert_allclose(np.concatenate(pieces, 1), want, atol=1e-5)
    assert int(cache.length) == LENGTH
    np.testing.assert_array_equal(cache.segment_ids_BC[:, :LENGTH], IDS)
    assert not np.asarray(cache.segment_ids_BC[:, LENGTH:]).any()


def test_bfloat16_in_bfloat16_out_and_close(rng, module):
    x_BSD = hidden(rng)
    y_BSD = jax.jit(lambda x: module(x, inputs())[0])(x_BSD.astype(jnp.bfloat16))
    assert y_BSD.dtype == jnp.bfloat16
    want = run(module, x_BSD)
    np.testing.assert_allclose(np.asarray(y_BSD, np.float32), want, atol=0.05 * np.abs(want).max())


def test_resolve_fills_in_what_was_left_open():
    resolved = AttentionConfig(heads=4).resolve(32)
    assert (resolved.kv_heads, resolved.head_dim) == (4, 8)
    given = AttentionConfig(heads=3, kv_heads=1, head_dim=6).resolve(32)
    assert (given.kv_heads, given.head_dim) == (1, 6)
    assert dataclasses.replace(resolved) == resolved.resolve(32)


def test_biases_shift_queries_keys_and_values():
    """The same as one more input dimension that is always 1."""
    biased = layer(qkv_bias=True)
    rng = np.random.default_rng(0)
    for name in ("q_bias_Hd", "k_bias_Gd", "v_bias_Gd"):
        bias = getattr(biased, name)
        assert not np.asarray(bias[...]).any()
        bias[...] = jnp.asarray(rng.normal(size=bias.shape), jnp.float32)
    wide = layer()
    for name in "qkv":
        axes = "Hd" if name == "q" else "Gd"
        weight = getattr(biased, f"{name}_D{axes}")[...]
        row = getattr(biased, f"{name}_bias_{axes}")[...][None]
        setattr(wide, f"{name}_D{axes}", nnx.Param(jnp.concatenate([weight, row])))
    wide.o_HdD = nnx.Param(jnp.pad(biased.o_HdD[...], ((0, 0), (0, 0), (0, 1))))
    x_BSD = jnp.asarray(rng.normal(size=(BATCH, LENGTH, D_MODEL)), jnp.float32)
    with_one = jnp.pad(x_BSD, ((0, 0), (0, 0), (0, 1)), constant_values=1.0)
    run = jax.jit(lambda module, x: module(x, inputs())[0])
    got, want = run(biased, x_BSD), run(wide, with_one)[..., :D_MODEL]
    np.testing.assert_allclose(got, want, atol=1e-5)
    config = biased.config
    assert config.num_vector_parameters == (4 + 2 * 2) * 4
