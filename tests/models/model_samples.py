"""Tiny models, batches and parameters for the tests of this folder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from moejax.experts import MoeConfig, WidthPlan
from moejax.models import ModelConfig, Transformer
from moejax.models.attention import AttentionConfig
from moejax.routing import LossesConfig
from moejax.routing.losses import Entropy, LoadBalance, ParameterPenalty, ZLoss
from moejax.routing.routers import TopK, TopP

VOCAB = 31
ADDITIVE = LossesConfig(LoadBalance(0.0), entropy=Entropy(0.1), z_loss=ZLoss(0.01))
"""Losses that are means over tokens: micro-batches add up exactly."""

EQUAL = MoeConfig(4, WidthPlan(mean=8), TopK(k=2), tile=8)
UNEQUAL = MoeConfig(
    6,
    WidthPlan("explicit", explicit=(4, 4, 8, 8, 12, 12)),
    TopK(k=2),
    losses=LossesConfig(LoadBalance(0.0), parameter_penalty=ParameterPenalty(0.1)),
    tile=8,
)
KINDS = {
    "dense": None,
    "top_k": EQUAL,
    "top_p": MoeConfig(4, WidthPlan(mean=8), TopP(p=0.6), losses=ADDITIVE, tile=8),
    "hetero_top_k": UNEQUAL,
    "hetero_top_p": dataclasses.replace(
        UNEQUAL, router=TopP(p=0.5, inclusive=True, renormalise=True, k_max=4), shared_width=4
    ),
}


def config(moe=None, **changes):
    """Two layers of width 16, two heads."""
    base = ModelConfig(
        vocab_size=VOCAB,
        d_model=16,
        num_layers=2,
        ffn_width=24,
        attention=AttentionConfig(heads=2),
        moe=moe,
    )
    return dataclasses.replace(base, **changes)


def random_params(model, seed=0, scale=0.3):
    """Parameters and router state of the right shapes and dtypes, without compiling `init`."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0))

    def draw(leaf):
        return jnp.asarray(scale * rng.standard_normal(leaf.shape), leaf.dtype)

    params, state = jax.tree.map(draw, shapes)
    params["final_norm"]["scale_D"] += 1
    return params, state


def packed(rows, length, seed=0, tokens=None):
    """A batch from the document lengths of every row; what is left over is padding.

    `tokens` maps document number (in order of mention) to its ids; the rest is random. Targets
    follow within a document; its last token is not scored.
    """
    rng = np.random.default_rng(seed)
    shape = (len(rows), length)
    batch = {
        "tokens": rng.integers(0, VOCAB, shape, np.int32),
        "targets": rng.integers(0, VOCAB, shape, np.int32),
        "segment_ids": np.zeros(shape, np.int32),
        "positions": np.zeros(shape, np.int32),
        "loss_mask": np.zeros(shape, np.float32),
    }
    number = 0
    for row, lengths in enumerate(rows):
        start = 0
        for segment, size in enumerate(lengths, 1):
            place = slice(start, start + size)
            if tokens is not None:
                batch["tokens"][row, place] = tokens[number]
            batch["segment_ids"][row, place] = segment
            batch["positions"][row, place] = np.arange(size)
            batch["targets"][row, start : start + size - 1] = batch["tokens"][row, place][1:]
            batch["loss_mask"][row, start : start + size - 1] = 1
            start, number = start + size, number + 1
    return batch


def loss_and_gradient(model, **options):
    """Compiled `(params, state, batch, denominators) -> (loss, out), gradient`."""

    def loss(params, state, batch, denominators):
        key = jax.random.key(1)
        return model.loss(
            params, state, batch, key, denominators=denominators, train=True, **options
        )

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def assert_trees_close(got, want, *, tolerance=1e-5, floor=1e-6):
    """max|a - b| <= tolerance * max|b| + floor, leaf by leaf."""
    paths, leaves = zip(*jax.tree.leaves_with_path(want), strict=True)
    others = jax.tree.leaves(got)
    assert len(others) == len(leaves)
    for path, a, b in zip(paths, others, leaves, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape, path
        worst = np.abs(a - b).max(initial=0)
        assert worst <= tolerance * np.abs(b).max(initial=0) + floor, (path, worst)


def make(moe=None, **changes):
    return Transformer(config(moe, **changes))
