"""Where the time of a language model's step goes: its parts, each timed alone, dense and MoE.

Parts overlap and fuse inside the step, so the shares need not add up to 1.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from moejax.models.attention import BACKENDS, Documents
from moejax.models.cross_entropy import chunked_cross_entropy
from moejax.train import Experiment
from moejax.train.optimizer import make_optimizer
from tools.benchmarks import targets as t
from tools.benchmarks.context import Context
from tools.benchmarks.gemm import FLOPS, NAME, gemm
from tools.benchmarks.language_models import WIDTH, Trainer, experiment, shape_text
from tools.benchmarks.layers import (
    Program,
    compiled,
    dense_apply,
    ffn_flops,
    moe_program,
    unavailable,
    value_and_gradients,
)
from tools.benchmarks.rows import Case, Comparison, Workload, unknown
from tools.benchmarks.timing import Candidate

SHARE = "time / whole step"
ATTENTION, PROJECTIONS = "attention core", "attention projections"
HEAD, OPTIMIZER = "head and cross-entropy", "clipping and AdamW"
EXPERTS = "router and experts"


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a step.

    Attributes:
      name: the candidate that is timed.
      times: how often a step does it.
      flops: of one time; 0: no row against GEMM.
    """

    name: str
    times: int
    flops: float = 0.0


def workload(context: Context) -> Workload:
    """The dense step, and the MoE step by each back end. What both have is timed once."""
    work = Workload()
    work.time(gemm())
    made = experiment(None)
    trainer = Trainer(made)
    whole = work.time(Candidate("whole step", trainer.step))
    layers, width = made.model.num_layers, made.model.d_model
    tokens = made.tokens_per_step
    x_TD, dy_TD = jax.random.normal(jax.random.key(0), (2, tokens, width))
    ffn = value_and_gradients(*dense_apply(width, WIDTH), x_TD, dy_TD)
    head = 3 * 2.0 * tokens * width * made.model.vocab_size
    projections = 3 * 4 * 2.0 * tokens * width * width
    of_all = {
        ATTENTION: Part(work.time(_attention(made).candidate(ATTENTION)), layers),
        PROJECTIONS: Part(
            work.time(_projections(x_TD).candidate(PROJECTIONS)), layers, projections
        ),
        HEAD: Part(work.time(_head(made, x_TD).candidate(HEAD)), 1, head),
    }
    own = {
        "FFN": Part(work.time(ffn.candidate("FFN")), layers, ffn_flops(tokens, width, WIDTH)),
        OPTIMIZER: Part(work.time(_optimizer(trainer).candidate(OPTIMIZER)), 1),
    }
    _compare(work, "", t.ANY, made, whole, of_all | own)
    for backend in context.backends:
        _moe(work, context, backend, of_all, x_TD, dy_TD)
    return work


def _moe(
    work: Workload,
    context: Context,
    backend: str,
    of_all: dict[str, Part],
    x_TD: jax.Array,
    dy_TD: jax.Array,
) -> None:
    """The parts of the MoE step by one back end."""
    if reason := unavailable(backend):
        like = experiment("tiles")
        case = Case(f"MoE, {EXPERTS} x{like.model.num_layers}", shape_text(like))
        work.rows.append(unknown(context.suite, case, backend, SHARE, reason))
        return
    made = experiment(backend)
    assert made.model.moe is not None
    trainer = Trainer(made)
    whole = work.time(Candidate(f"whole step: {backend}", trainer.step))
    layer = moe_program(made.model.d_model, made.model.moe, x_TD, dy_TD)
    flops = ffn_flops(made.tokens_per_step, made.model.d_model, WIDTH)
    parts = {label: dataclasses.replace(part, flops=0.0) for label, part in of_all.items()} | {
        EXPERTS: Part(
            work.time(layer.candidate(f"{EXPERTS}: {backend}")), made.model.num_layers, flops
        ),
        OPTIMIZER: Part(work.time(_optimizer(trainer).candidate(f"{OPTIMIZER}: {backend}")), 1),
    }
    _compare(work, "MoE, ", backend, made, whole, parts)


def _compare(
    work: Workload,
    prefix: str,
    backend: str,
    made: Experiment,
    whole: str,
    parts: dict[str, Part],
) -> None:
    """The rows of one model's parts."""
    for label, part in parts.items():
        routed = True if label == EXPERTS else None
        case = Case(f"{prefix}{label} x{part.times}", shape_text(made), routed)
        work.comparisons.append(
            Comparison(case, backend, SHARE, part.name, whole, "time", work=part.times)
        )
        if part.flops:
            work.comparisons.append(
                Comparison(case, backend, t.GEMM, part.name, NAME, work=part.flops / FLOPS)
            )
        work.notes[part.name] = {"times_in_a_step": part.times}


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


def _projections(x_TD: jax.Array) -> Program:
    """q, k, v and o: four products of `[T, D]` with `[D, D]`, and two more of each backward.

    Every product has a gradient of its own, and o an input of its own, as in the model: with equal
    ones the compiler does part of the work once.
    """
    tokens, width = x_TD.shape
    weights = tuple(jax.random.normal(jax.random.key(1), (4, width, width)) * width**-0.5)
    mixed_TD, *dy = jax.random.normal(jax.random.key(2), (5, tokens, width))

    def apply(weights: Any, x_TD: jax.Array, mixed_TD: jax.Array) -> Any:
        *into, out = weights
        return *(x_TD @ weight for weight in into), mixed_TD @ out

    def step(weights: Any, x_TD: jax.Array, mixed_TD: jax.Array, *dy: jax.Array) -> Any:
        y, pull_back = jax.vjp(apply, weights, x_TD, mixed_TD)
        return y, pull_back(dy)

    return compiled(step, weights, x_TD, mixed_TD, *dy)


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
