"""Multi-head latent attention against loops written from the paper (2405.04434, eq. 9-19)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from model_samples import assert_trees_close, packed, random_params

from moejax.config import ConfigError, build, counts, to_plain
from moejax.models import ModelConfig, Transformer
from moejax.models.attention import AttentionInputs, LatentAttentionConfig, LatentCache
from moejax.models.block import Tokens
from moejax.models.rope import Yarn

IDS = np.asarray([[1, 1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 1, 1, 0]], np.int32)
POSITIONS = np.asarray([[0, 1, 2, 3, 0, 1, 2], [0, 1, 2, 3, 4, 5, 0]], np.int32)
BATCH, LENGTH = IDS.shape
D_MODEL, EPS = 12, 1e-3
YARN = Yarn(factor=4.0, original_max_position=16, mscale=0.7, mscale_all_dim=0.7)
PLAIN = LatentAttentionConfig(
    heads=3, kv_lora_rank=5, qk_nope_head_dim=3, qk_rope_head_dim=4, v_head_dim=6
)
KINDS = {
    "plain": PLAIN,
    "queries": dataclasses.replace(PLAIN, q_lora_rank=7),
    "yarn": dataclasses.replace(PLAIN, q_lora_rank=7, yarn=YARN, rope_theta=100.0),
}


def normalised(x, scale):
    return x / np.sqrt(np.mean(x**2) + EPS) * scale


def turned(x, position, config):
    """A rotary vector of one token, pair by pair; YaRN's slowdown has tests of its own."""
    half, out = len(x) // 2, np.zeros(len(x))
    for i in range(half):
        speed = config.rope_theta ** (-i / half)
        if config.yarn.factor > 1:
            speed *= config.yarn.slowdown(2 * half, config.rope_theta)[i]
        a, b = x[i], x[i + half]
        angle = position * speed
        out[i] = a * np.cos(angle) - b * np.sin(angle)
        out[i + half] = a * np.sin(angle) + b * np.cos(angle)
    return out


def slow_mla(weights, x_BSD, config):
    """One token, one head, one pair of tokens at a time."""
    nope, rank = config.qk_nope_head_dim, config.kv_lora_rank
    # 0.1 * 0.7 * ln 4 + 1, squared, with YaRN; mscale = mscale_all_dim leaves the vectors alone.
    tempered = (0.1 * 0.7 * np.log(4.0) + 1) ** 2 if config.yarn.factor > 1 else 1.0
    scale = tempered / np.sqrt(nope + config.qk_rope_head_dim)
    y_BSD = np.zeros(x_BSD.shape)
    for b in range(BATCH):
        latents, shared_keys, queries = [], [], []
        for s in range(LENGTH):
            x, position = x_BSD[b, s], POSITIONS[b, s]
            down = x @ weights["kv_down_DR"]
            latents.append(normalised(down[:rank], weights["kv_norm"]["scale_D"]))
            shared_keys.append(turned(down[rank:], position, config))
            if config.q_lora_rank:
                latent = normalised(x @ weights["q_down_DQ"], weights["q_norm"]["scale_D"])
                heads = [latent @ weights["q_up_QHd"][:, h] for h in range(config.heads)]
            else:
                heads = [x @ weights["q_DHd"][:, h] for h in range(config.heads)]
            queries.append([(q[:nope], turned(q[nope:], position, config)) for q in heads])
        for s in range(LENGTH):
            keys = [c for c in range(s + 1) if IDS[b, c] == IDS[b, s]]
            for h in range(config.heads):
                q, q_turned = queries[s][h]
                scores = np.array(
                    [
                        q @ (latents[c] @ weights["k_up_RHn"][:, h]) + q_turned @ shared_keys[c]
                        for c in keys
                    ]
                )
                p = np.exp(scale * scores - max(scale * scores))
                p /= p.sum()
                values = [latents[c] @ weights["v_up_RHe"][:, h] for c in keys]
                mixed = sum(weight * value for weight, value in zip(p, values, strict=True))
                y_BSD[b, s] += mixed @ weights["o_HeD"][h]
    return y_BSD


def layer(config, seed=0):
    """A layer and its weights, norm scales included, as random float64 arrays."""
    module = config.build(D_MODEL, rngs=nnx.Rngs(seed), norm_eps=EPS)
    rng = np.random.default_rng(seed)
    weights = jax.tree.map(
        lambda leaf: 0.5 * rng.standard_normal(leaf.shape), nnx.to_pure_dict(nnx.state(module))
    )
    return nnx.split(module)[0], weights


