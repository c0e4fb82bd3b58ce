"""Fixtures and what our model computes of them, in one compiled program per model."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from moejax.interop import HfDirectory, import_model
from moejax.interop.importing import allocate
from moejax.models.block import Tokens
from moejax.models.transformer import Transformer
from moejax.routing import linear

FIXTURES = Path(__file__).parent / "fixtures"
NAMES = sorted(path.name for path in FIXTURES.iterdir() if path.is_dir())


@functools.cache
def imported(name):
    """A fixture in our terms."""
    return import_model(HfDirectory.open(FIXTURES / name))


@functools.cache
def expected(name):
    """What transformers computed."""
    with np.load(FIXTURES / name / "expected.npz", allow_pickle=False) as file:
        return dict(file)


def drawn(model, seed=1):
    """`{params, router_state}` with random numbers everywhere; no program is compiled for it."""
    rng = np.random.default_rng(seed)

    def fill(leaf):
        return rng.normal(0.0, 0.3, leaf.shape).astype(leaf.dtype)

    return jax.tree.map(fill, allocate(model))


@dataclasses.dataclass(frozen=True)
class Observed:
    """Logits, loss, gradients (or None), and per MoE layer the router's logits, experts and
    weights; of further rows (`observe`) the logits alone."""

    logits_BSV: np.ndarray
    further_BSV: np.ndarray
    loss: np.ndarray
    grads: dict | None
    router_logits: dict
    expert_TK: dict
    weight_TK: dict


def observe(model, params, router_state, tokens_BS, *, further_BS=None, grads=False):
    """Runs our model: `scan` off so that routers can be watched, experts by the oracle, which
    compiles fast. `further_BS` are rows that the loss leaves out; gradients treble the time."""
    moe = model.moe and dataclasses.replace(model.moe, backend="loop")
    model = dataclasses.replace(model, scan=False, moe=moe)
    batch, length = tokens_BS.shape
    rows_BS = tokens_BS if further_BS is None else np.concatenate([tokens_BS, further_BS])
    tokens = Tokens(
        jnp.asarray(rows_BS),
        jnp.tile(jnp.arange(length, dtype=jnp.int32), (len(rows_BS), 1)),
        jnp.ones(rows_BS.shape, jnp.int32),
    )
    key = repr(model), batch, grads  # a config holds a dict and cannot be a key itself
    if key not in _PROGRAMS:
        _PROGRAMS[key] = _program(model, batch, grads)
    out = jax.device_get(_PROGRAMS[key](params, router_state, tokens))
    (loss, (logits, seen, routed)), found = out if grads else (out, None)
    layers = [index for index, moe in enumerate(model.plan()) if moe is not None]
    scored = slice(0, batch * length)
    order = [routing[scored].argsort(-1) for routing, _ in routed]
    return Observed(
        logits[:batch],
        logits[batch:],
        loss,
        found,
        {layer: logits_TE[scored] for layer, logits_TE in zip(layers, seen, strict=True)},
        {
            layer: np.take_along_axis(expert[scored], rank, -1)
            for layer, (expert, _), rank in zip(layers, routed, order, strict=True)
        },
        {
            layer: np.take_along_axis(weight[scored], rank, -1)
            for layer, (_, weight), rank in zip(layers, routed, order, strict=True)
        },
    )


_PROGRAMS = {}


def _program(config, scored, grads):
    model = Transformer(config)

    def loss(params, router_state, tokens):
        seen, routed = [], []
        plain_logits, plain_routing = linear.linear_logits, linear.LinearRouter.routing

        def logits(x_TD, w_DE):
            seen.append(plain_logits(x_TD, w_DE))
            return seen[-1]

        def routing(self, inputs, expert_TK, weight_TK, **kwargs):
            routed.append((expert_TK, weight_TK))
            return plain_routing(self, inputs, expert_TK, weight_TK, **kwargs)

        linear.linear_logits, linear.LinearRouter.routing = logits, routing
        try:
            x_BSD, _ = model.hidden(params, router_state, tokens)
        finally:
            linear.linear_logits, linear.LinearRouter.routing = plain_logits, plain_routing
        logits_BSV = x_BSD @ model.head_table(params).T
        log_probs = jax.nn.log_softmax(logits_BSV[:scored, :-1])
        targets = tokens.token_id_BS[:scored, 1:, None]
        nll = -jnp.take_along_axis(log_probs, targets, axis=-1).mean()
        return nll, (logits_BSV, seen, routed)

    return jax.jit(jax.value_and_grad(loss, has_aux=True) if grads else loss)
