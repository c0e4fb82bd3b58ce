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
from moejax.sharding import BATCH_AXES, batch_spec, make_mesh, tree_shardings
from moejax.train.experiment import Experiment
from moejax.train.layout import Layout, make_layout
from moejax.train.optimizer import make_optimizer
from moejax.train.schedule import multiplier
from moejax.train.state import TrainState, make_init
from moejax.train.step import MODEL_INPUTS, make_eval_step, make_train_step


@dataclasses.dataclass(frozen=True)
class Programs:
    """Everything of a run that is compiled, so that nothing can recompile inside the loop.

    Attributes:
      model: what they were made from.
      mesh: where they run; None: one device.
      layout: shapes, dtypes and shardings of the train state, held and stored.
      initialise: seed (int32 scalar) -> TrainState.
      train_step: (state, which is donated, batch) -> (state, metrics).
      eval_step: (params, router state, batch, rows of its trace) -> sums and trace.
      seconds: what compiling each of them took.
      temporary: bytes that each needs on a device while it runs, beside its arguments and results;
        without those whose compiler does not say.
    """

    model: Any
    mesh: Mesh | None
    layout: Layout
    initialise: Any
    train_step: Any
    eval_step: Any
    seconds: dict[str, float]
    temporary: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Lowerings:
    """A run's programs before they are compiled.

    Attributes:
      model, mesh, abstract: as in `Programs`.
      lower: by name, what traces and lowers a program (`jax.stages.Lowered`).
    """

    model: Any
    mesh: Mesh | None
    abstract: TrainState
    lower: dict[str, Callable[[], Any]]


def make_lowerings(
    experiment: Experiment, model: Any = None, mesh: Mesh | None = None
) -> Lowerings:
    """A run's programs, ready to be lowered; `mesh` may be of devices that are not here.

    Args:
      experiment: checked configuration.
      model: an object with the interface of `Transformer`; default: `Transformer(...)`.
      mesh: default: that of `model`, else `experiment_mesh(experiment)`.

    Raises:
      ConfigError: the model or its batches do not divide over the mesh.
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
    on_mesh: dict[str, Any] = {}
    rows = copies = None
    if mesh is not None:
        shardings = tree_shardings(abstract, mesh)
        abstract = jax.tree.map(
            lambda leaf, own: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=own),
            abstract,
            shardings,
        )
        rows = NamedSharding(mesh, batch_spec(mesh))
        copies = NamedSharding(mesh, PartitionSpec())
        on_mesh["out_shardings"] = (shardings, copies)
    lower = {
        "initialise": lambda: jax.jit(
            init, out_shardings=on_mesh["out_shardings"][0] if on_mesh else None
        ).lower(seed),
        "train_step": lambda: jax.jit(step, donate_argnums=0, **on_mesh).lower(
            abstract, _batch(experiment.train.batch_size, seq_len, rows)
        ),
        "eval_step": lambda: jax.jit(make_eval_step(model), out_shardings=copies).lower(
            abstract.params,
            abstract.router_state,
            _batch(experiment.evaluation.batch_size, seq_len, rows),
            jax.ShapeDtypeStruct(
                (experiment.evaluation.traced_rows(seq_len),), jnp.int32, sharding=copies
            ),
        ),
    }
    return Lowerings(model=model, mesh=mesh, abstract=abstract, lower=lower)


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
    for name, lower in plan.lower.items():
        start = time.perf_counter()
        compiled[name] = lower().compile(compiler_options=options.get(name))
        seconds[name] = time.perf_counter() - start
        if (memory := compiled[name].memory_analysis()) is not None:
            temporary[name] = memory.temp_size_in_bytes
    return Programs(
        plan.model, plan.mesh, _layout(plan), **compiled, seconds=seconds, temporary=temporary
    )


def _layout(plan: Lowerings) -> Layout:
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
