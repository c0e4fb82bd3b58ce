"""The train state of a run as shapes: what its programs are made for and its checkpoints hold."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from moejax.sharding import tree_shardings
from moejax.train.experiment import Experiment
from moejax.train.layout import Layout, make_layout
from moejax.train.optimizer import make_optimizer
from moejax.train.schedule import multiplier
from moejax.train.state import TrainState, Tree, make_init, make_start
from moejax.train.tuning import Tuning, whole


def abstract_state(
    experiment: Experiment, model: Any, tuning: Tuning | None, mesh: Mesh | None
) -> TrainState:
    """Shapes and dtypes of a run's train state as the run holds it; with shardings on a mesh."""
    schedule = multiplier(experiment.schedule, experiment.total_steps, experiment.tokens_per_step)
    optimizer = make_optimizer(experiment.optimizer, schedule)
    seed = jax.ShapeDtypeStruct((), jnp.int32)
    if tuning is None:
        abstract: TrainState = jax.eval_shape(make_init(model, optimizer), seed)
    else:
        params, router_state = jax.eval_shape(model.init, jax.random.key(0))
        abstract = jax.eval_shape(make_start(tuning, optimizer), seed, params, router_state)
    return abstract if mesh is None else on_mesh(abstract, mesh)


def on_mesh(abstract: Any, mesh: Mesh) -> Any:
    """The same shapes with the shardings that their names ask for."""
    return jax.tree.map(
        lambda leaf, own: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=own),
        abstract,
        tree_shardings(abstract, mesh),
    )


def state_layout(
    experiment: Experiment, model: Any, tuning: Tuning | None, mesh: Mesh | None
) -> Layout[TrainState]:
    """The layout of a run's whole train state on any mesh: a checkpoint is verified as a whole."""
    abstract = abstract_state(experiment, model, tuning, mesh)
    return make_layout(abstract, {} if mesh is None else model.placements(), mesh)


def assembled(tuning: Tuning | None, state: TrainState, model: Any, mesh: Mesh | None) -> Tree:
    """The model's whole parameters out of a train state, placed on the mesh."""
    if tuning is None:
        return state.params
    shardings = None
    if mesh is not None:
        abstract, _ = jax.eval_shape(model.init, jax.random.key(0))
        shardings = tree_shardings(abstract, mesh)
    params: Tree = jax.jit(functools.partial(whole, tuning), out_shardings=shardings)(state)
    return params
