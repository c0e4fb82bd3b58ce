"""Decoding with caches gives what the whole text at once gives, whatever stands beside it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_samples import EQUAL, UNEQUAL, VOCAB, config, random_params

from moejax.config import ConfigError
from moejax.experts import MoeConfig, WidthPlan
from moejax.experts.zero_compute import ZeroCompute
from moejax.models import ModelConfig, Transformer
from moejax.models.attention import AttentionConfig, LatentAttentionConfig
from moejax.models.block import Tokens
from moejax.models.decoding import (
    decode_step,
    empty_state,
    left_padded,
    prefill,
    require_decodable,
    rounded_up,
    without_capacity,
)
from moejax.models.rope import Llama3Rope, Yarn
from moejax.routing import LossesConfig
from moejax.routing.capacity import CapacityConfig
from moejax.routing.losses import LoadBalance
from moejax.routing.routers import (
    ExpertChoice,
    Hash,
    MoEPlusPlus,
    NoisyTopK,
    Random,
    ReMoE,
    RoundRobin,
    SigmoidBias,
    TopP,
)

NONE = LossesConfig(LoadBalance(0.0))
PAD = VOCAB - 1
READ, WRITTEN = 8, 4
"""Tokens of the longest prompt, read in two pieces; tokens that follow one by one."""
PROMPTS = (8, 3, 5)


def moe(router, **changes):
    return MoeConfig(4, WidthPlan(mean=8), router, losses=NONE, backend="loop", **changes)


def of_layers(attention, layers, **changes):
    """Layers by name, two of a kind scanned."""
    names = tuple(layers)
    variants = {name: ROUTED[name] for name in names if name != "dense"}
    return config(
        attention=attention, layers=names, num_layers=len(names), moe_variants=variants, **changes
    )


MLA = LatentAttentionConfig(
    heads=2, kv_lora_rank=6, qk_nope_head_dim=4, qk_rope_head_dim=4, v_head_dim=5
)
YARN = Yarn(factor=4.0, original_max_position=4, mscale=0.7, mscale_all_dim=0.7)
ATTENTIONS = {
    "shared heads, one norm per head": AttentionConfig(heads=4, kv_heads=2, qk_norm=True),
    "norm over all heads, YaRN": AttentionConfig(
        heads=2, kv_heads=1, qk_norm=True, qk_norm_over="projection", yarn=YARN
    ),
    "biases, clipping, Llama 3's rotation": AttentionConfig(
        heads=2,
        qkv_bias=True,
        clip_qkv=0.4,
        llama3=Llama3Rope(factor=8.0, original_max_position=16),
    ),
    "latent": MLA,
    "latent queries too, YaRN": dataclasses.replace(MLA, q_lora_rank=7, yarn=YARN),
}
ROUTED = {
    "top_p": dataclasses.replace(UNEQUAL, router=TopP(p=0.6), shared_width=4, losses=NONE),
    "sigmoid_bias": moe(SigmoidBias(k=2), shared_width=4, shared_gate=True),
    "moe_plus_plus": MoeConfig(
        6,
        WidthPlan(mean=8),
        MoEPlusPlus(k=2),
        losses=NONE,
        zero_compute=ZeroCompute(zero=1, copy=1, constant=1),
        backend="loop",
    ),
    "hash": moe(Hash(k=1)),
    "random": moe(Random(k=2)),
    "remoe": moe(ReMoE(k=2)),
    "noisy_top_k": moe(NoisyTopK(k=2)),
}
slow = functools.partial(pytest.param, marks=pytest.mark.slow)
NORMED = ATTENTIONS["shared heads, one norm per head"]
CASES = {
    "gqa": of_layers(NORMED, ["top_p", "top_p"]),
    "mla": of_layers(ATTENTIONS["latent queries too, YaRN"], ["sigmoid_bias"], scan=False),
    "others": of_layers(NORMED, ["dense", "hash", "random", "remoe", "noisy_top_k"]),
    "carried": of_layers(
        ATTENTIONS["norm over all heads, YaRN"],
        ["dense", "moe_plus_plus", "moe_plus_plus"],
        scan=False,
        tied_embeddings=True,
    ),
    "biases": of_layers(
        ATTENTIONS["biases, clipping, Llama 3's rotation"], ["sigmoid_bias", "dense"] * 2
    ),
}


@functools.cache
def texts(lengths=PROMPTS):
    rng = np.random.default_rng(1)
    return [rng.integers(0, VOCAB, length + WRITTEN).astype(np.int32) for length in lengths]


def both_ways(model, params, router_state, rows):
    """Logits after each prompt and each token that follows, `[B, 1 + WRITTEN, V]`: without a cache
    (every row a document of its own, padded on the right), and with one."""
    batch, longest = len(rows), READ + WRITTEN
    right = np.full((batch, longest), PAD, np.int32)
    ids = np.zeros((batch, longest), np.int32)
    for row, text in enumerate(rows):
        right[row, : len(text)], ids[row, : len(text)] = text, 1
    position = np.arange(longest, dtype=np.int32) * ids
    prompts = [text[: len(text) - WRITTEN] for text in rows]
    left, first = left_padded(prompts, batch=batch, multiple=READ, pad_id=PAD)
    follows = np.stack([text[len(text) - WRITTEN :] for text in rows])

    @jax.jit
    def run(params, router_state):
        tokens = Tokens(
            *map(jnp.asarray, (right, position, ids)), sequence_BS=jnp.zeros_like(position)
        )
        x_BSD, _ = model.hidden(params, router_state, tokens)
        whole = jnp.einsum("bsd,vd->bsv", x_BSD, model.head_table(params))
        state = empty_state(model, jnp.asarray(first), READ + WRITTEN + 3)
        pieces = jnp.asarray(left).reshape(batch, 2, READ // 2).swapaxes(0, 1)

        def read(state, piece_BS):
            logits, state = prefill(model, params, router_state, piece_BS, state)
            return state, logits

        state, starts = jax.lax.scan(read, state, pieces)

        def step(state, token_B):
            logits, state = decode_step(model, params, router_state, token_B, state)
            return state, logits

        _, rest = jax.lax.scan(step, state, jnp.asarray(follows).T)
        return whole, jnp.concatenate([starts[-1][:, None], rest.swapaxes(0, 1)], 1)

    whole, got = map(np.asarray, run(params, router_state))
    want = np.stack(
        [whole[row, len(text) - WRITTEN - 1 : len(text)] for row, text in enumerate(rows)]
    )
    return want, got


@pytest.mark.slow  # tests/probe/test_generator.py compares one model of these in seconds
@pytest.mark.parametrize("case", CASES)
def test_a_cache_changes_nothing(case):
    model = Transformer(CASES[case])
    params, state = random_params(model, scale=0.5)
    want, got = both_ways(model, params, state, texts())
    assert np.abs(want).max() > 1
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


class Double(ModelConfig):
    """A model in float64 throughout, which no config can ask for."""

    @property
    def dtypes(self):
        return (jnp.dtype("float64"),) * 3


@pytest.mark.filterwarnings("ignore:scatter inputs:FutureWarning")  # the final norm's scale
@pytest.mark.parametrize(
    "kind",
    [
        "latent queries too, YaRN",
        *map(
            slow,
            [
                "shared heads, one norm per head",
                "norm over all heads, YaRN",
                "biases, clipping, Llama 3's rotation",
                "latent",
            ],
        ),
    ],
)
def test_a_cache_changes_nothing_in_float64(kind):
    """Dense, because routers compute in float32 whatever the model does."""
    made = config(attention=ATTENTIONS[kind])
    with jax.enable_x64(True):
        model = Transformer(Double(**vars(made)))
        params, state = random_params(model, scale=0.5)
        want, got = both_ways(model, params, state, texts())
    assert got.dtype == np.float64
    assert np.abs(got - want).max() <= 1e-10 * np.abs(want).max()


def test_prompts_are_padded_in_front():
    tokens, first = left_padded([[1, 2, 3], [4]], batch=3, multiple=4, pad_id=9)
    np.testing.assert_array_equal(tokens, [[9, 1, 2, 3], [9, 9, 9, 4], [9, 9, 9, 9]])
    assert first[:2].tolist() == [1, 3] and first[2] > 1 << 20
    assert left_padded([range(5)], batch=1, multiple=4, pad_id=9)[0].shape == (1, 8)


def test_few_lengths_serve_all():
    sizes = [rounded_up(length, 10) for length in range(1, 400)]
    assert sorted(set(sizes)) == [10, 20, 30, 40, 60, 80, 120, 160, 240, 320, 480]
    assert all(size >= length for length, size in enumerate(sizes, 1))


@pytest.mark.parametrize(
    "router, capacity, message",
    [
        (ExpertChoice(), CapacityConfig(), "router.name='expert_choice': chooses among all tokens"),
        (RoundRobin(), CapacityConfig(), "router.name='round_robin': routes a token by its place"),
        (SigmoidBias(), CapacityConfig(factor=1.25), "capacity.factor=1.25: .* valid value 0"),
        (Hash(), CapacityConfig(eval_factor=2.0), "capacity.eval_factor=2: "),
        (Hash(), CapacityConfig(row_budget=1.5), "capacity.row_budget=1.5: "),
    ],
)
def test_routing_that_looks_at_the_batch_is_refused(router, capacity, message):
    made = config(moe(router, capacity=capacity), allow_noncausal=True)
    with pytest.raises(ConfigError, match=message) as refused:
        require_decodable(made)
    assert "\n" not in str(refused.value)


def test_a_capacity_can_be_lifted():
    tight = dataclasses.replace(EQUAL, capacity=CapacityConfig(factor=0.5, row_budget=1.0))
    made = config(
        tight,
        layers=("dense", "moe", "more"),
        num_layers=3,
        moe_variants={"more": tight},
        allow_noncausal=True,
    )
    lifted = without_capacity(made)
    require_decodable(lifted)
    shapes = [jax.eval_shape(Transformer(c).init, jax.random.key(0)) for c in (made, lifted)]
    assert shapes[0] == shapes[1]
    require_decodable(config())
