"""One optimiser step, as a pure function of state and batch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from moejax.sharding import batch_spec
from moejax.train.state import TrainState, Tree
from moejax.train.tuning import Tuning, together

Batch = dict[str, jax.Array]
Metrics = dict[str, Any]

MODEL_INPUTS = {
    "tokens": jnp.int32,
    "targets": jnp.int32,
    "segment_ids": jnp.int32,
    "positions": jnp.int32,
    "loss_mask": jnp.float32,
}
"""What of a batch goes to the device, with its dtype; the rest is for the analysis."""


def model_inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """The part of a host batch that the model reads."""
    return {name: batch[name] for name in MODEL_INPUTS}


def make_train_step(
    model: Any,
    optimizer: optax.GradientTransformation,
    learning_rate: Callable[[jax.Array], jax.Array],
    accumulate: int,
    tuning: Tuning | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """A jittable `(state, batch of [B, S] arrays) -> (state, metrics)`; donate the state.

    Gradients of `accumulate` micro-batches add: the denominators are those of the whole batch, so
    a micro-batch with less text weighs less. Losses of scope `global` cost a second forward pass
    then. A step whose loss or gradient norm is not finite
    returns the state that it was given, with `finite` False in its metrics; the host finds out one
    step later, and a bad update never exists.

    With a `tuning` only its trainable part has gradients and optimizer state, and the state of
    routers that are not trained stays as it is.

    Metrics: the model's summary, `grad_norm` (before clipping), `lr`, `finite`, and `_tokens`, the
    valid tokens of the batch.
    """

    mesh = getattr(model, "mesh", None)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        denominators = model.denominators(batch)

        def loss_fn(
            trainable: Tree, micro: Batch, key: jax.Array, **options: bool
        ) -> tuple[jax.Array, Any]:
            params = together(tuning, trainable, state.frozen)
            return model.loss(
                params,
                state.router_state,
                micro,
                key,
                denominators=denominators,
                train=True,
                **options,
            )

        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        if accumulate == 1:
            (loss, out), grads = gradient(state.trainable, batch, key)
        elif model.has_global_losses:
            deferred = functools.partial(loss_fn, defer_global=True)
            at_last = functools.partial(model.global_losses, state.router_state)
            loss, out, grads = _accumulated_globally(
                deferred, at_last, state.trainable, batch, key, accumulate, mesh
            )
        else:
            loss, out, grads = _accumulated(gradient, state.trainable, batch, key, accumulate, mesh)

        grad_norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        routes = tuning is None or tuning.routes
        updated = TrainState(
            step=state.step + 1,
            trainable=optax.apply_updates(state.trainable, updates),
            frozen=state.frozen,
            router_state=model.update_router_state(state.router_state, out)
            if routes
            else state.router_state,
            opt_state=opt_state,
            rng=state.rng,
        )
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, state)
        metrics = dict(model.summarise(out))
        metrics["total_loss"] = loss
        metrics["grad_norm"] = grad_norm
        metrics["lr"] = learning_rate(state.step)
        metrics["finite"] = finite
        metrics["_tokens"] = (batch["segment_ids"] > 0).sum(dtype=jnp.int32)
        return kept, metrics

    return train_step


def _micro_batches(batch: Batch, accumulate: int, mesh: Mesh | None) -> Batch:
    """`[accumulate, B / accumulate, ...]`; on a mesh every micro-batch lies over all devices."""

    def cut(x: jax.Array) -> jax.Array:
        x = x.reshape(accumulate, -1, *x.shape[1:])
        if mesh is None:
            return x
        rows = NamedSharding(mesh, PartitionSpec(None, *batch_spec(mesh)))
        return jax.lax.with_sharding_constraint(x, rows)

    return jax.tree.map(cut, batch)


def _accumulated(
    gradient: Callable[..., Any],
    trainable: Tree,
    batch: Batch,
    key: jax.Array,
    accumulate: int,
    mesh: Mesh | None,
) -> tuple[jax.Array, Any, Tree]:
    """Loss, outputs and gradients summed over micro-batches, in float32 or wider."""
    micros = _micro_batches(batch, accumulate, mesh)
    first = jax.tree.map(lambda x: x[0], micros)
    (loss_shape, out_shape), grad_shape = jax.eval_shape(gradient, trainable, first, key)

    def wide(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32))

    zeros = (
        jnp.zeros(loss_shape.shape, loss_shape.dtype),
        jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), out_shape),
        jax.tree.map(wide, grad_shape),
    )

    def body(carry: Any, item: tuple[jax.Array, Batch]) -> tuple[Any, None]:
        index, micro = item
        (loss, out), grads = gradient(trainable, micro, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, carry, (loss, out, grads)), None

    (loss, out, grads), _ = jax.lax.scan(body, zeros, (jnp.arange(accumulate), micros))
    return loss, out, jax.tree.map(lambda g, leaf: g.astype(leaf.dtype), grads, grad_shape)


def _accumulated_globally(
    loss_fn: Callable[..., Any],
    global_losses: Callable[[Any], Any],
    trainable: Tree,
    batch: Batch,
    key: jax.Array,
    accumulate: int,
    mesh: Mesh | None,
) -> tuple[jax.Array, Any, Tree]:
    """As `_accumulated`, with losses that are products of sums over all micro-batches.

    Their gradient needs every micro-batch's statistics before the first backward pass, so all go
    forward first, keeping nothing but sums, and forward again one by one in the backward pass.
    """
    micros = _micro_batches(batch, accumulate, mesh)
    first = jax.tree.map(lambda x: x[0], micros)
    shapes = jax.eval_shape(loss_fn, trainable, first, key)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    # Gradients add up in float32 or wider: the cast inside the loop is where they meet.
    wide = jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), trainable)

    def whole(wide: Tree) -> tuple[jax.Array, Any]:
        @jax.checkpoint
        def one(wide: Tree, index: jax.Array, micro: Batch) -> Any:
            narrow = jax.tree.map(lambda w, x: w.astype(x.dtype), wide, trainable)
            return loss_fn(narrow, micro, jax.random.fold_in(key, index))

        def body(carry: Any, item: tuple[jax.Array, Batch]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, carry, one(wide, *item)), None

        (loss, out), _ = jax.lax.scan(body, zeros, (jnp.arange(accumulate), micros))
        extra, out = global_losses(out)
        return loss + extra, out

    (loss, out), grads = jax.value_and_grad(whole, has_aux=True)(wide)
    return loss, out, jax.tree.map(lambda g, x: g.astype(x.dtype), grads, trainable)


def make_eval_step(
    model: Any, tuning: Tuning | None = None
) -> Callable[[Any, Tree, Batch, jax.Array], Any]:
    """A jittable `(params, router_state, batch, rows_N) -> StepOut`; with a `tuning`, `params` are
    its two parts (`moejax.train.tuning.parts`).

    Its trace holds the rows `rows_N` (int32) of the batch only, tokens in their order: that of a
    whole batch of a pod is larger than a device, and all but a few rows would be thrown away.
    """

    def eval_step(params: Any, router_state: Tree, batch: Batch, rows_N: jax.Array) -> Any:
        if tuning is not None:
            params = tuning.assemble(*params)
        _, out = model.loss(
            params,
            router_state,
            batch,
            jax.random.key(0),
            denominators=model.denominators(batch),
            train=False,
            trace=rows_N.size > 0,
        )
        if "trace" in out:
            out["trace"] = _rows_of(out["trace"], rows_N)
        return out

    return eval_step


def _rows_of(trace: Tree, rows_N: jax.Array) -> Tree:
    batch_size, seq_len = trace["nll_BS"].shape

    def some(expert_LTK: jax.Array) -> jax.Array:
        num_layers, _, slots = expert_LTK.shape
        rows_LNSK = expert_LTK.reshape(num_layers, batch_size, seq_len, slots)[:, rows_N]
        return rows_LNSK.reshape(num_layers, -1, slots)

    return {
        "expert_LTK": jax.tree.map(some, trace["expert_LTK"]),
        "nll_BS": trace["nll_BS"][rows_N],
    }
