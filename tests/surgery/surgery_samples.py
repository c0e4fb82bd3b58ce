"""A tiny dense model with random parameters, and what it makes of a batch."""

import dataclasses
import functools

import jax
import numpy as np

from moejax.models import ModelConfig, Transformer
from moejax.models.attention import AttentionConfig
from moejax.surgery.activations import tokens_of

D, F, V, LAYERS = 12, 24, 29, 2
MODEL = ModelConfig(
    vocab_size=V, d_model=D, num_layers=LAYERS, ffn_width=F, attention=AttentionConfig(heads=2)
)


def batch(seed=0):
    """Two rows of 10 tokens, the second ending in padding."""
    random = np.random.default_rng(seed)
    segments = np.ones((2, 10), np.int32)
    segments[1, 7:] = 0
    return {
        "tokens": random.integers(0, V, (2, 10)).astype(np.int32),
        "segment_ids": segments,
        "positions": np.tile(np.arange(10, dtype=np.int32), (2, 1)),
    }


@functools.cache
def parameters(vocab_size=V):
    """Random numbers of the right shapes, NumPy, of a model with this vocabulary."""
    model = dataclasses.replace(MODEL, vocab_size=vocab_size)
    random = np.random.default_rng(0)
    shapes, _ = jax.eval_shape(Transformer(model).init, jax.random.key(0))
    return jax.tree.map(
        lambda leaf: (0.3 * random.standard_normal(leaf.shape)).astype(leaf.dtype), shapes
    )


def hidden(model, params, router_state=None, observe=None):
    """Final hidden states of the batch's real tokens, `[T, D]`; and what is observed of the first
    MoE layers, if anything is."""
    given = batch()
    transformer = Transformer(model)
    state = {"segments": {"0": {"0": {}}}} if router_state is None else router_state

    @jax.jit
    def run(params, state):
        x_BSD, outs = transformer.hidden(params, state, tokens_of(given), observe=observe)
        return x_BSD, transformer.by_group(outs, "observed")

    x_BSD, observed = run(params, state)
    valid = given["segment_ids"] > 0
    if observe is None:
        return np.asarray(x_BSD)[valid]
    return np.asarray(x_BSD)[valid], np.asarray(observed[0])[:, valid.ravel()]


@functools.cache
def dense_hidden():
    return hidden(MODEL, parameters())


def ffn(random, width=F, dtype=np.float64, activation="swiglu"):
    """The weights of an FFN."""
    names = ("gate", "up", "down") if activation == "swiglu" else ("up", "down")
    return {f"{name}_FD": random.normal(size=(width, D)).astype(dtype) for name in names}


def hidden_units(weights, x_TD):
    """`[T, F]` in NumPy: SwiGLU, or ReLU where there is no gate."""
    up = x_TD @ weights["up_FD"].T
    if "gate_FD" not in weights:
        return np.maximum(up, 0)
    gate = x_TD @ weights["gate_FD"].T
    return gate / (1 + np.exp(-gate)) * up


def dense_output(weights, x_TD):
    """`[T, D]` in NumPy."""
    return hidden_units(weights, x_TD) @ weights["down_FD"]