def inputs(part=slice(None)):
    return AttentionInputs(jnp.asarray(POSITIONS[:, part]), jnp.asarray(IDS[:, part]))


def applied(graph, weights, x_BSD, tokens, cache=None):
    state = nnx.state(nnx.merge(graph, nnx.State(jax.tree.map(nnx.Param, weights))))
    return nnx.merge(graph, state)(x_BSD, tokens, cache)


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_those_of_the_loops(rng, kind):
    config = KINDS[kind]
    graph, weights = layer(config)
    x_BSD, dout = rng.standard_normal((2, BATCH, LENGTH, D_MODEL))
    with jax.enable_x64(True):

        def loss(arguments):
            y_BSD = applied(graph, *arguments, inputs())[0]
            return (y_BSD * dout).sum(), y_BSD

        arguments = jax.tree.map(jnp.asarray, (weights, x_BSD))
        (_, got), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(arguments)
        got, gradient = jax.tree.map(np.asarray, (got, gradient))
    want = slow_mla(weights, x_BSD, config)
    assert got.dtype == np.float64
    assert np.abs(got - want).max() <= 1e-10 * np.abs(want).max()

    def slope(direction):
        """Of the loops' loss, by central differences."""
        ends = []
        for step in (1e-5, -1e-5):
            moved = jax.tree.map(lambda p, d: p + step * d, (weights, x_BSD), direction)  # noqa: B023
            ends.append((slow_mla(*moved, config) * dout).sum())
        return (ends[0] - ends[1]) / 2e-5

    leaves, structure = jax.tree.flatten((weights, x_BSD))
    for index, leaf in enumerate(jax.tree.leaves(gradient)):
        directions = [np.zeros(other.shape) for other in leaves]
        directions[index] = rng.standard_normal(leaf.shape)
        want = slope(jax.tree.unflatten(structure, directions))
        assert (leaf * directions[index]).sum() == pytest.approx(want, rel=1e-6, abs=1e-8)


def test_a_token_sees_no_later_token_no_other_document_and_no_padding(rng):
    graph, weights = layer(KINDS["queries"])
    weights = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), weights)
    f = jax.jit(lambda x_BSD: applied(graph, weights, x_BSD, inputs())[0])
    x_BSD = jnp.asarray(rng.standard_normal((BATCH, LENGTH, D_MODEL)), jnp.float32)
    before = np.asarray(f(x_BSD))
    for b, changed in np.ndindex(BATCH, LENGTH):
        moved = np.abs(np.asarray(f(x_BSD.at[b, changed].add(3.0))) - before).max(-1)
        sees = (IDS[b] == IDS[b, changed]) & (np.arange(LENGTH) >= changed)
        assert (moved[b, sees] > 1e-6).all() and not moved[b, ~sees].any()
        assert not moved[1 - b].any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_of_latents_filled_piece_by_piece_gives_the_full_forward(rng, kind):
    config = KINDS[kind]
    graph, weights = layer(config)
    with jax.enable_x64(True):
        x_BSD = jnp.asarray(rng.standard_normal((BATCH, LENGTH, D_MODEL)))
        run = jax.jit(lambda *given: applied(graph, weights, *given))
        want, nothing = run(x_BSD, inputs())
        assert nothing is None
        cache = config.empty_cache(D_MODEL, BATCH, LENGTH + 2, jnp.dtype("float64"))
        pieces, start = [], 0
        for size in (4, 1, 1, 1):
            part = slice(start, start + size)
            y_BSD, cache = run(x_BSD[:, part], inputs(part), cache)
            pieces.append(y_BSD)
            start += size
        np.testing.assert_allclose(np.concatenate(pieces, 1), want, atol=1e-10)
    assert isinstance(cache, LatentCache)
    assert cache.latent_BCR.shape == (BATCH, LENGTH + 2, 5)
    assert cache.k_rope_BCr.shape == (BATCH, LENGTH + 2, 4)
    assert int(cache.length) == LENGTH
    np.testing.assert_array_equal(cache.segment_ids_BC[:, :LENGTH], IDS)


def test_bfloat16_in_bfloat16_out_and_close(rng):
    graph, weights = layer(KINDS["yarn"])
    weights = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), weights)
    run = jax.jit(lambda x_BSD: applied(graph, weights, x_BSD, inputs())[0])
    x_BSD = jnp.asarray(rng.standard_normal((BATCH, LENGTH, D_MODEL)), jnp.float32)
    got, want = run(x_BSD.astype(jnp.bfloat16)), np.asarray(run(x_BSD))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, np.float32), want, atol=0.05 * np.abs(want).max())


# ---- in a model


