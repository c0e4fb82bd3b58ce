"""A run directory before its first step, made of parameters that are there already.

It is one of `experiments.train`: config.json, model.json, data.json, env.json, status.json and a
checkpoint of step 0 with fresh optimizer state. So every tool that opens runs opens it, and
`python -m experiments.train --workdir=RUN` trains on from it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from moejax.config import ConfigError, check, to_plain, write_json
from moejax.data import EvalStream, prepare
from moejax.models.transformer import Transformer
from moejax.train import environment
from moejax.train.checkpoint import Checkpoints
from moejax.train.clock import Clock
from moejax.train.experiment import Experiment
from moejax.train.layout import make_layout
from moejax.train.lock import RunLock
from moejax.train.optimizer import make_optimizer
from moejax.train.rundir import FORMAT_VERSION, RunDir, Status, claim, identify
from moejax.train.schedule import multiplier
from moejax.train.state import TrainState

Tree = dict[str, Any]


def require_empty(root: str | os.PathLike[str]) -> None:
    """Raises ConfigError if no new run can be made there: better before hours of work than after
    them."""
    place = Path(root)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise ConfigError(f"{place}: is not empty; a new run needs a directory of its own")


@contextlib.contextmanager
def new_run(root: str | os.PathLike[str]) -> Iterator[RunDir]:
    """An empty run directory to be filled, locked; it is gone again if that fails.

    Raises:
      ConfigError: the directory holds something, or cannot be made.
    """
    require_empty(root)
    run = claim(root)
    try:
        with RunLock(run.root):
            yield run
    except BaseException:
        shutil.rmtree(run.root, ignore_errors=True)  # it was empty: nothing here is another's
        raise


def fill(
    run: RunDir,
    experiment: Experiment,
    params: Tree,
    router_state: Tree,
    *,
    state: str,
    argv: Sequence[str] = (),
) -> None:
    """Writes everything that a run has before its first step.

    Args:
      run: of `new_run`.
      experiment: what is to be trained; it is checked.
      params, router_state: of `Transformer(experiment.model)`, NumPy or JAX arrays. NumPy arrays
        are let go one by one: the trees are given up.
      state: for status.json: "imported", "converted".
      argv: command line for env.json.

    Raises:
      ConfigError: the experiment is impossible, or its text is not to be had.
    """
    check(experiment)
    dataset = prepare(experiment.data)
    identify(run, to_plain(experiment))
    validation = EvalStream(
        dataset,
        batch_size=experiment.evaluation.batch_size,
        seq_len=experiment.data.seq_len,
        max_tokens=experiment.evaluation.max_tokens,
    )
    write_json(run.data, dataset.info(validation.baselines()))
    described = Transformer(experiment.model).describe(experiment.data.seq_len)
    write_json(run.model, {**described, "format_version": FORMAT_VERSION})
    environ = environment.collect(list(argv), {})
    write_json(
        run.env,
        environ | {"attempt": 1, "bitwise_comparable": True, "changes": [], "history": []},
    )
    _save(run, experiment, params, router_state)
    Status(run, 0, experiment.total_steps, 0.0).set(state=state, exit_code=0)


def _save(run: RunDir, experiment: Experiment, params: Tree, router_state: Tree) -> None:
    schedule = multiplier(experiment.schedule, experiment.total_steps, experiment.tokens_per_step)
    optimizer = make_optimizer(experiment.optimizer, schedule)
    params, router_state = _as_arrays(params), _as_arrays(router_state)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=params,
        frozen={},
        router_state=router_state,
        opt_state=jax.jit(optimizer.init)(params),
        rng=jax.random.key_data(jax.random.split(jax.random.key(experiment.seed))[1]),
    )
    abstract = jax.eval_shape(lambda: state)
    checkpoints = Checkpoints(
        run.checkpoints, run.damaged, experiment.checkpoint.keep, make_layout(abstract, {}, None)
    )
    try:
        checkpoints.save(state, Clock())
        checkpoints.wait()
    finally:
        checkpoints.close()


def _as_arrays(tree: Tree) -> Tree:
    """Into JAX one leaf at a time; the NumPy array of each is let go."""
    for key in list(tree):
        value = tree[key]
        tree[key] = _as_arrays(value) if isinstance(value, dict) else jnp.asarray(value)
    return tree
