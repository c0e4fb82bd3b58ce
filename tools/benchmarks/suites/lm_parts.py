"""Where the time of the dense language model's step goes: its parts, each timed alone.

Parts overlap and fuse inside the step, so the shares need not add up to 1.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from moejax.models.attention import BACKENDS, Documents
from moejax.models.cross_entropy import chunked_cross_entropy
from moejax.train.optimizer import make_optimizer
from tools.benchmarks import targets as t
from tools.benchmarks.context import Context
from tools.benchmarks.gemm import FLOPS, NAME, gemm
from tools.benchmarks.language_models import WIDTH, Trainer, experiment, shape_text
from tools.benchmarks.layers import Program, compiled, dense_apply, ffn_flops, value_and_gradients
from tools.benchmarks.rows import Case, Comparison, Workload
from tools.benchmarks.timing import Candidate

SHARE = "time / whole step"


def workload(context: Context) -> Workload:
    """Attention's core, projections, FFN, head with cross-entropy, optimiser."""
    del context
    work = Workload()
    work.time(gemm())
    made = experiment(None)
    trainer = Trainer(made)
    whole = work.time(Candidate("whole step", trainer.step))
    layers, width = made.model.num_layers, made.model.d_model
    tokens = made.tokens_per_step
    x_TD, dy_TD = jax.random.normal(jax.random.key(0), (2, tokens, width))
    head = 3 * 2.0 * tokens * width * made.model.vocab_size
    parts: dict[str, tuple[Program, int, float]] = {
        "attention core": (_attention(made), layers, 0.0),
        "attention projections": (
            _projections(x_TD, dy_TD), layers, 3 * 4 * 2.0 * tokens * width * width,
        ),
        "FFN": (
            value_and_gradients(*dense_apply(width, WIDTH), x_TD, dy_TD),
            layers,
            ffn_flops(tokens, width, WIDTH),
        ),
        "head and cross-entropy": (_head(made, x_TD), 1, head),
        "clipping and AdamW": (_optimizer(trainer), 1, 0.0),
    }  # fmt: skip
    shape = shape_text(made)
    for label, (program, times, flops) in parts.items():
        name = work.time(program.candidate(label))
        case = Case(f"{label} x{times}", shape, None)
        work.comparisons.append(Comparison(case, t.ANY, SHARE, name, whole, "time", work=times))
        if flops:
            work.comparisons.append(Comparison(case, t.ANY, t.GEMM, name, NAME, work=flops / FLOPS))
        work.notes[label] = {"times_in_a_step": times}
    return work


def _attention(made: Any) -> Program:
    batch, length = made.train.batch_size, made.data.seq_len
    attention = made.model.attention.resolve(made.model.d_model)
    shape = (4, batch, length, attention.heads, attention.head_dim)
    q, k, v, dy = jax.random.normal(jax.random.key(0), shape)
    ids_BS = jnp.ones((batch, length), jnp.int32)

    def step(ids_BS: jax.Array, dy: jax.Array, *qkv: jax.Array) -> Any:
        documents = Documents(ids_BS, ids_BS)
        scale = attention.head_dim**-0.5
        y, pull_back = jax.vjp(
            lambda *qkv: BACKENDS[attention.backend](*qkv, documents, scale), *qkv
        )
        return y, pull_back(dy)

    return compiled(step, ids_BS, dy, q, k, v)


def _projections(x_TD: jax.Array, dy_TD: jax.Array) -> Program:
    """q, k, v and o: four products of `[T, D]` with `[D, D]`."""
    width = x_TD.shape[-1]
    weights = tuple(jax.random.normal(jax.random.key(1), (4, width, width)) * width**-0.5)

    def apply(weights: Any, x_TD: jax.Array) -> jax.Array:
        *into, out = weights
        return sum(x_TD @ weight for weight in into) @ out

    return value_and_gradients(apply, weights, x_TD, dy_TD)


def _head(made: Any, x_TD: jax.Array) -> Program:
    batch, length = made.train.batch_size, made.data.seq_len
    table_VD = jax.random.normal(jax.random.key(3), (made.model.vocab_size, x_TD.shape[-1])) * 0.06
    targets_BS = jax.random.randint(jax.random.key(4), (batch, length), 0, made.model.vocab_size)

    def loss(x_TD: jax.Array, table_VD: jax.Array, targets_BS: jax.Array) -> jax.Array:
        x_BSD = x_TD.reshape(batch, length, -1)
        mask_BS = jnp.ones((batch, length))
        return chunked_cross_entropy(x_BSD, table_VD, targets_BS, mask_BS, chunk=0)[0]

    return compiled(jax.value_and_grad(loss, (0, 1)), x_TD, table_VD, targets_BS)


def _optimizer(trainer: Trainer) -> Program:
    """Copies of the state: the step that is timed beside it gives its own away."""
    optimizer = make_optimizer(trainer.experiment.optimizer, lambda _: jnp.ones(()))
    params, state = jax.tree.map(jnp.copy, (trainer.state.trainable, trainer.state.opt_state))

    def update(grads: Any, state: Any, params: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return compiled(update, jax.tree.map(jnp.ones_like, params), state, params)
