"""A tiny model that writes letters, and what it says of a text read at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from moejax.experts import MoeConfig, WidthPlan
from moejax.models import ModelConfig, Transformer
from moejax.models.attention import AttentionConfig
from moejax.models.block import Tokens
from moejax.routing import LossesConfig
from moejax.routing.losses import LoadBalance
from moejax.routing.routers import TopP

EOS, PAD = 16, 17
VOCAB = 18
LONGEST = 200
READ = 48
"""Tokens of the texts that `whole` reads."""


def token_bytes(token):
    """Letters a to p; € in three tokens, of which any may be drawn anywhere."""
    return {13: b"\xe2", 14: b"\x82", 15: b"\xac", EOS: b"", PAD: b""}.get(
        token, bytes([97 + token])
    )


@functools.cache
def model():
    moe = MoeConfig(
        4, WidthPlan(mean=8), TopP(p=0.6), losses=LossesConfig(LoadBalance(0.0)), backend="loop"
    )
    return Transformer(
        ModelConfig(
            vocab_size=VOCAB,
            d_model=16,
            num_layers=1,
            attention=AttentionConfig(heads=2),
            moe=moe,
            max_seq_len=LONGEST,
        )
    )


@functools.cache
def weights():
    """Random parameters, and router state."""
    rng = np.random.default_rng(5)
    shapes = jax.eval_shape(model().init, jax.random.key(0))
    return jax.tree.map(lambda leaf: 0.6 * rng.standard_normal(leaf.shape).astype("f4"), shapes)


@functools.cache
def _forward():
    def forward(params, router_state, tokens_1S):
        ids = jnp.ones_like(tokens_1S)
        tokens = Tokens(tokens_1S, jnp.arange(READ, dtype=jnp.int32)[None], ids)
        x_BSD, _ = model().hidden(params, router_state, tokens)
        return jnp.einsum("bsd,vd->bsv", x_BSD, model().head_table(params))

    return jax.jit(forward)


def whole(ids):
    """float64 `[n, V]` log-probabilities of what follows each token of a text, without a cache and
    without company."""
    padded = np.full((1, READ), PAD, np.int32)  # causal: what is behind changes nothing
    padded[0, : len(ids)] = ids
    logits = np.asarray(_forward()(*weights(), padded), np.float64)[0, : len(ids)]
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))
