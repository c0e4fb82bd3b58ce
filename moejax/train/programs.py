"""The compiled programs of a run: initialise, train step, evaluation step."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp

from moejax.models.transformer import Transformer
from moejax.train.experiment import Experiment
from moejax.train.optimizer import make_optimizer
from moejax.train.schedule import multiplier
from moejax.train.state import TrainState, make_init
from moejax.train.step import MODEL_INPUTS, make_eval_step, make_train_step


@dataclasses.dataclass(frozen=True)
class Programs:
    """Everything of a run that is compiled, so that nothing can recompile inside the loop.

    Attributes:
      model: what they were made from.
      abstract: shapes and dtypes of the train state.
      initialise: seed (int32 scalar) -> TrainState.
      train_step: (state, which is donated, batch) -> (state, metrics).
      eval_step: (params, router state, batch) -> metrics.
      seconds: what compiling each of them took.
    """

    model: Any
    abstract: TrainState
    initialise: Any
    train_step: Any
    eval_step: Any
    seconds: dict[str, float]


def compile_programs(experiment: Experiment, model: Any = None) -> Programs:
    """Compiles a run's programs; needs no data, so it can go on while the data is prepared.

    Args:
      experiment: checked configuration.
      model: an object with the interface of `Transformer`; default: `Transformer(...)`.
    """
    model = Transformer(experiment.model) if model is None else model
    schedule = multiplier(experiment.schedule, experiment.total_steps, experiment.tokens_per_step)
    optimizer = make_optimizer(experiment.optimizer, schedule)
    init = make_init(model, optimizer)
    step = make_train_step(
        model,
        optimizer,
        lambda done: experiment.optimizer.lr * schedule(done),
        experiment.train.accumulate,
    )
    seq_len = experiment.data.seq_len
    seed = jax.ShapeDtypeStruct((), jnp.int32)
    abstract = jax.eval_shape(init, seed)
    lowered = {
        "initialise": lambda: jax.jit(init).lower(seed),
        "train_step": lambda: jax.jit(step, donate_argnums=0).lower(
            abstract, _batch(experiment.train.batch_size, seq_len)
        ),
        "eval_step": lambda: jax.jit(make_eval_step(model)).lower(
            abstract.params,
            abstract.router_state,
            _batch(experiment.evaluation.batch_size, seq_len),
        ),
    }
    # The first program runs once; on a CPU, optimising it costs more than it could ever save.
    on_cpu = jax.local_devices()[0].platform == "cpu"
    options: dict[str, dict[str, str | bool]] = (
        {"initialise": {"xla_backend_optimization_level": "0"}} if on_cpu else {}
    )
    compiled, seconds = {}, {}
    for name, lower in lowered.items():
        start = time.perf_counter()
        compiled[name] = lower().compile(compiler_options=options.get(name))
        seconds[name] = time.perf_counter() - start
    return Programs(model=model, abstract=abstract, seconds=seconds, **compiled)


def _batch(rows: int, seq_len: int) -> dict[str, jax.ShapeDtypeStruct]:
    shape = (rows, seq_len)
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, dtype in MODEL_INPUTS.items()}