def model_config(kind):
    return ModelConfig(vocab_size=31, d_model=16, num_layers=2, ffn_width=24, attention=KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_those_of_the_parameters(kind):
    config = model_config(kind)
    params, _ = jax.eval_shape(Transformer(config).init, jax.random.key(0))
    found = {"matrices": 0, "norms": 0}
    for path, leaf in jax.tree.leaves_with_path(params):
        role = "norms" if "scale" in jax.tree_util.keystr(path) else "matrices"
        found[role] += leaf.size
    counted = counts.parameters(config.shape())
    assert found == {"matrices": counted.total, "norms": counted.norms}


def test_flops_by_hand():
    """With and without a latent of the queries; D = 16, 3 heads, 7-wide keys, 6-wide values."""
    shared = 16 * (5 + 4) + 5 * 3 * (3 + 6) + 3 * 6 * 16  # down, up to keys and values, out
    scores = 4 * 3 * (7 + 6)  # of 8 tokens a token sees 4 on average
    for kind, queries in (("plain", 16 * 3 * 7), ("queries", 16 * 7 + 7 * 3 * 7)):
        layers = 2 * (queries + shared + scores + 3 * 16 * 24)
        shape = model_config(kind).shape()
        assert counts.flops_per_token(shape, 8) == 3 * 2 * (layers + 16 * 31)


def test_projections_start_by_their_fan_in():
    config = LatentAttentionConfig(
        heads=4, q_lora_rank=96, kv_lora_rank=64, qk_nope_head_dim=32, qk_rope_head_dim=32,
        v_head_dim=48,
    )  # fmt: skip
    module = config.build(128, rngs=nnx.Rngs(0), out_scale=0.5)
    fan_in = {"q_down_DQ": 128, "q_up_QHd": 96, "kv_down_DR": 128, "k_up_RHn": 64, "v_up_RHe": 64}
    for name, inputs in fan_in.items():
        std = float(np.std(np.asarray(getattr(module, name)[...])))
        assert std == pytest.approx(inputs**-0.5, rel=0.05), name
    out = float(np.std(np.asarray(module.o_HeD[...])))
    assert out == pytest.approx(0.5 * (4 * 48) ** -0.5, rel=0.05)


def test_a_model_decodes_with_its_compressed_caches():
    model = Transformer(model_config("yarn"))
    params, state = random_params(model)
    batch = packed([(9,), (9,)], 9)

    def tokens(start, stop):
        names = ("tokens", "positions", "segment_ids")
        return Tokens(*(jnp.asarray(batch[name][:, start:stop]) for name in names))

    decode = jax.jit(model.decode)
    want, _ = decode(params, state, tokens(0, 9), model.empty_caches(batch=2, capacity=9))
    first, caches = decode(params, state, tokens(0, 5), model.empty_caches(batch=2, capacity=9))
    second, _ = decode(params, state, tokens(5, 9), caches)
    assert_trees_close(jnp.concatenate([first, second], 1), want)
    per_token = sum(leaf.size for leaf in jax.tree.leaves(caches) if leaf.ndim == 4) / (2 * 9)
    assert per_token == 2 * (5 + 4)  # layers x (latent + rotated key), whatever the heads


def test_the_name_chooses_the_kind():
    config = model_config("yarn")
    plain = to_plain(config)
    assert plain["attention"]["name"] == "mla"
    assert build(ModelConfig, plain) == config
    assert to_plain(ModelConfig())["attention"]["name"] == "gqa"
    plain["attention"]["name"] = "gqa"
    with pytest.raises(ConfigError, match=r"attention\.\w+: unknown key of 'gqa'"):
        build(ModelConfig, plain)


@pytest.mark.parametrize(
    "changes, start, end",
    [
        (
            {"qk_rope_head_dim": 5},
            "model.attention.qk_rope_head_dim: RoPE needs an even width, got 5",
            "nearest valid value 6",
        ),
        (
            {"yarn": YARN, "rope_theta": 1.0},
            "model.attention.rope_theta=1.0: YaRN needs a base above 1",
            "nearest valid value 10000.0",
        ),
        (
            {"yarn": Yarn(factor=2.0, beta_slow=32.0)},
            "model.attention.yarn.beta_slow=32.0: must be below beta_fast=32.0",
            "nearest valid value 16.0",
        ),
    ],
)
def test_impossible_numbers_are_refused(changes, start, end):
    attention = dataclasses.replace(PLAIN, **changes)
    with pytest.raises(ConfigError) as caught:
        Transformer(dataclasses.replace(model_config("plain"), attention=attention))
    message = str(caught.value)
    assert message.startswith(start) and message.endswith(end) and "\n" not in message
