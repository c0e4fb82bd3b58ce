"""The train state: pure dicts of arrays, nothing hidden."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

Tree = dict[str, Any]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "trainable", "frozen", "router_state", "opt_state", "rng"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step changes, and everything that a checkpoint must hold.

    Attributes:
      step: int32 scalar, optimiser steps applied.
      trainable: parameters with a gradient.
      frozen: parameters without one; `params` is the merge of both. A fine-tuning may put them
        together in another way (`moejax.train.tuning.whole`).
      router_state: what routers keep outside the gradient (bias, lambda); may be `{}`.
      opt_state: optax state over `trainable`.
      rng: uint32 key data. It never changes: the key of a step is folded from it and the step
        number, so that a resumed run draws what the uninterrupted one would have drawn.
    """

    step: jax.Array
    trainable: Tree
    frozen: Tree
    router_state: Tree
    opt_state: Any
    rng: jax.Array

    @property
    def params(self) -> Tree:
        """The model's whole parameter tree, of a run without a tuning."""
        return merge(self.trainable, self.frozen)


def merge(trainable: Tree, frozen: Tree) -> Tree:
    """One tree out of two with disjoint leaves.

    Raises:
      ValueError: both trees hold the same leaf.
    """
    merged = dict(trainable)
    for name, value in frozen.items():
        if name not in merged:
            merged[name] = value
        elif isinstance(value, dict) and isinstance(merged[name], dict):
            merged[name] = merge(merged[name], value)
        else:
            raise ValueError(f"parameter {name!r} is both trainable and frozen")
    return merged


def make_init(
    model: Any, optimizer: optax.GradientTransformation
) -> Callable[[jax.Array], TrainState]:
    """A jittable `seed (int32 scalar) -> TrainState`; one program serves all seeds."""

    def init(seed: jax.Array) -> TrainState:
        init_key, step_key = jax.random.split(jax.random.key(seed))
        params, router_state = model.init(init_key)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            trainable=params,
            frozen={},
            router_state=router_state,
            opt_state=optimizer.init(params),
            rng=jax.random.key_data(step_key),
        )

    return init


def make_start(
    tuning: Any, optimizer: optax.GradientTransformation
) -> Callable[[jax.Array, Tree, Tree], TrainState]:
    """A jittable `(seed, parameters, router state) -> TrainState` of a run that starts from a
    base; `tuning` as `moejax.train.tuning.Tuning`."""

    def start(seed: jax.Array, params: Tree, router_state: Tree) -> TrainState:
        split_key, step_key = jax.random.split(jax.random.key(seed))
        trainable, frozen = tuning.split(params, split_key)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            trainable=trainable,
            frozen=frozen,
            router_state=router_state,
            opt_state=optimizer.init(trainable),
            rng=jax.random.key_data(step_key),
        )

    return start
