"""The compiled programs of a run: initialise, train step, evaluation step."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from moejax.config.knobs import ConfigError
from moejax.experts.exchange.sharded import Parallel
from moejax.models.transformer import Transformer
from moejax.sharding import BATCH_AXES, batch_spec, make_mesh
from moejax.train.experiment import Experiment
from moejax.train.layout import Layout, make_layout
from moejax.train.optimizer import make_optimizer
from moejax.train.schedule import multiplier
from moejax.train.shapes import abstract_state, on_mesh
from moejax.train.state import TrainState, make_init, make_start
from moejax.train.step import MODEL_INPUTS, make_eval_step, make_train_step
from moejax.train.tuning import Tuning, parts, plan_tuning


@dataclasses.dataclass(frozen=True)
class Programs:
    """Everything of a run that is compiled, so that nothing can recompile inside the loop.

    Attributes:
      model: what they were made from.
      mesh: where they run; None: one device.
      layout: shapes, dtypes and shardings of the train state, held and stored.
      initialise: seed (int32 scalar) -> TrainState; of a fine-tuning (seed, parameters and router
        state of the base) -> TrainState.
      train_step: (state, which is donated, batch) -> (state, metrics).
      eval_step: (params, router state, batch, rows of its trace) -> sums and trace; `params` of
        a fine-tuning are its two parts.
      seconds: what compiling each of them took.
      temporary: bytes that each needs on a device while it runs, beside its arguments and results;
        without those whose compiler does not say.
      arguments: bytes of what each takes, on a device.
      tuning: what is trained; None: everything.
    """

    model: Any
    mesh: Mesh | None
    layout: Layout[TrainState]
    initialise: Any
    train_step: Any
    eval_step: Any
    seconds: dict[str, float]
    temporary: dict[str, int]
    arguments: dict[str, int]
    tuning: Tuning | None


@dataclasses.dataclass(frozen=True)
class Lowerings:
    """A run's programs before they are compiled.

    Attributes:
      model, mesh, tuning: as in `Programs`.
      abstract: shapes, dtypes and shardings of the train state.
      lower: by name, what traces and lowers a program (`jax.stages.Lowered`).
    """

    model: Any
    mesh: Mesh | None
    abstract: TrainState
    lower: dict[str, Callable[[], Any]]
    tuning: Tuning | None = None


def make_lowerings(
    experiment: Experiment, model: Any = None, mesh: Mesh | None = None
) -> Lowerings:
    """A run's programs, ready to be lowered; `mesh` may be of devices that are not here.

    Args:
      experiment: checked configuration.
      model: an object with the interface of `Transformer`; default: `Transformer(...)`.
      mesh: default: that of `model`, else `experiment_mesh(experiment)`.

    Raises:
      ConfigError: the model or its batches do not divide over the mesh, or a fine-tuning does not
        fit the model.
    """
    if mesh is None:
        # A model that is given has been made for some mesh, or for one device.
        mesh = experiment_mesh(experiment) if model is None else getattr(model, "mesh", None)
    parallel = None
    if mesh is not None:
        check_rows(experiment, mesh)
        parallel = Parallel(mesh, experiment.exchange)
    model = Transformer(experiment.model, parallel) if model is None else model
    schedule = multiplier(experiment.schedule, experiment.total_steps, experiment.tokens_per_step)
    optimizer = make_optimizer(experiment.optimizer, schedule)
    tuning = plan_tuning(experiment.finetune, model)
    init = make_init(model, optimizer) if tuning is None else make_start(tuning, optimizer)
    step = make_train_step(
        model,
        optimizer,
        lambda done: experiment.optimizer.lr * schedule(done),
        experiment.train.accumulate,
        tuning,
    )
    seq_len = experiment.data.seq_len
    start: list[Any] = [jax.ShapeDtypeStruct((), jnp.int32)]
    if tuning is not None:
        base = jax.eval_shape(model.init, jax.random.key(0))
        start += base if mesh is None else on_mesh(base, mesh)
    abstract = abstract_state(experiment, model, tuning, mesh)
    placed: dict[str, Any] = {}
    rows = copies = None
    if mesh is not None:
        rows = NamedSharding(mesh, batch_spec(mesh))
        copies = NamedSharding(mesh, PartitionSpec())
        placed["out_shardings"] = (jax.tree.map(lambda leaf: leaf.sharding, abstract), copies)
    lower = {
        "initialise": lambda: jax.jit(
            init,
            out_shardings=placed["out_shardings"][0] if placed else None,
            donate_argnums=(1, 2) if tuning else (),
        ).lower(*start),
        "train_step": lambda: jax.jit(step, donate_argnums=0, **placed).lower(
            abstract, _batch(experiment.train.batch_size, seq_len, rows)
        ),
        "eval_step": lambda: jax.jit(make_eval_step(model, tuning), out_shardings=copies).lower(
            parts(tuning, abstract),
            abstract.router_state,
            _batch(experiment.evaluation.batch_size, seq_len, rows),
            jax.ShapeDtypeStruct(
                (experiment.evaluation.traced_rows(seq_len),), jnp.int32, sharding=copies
            ),
        ),
    }
    return Lowerings(model=model, mesh=mesh, abstract=abstract, lower=lower, tuning=tuning)


def compile_programs(
    experiment: Experiment, model: Any = None, mesh: Mesh | None = None
) -> Programs:
    """Compiles a run's programs; needs no data, so it can go on while the data is prepared.

    Arguments and errors as `make_lowerings`.
    """
    plan = make_lowerings(experiment, model, mesh)
    # The first program runs once; on a CPU, optimising it costs more than it could ever save.
    on_cpu = jax.local_devices()[0].platform == "cpu"
    options: dict[str, dict[str, str | bool]] = (
        {"initialise": {"xla_backend_optimization_level": "0"}} if on_cpu else {}
    )
    compiled: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    temporary: dict[str, int] = {}
    arguments: dict[str, int] = {}
    for name, lower in plan.lower.items():
        start = time.perf_counter()
        compiled[name] = lower().compile(compiler_options=options.get(name))
        seconds[name] = time.perf_counter() - start
        if (memory := compiled[name].memory_analysis()) is not None:
            temporary[name] = memory.temp_size_in_bytes
            arguments[name] = memory.argument_size_in_bytes
    return Programs(
        plan.model,
        plan.mesh,
        _layout(plan),
        **compiled,
        seconds=seconds,
        temporary=temporary,
        arguments=arguments,
        tuning=plan.tuning,
    )


def _layout(plan: Lowerings) -> Layout[TrainState]:
    placements = plan.model.placements() if plan.mesh is not None else {}
    return make_layout(plan.abstract, placements, plan.mesh)


def experiment_mesh(experiment: Experiment) -> Mesh | None:
    """The mesh of a run; None when it has one device, where nothing needs sharding.

    Raises:
      ConfigError: `config.mesh` does not fit the devices, or leaves out those of a process.
    """
    mesh = make_mesh(experiment.mesh)
    used = {device.process_index for device in mesh.devices.flat}
    if len(used) < jax.process_count():
        raise ConfigError(
            f"config.mesh: its {mesh.size} devices belong to {len(used)} of {jax.process_count()} "
            f"processes; nearest valid mesh: one of {jax.device_count()} devices"
        )
    return mesh if mesh.size > 1 else None


def describe_mesh(programs: Programs) -> str:
    """One line: axes, and how unevenly the widths of experts lie over the devices."""
    mesh = programs.mesh
    assert mesh is not None
    axes = " x ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    placed = {own.max_over_mean for own in programs.model.placements().values()}
    worst = f"; placed expert width, max/mean: {max(placed):.3f}" if placed else ""
    return f"mesh {axes}, {mesh.devices.flat[0].platform}{worst}"


def check_rows(experiment: Experiment, mesh: Mesh) -> None:
    """Raises ConfigError when a batch does not divide over the mesh."""
    parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    micro = experiment.train.batch_size // experiment.train.accumulate
    for rows, name, times in (
        (micro, "train.batch_size", experiment.train.accumulate),
        (experiment.evaluation.batch_size, "evaluation.batch_size", 1),
    ):
        if rows % parts:
            near = math.ceil(rows / parts) * parts * times
            axes = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in BATCH_AXES)
            raise ConfigError(
                f"config.{name}={rows * times}: {rows} rows do not divide over {parts} shards of "
                f"the batch ({axes}); nearest valid value {near}"
            )


def _batch(
    rows: int, seq_len: int, sharding: NamedSharding | None
) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        name: jax.ShapeDtypeStruct((rows, seq_len), dtype, sharding=sharding)
        for name, dtype in MODEL_INPUTS.items()
    }
