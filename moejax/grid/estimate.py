"""Estimate: what a cell needs, by arithmetic alone. No device is asked and nothing is traced.

Counts and FLOPs are those of `moejax.config.counts`, as in the trainer and the report. Memory is
the coarse sum of `moejax.train.aot_search` (tens of percent). Seconds are FLOPs over a speed that
`machine.py` says the origin of, or the roofline of a named chip.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence
from typing import Any

from moejax.config import ConfigError, build
from moejax.config.counts import flops_per_token, parameters
from moejax.grid.cells import Cell
from moejax.grid.machine import Machine
from moejax.sharding.topology import Topology
from moejax.train import aot_search
from moejax.train.experiment import Experiment

BYTES_PER_TRACED_TOKEN = 20
"""Of trace/STEP.npz, compressed (7 to 17 in the runs of the README and the quickstart)."""

BYTES_PER_LINE = 3000
"""Of metrics.jsonl and the TensorBoard events of one step (930 to 2650 in those runs)."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What one cell needs.

    Attributes:
      total_parameters: all weight matrices.
      active_parameters: what a token uses, at nominal activation.
      active_non_embedding: the same without embedding and head.
      flops_per_token: training FLOPs at nominal activation.
      steps, tokens, flops: of the whole run.
      memory: bytes at the peak, of the process on this machine or of one chip.
      disk: bytes of the finished run directory.
      seconds: NaN where the speed is not known.
    """

    total_parameters: int
    active_parameters: float
    active_non_embedding: float
    flops_per_token: float
    steps: int
    tokens: int
    flops: float
    memory: float
    disk: float
    seconds: float


def estimate(cells: Sequence[Cell], machine: Machine) -> list[Estimate]:
    """One estimate per cell, in order; cells that differ in their seed only share the work.

    Raises:
      ConfigError: a cell's mesh does not fit the named chips.
    """
    known: dict[str, Estimate] = {}
    found = []
    for cell in cells:
        # What numbers depend on, and nothing else: 10,000 cells often share a model.
        model = {key: cell.config[key] for key in _RELEVANT if key in cell.config}
        key = repr(model)
        if key not in known:
            try:
                known[key] = _estimate(build(Experiment, model | {"seed": 0}), machine)
            except ConfigError as error:
                raise ConfigError(f"{cell.name}: {error}") from error
        found.append(known[key])
    return found


_RELEVANT = (
    "model", "data", "train", "evaluation", "checkpoint", "log", "mesh", "exchange",
)  # fmt: skip


def _estimate(experiment: Experiment, machine: Machine) -> Estimate:
    shape = experiment.model.shape()
    counted = parameters(shape)
    per_token = float(flops_per_token(shape, experiment.data.seq_len))
    steps = experiment.total_steps
    tokens = steps * experiment.tokens_per_step
    if machine.topology is None:
        memory, seconds = _here(experiment, machine, tokens * per_token)
    else:
        memory, seconds = _there(experiment, machine.topology, steps)
    return Estimate(
        total_parameters=counted.total,
        active_parameters=float(counted.active),
        active_non_embedding=float(counted.active_non_embedding),
        flops_per_token=per_token,
        steps=steps,
        tokens=tokens,
        flops=tokens * per_token,
        memory=memory,
        disk=disk_bytes(experiment),
        seconds=seconds,
    )


def _here(experiment: Experiment, machine: Machine, flops: float) -> tuple[float, float]:
    """Memory of a process on this machine's CPU, seconds."""
    whole = dataclasses.replace(experiment, mesh=experiment.mesh.resolve(1))
    parts = aot_search.memory_bytes(whole)
    # A checkpoint is written from a copy of the state (without gradients) while training goes on.
    memory = math.fsum(parts.values()) + state_bytes(experiment) + machine.process_bytes
    return memory, machine.startup_seconds + flops / machine.flops_per_second


def _there(experiment: Experiment, topology: Topology, steps: int) -> tuple[float, float]:
    """Memory of one chip, seconds; of the config's own mesh, rematerialisation, micro-batches."""
    mesh = experiment.mesh.resolve(topology.num_chips)
    if math.prod(mesh.sizes) < topology.num_chips:
        raise ConfigError(
            f"config.mesh: uses {math.prod(mesh.sizes)} of the {topology.num_chips} chips of "
            f"{topology.name}; nearest valid value: one axis of -1"
        )
    sharded = mesh.data * mesh.fsdp * mesh.expert
    rows, accumulate = experiment.train.batch_size, experiment.train.accumulate
    if (rows // accumulate) % sharded:
        near = math.ceil(rows / (accumulate * sharded)) * accumulate * sharded
        raise ConfigError(
            f"config.train.batch_size={rows}: does not divide among {sharded} chips of "
            f"{topology.name}; nearest valid value {near}"
        )
    found = aot_search.estimate(experiment, topology, mesh, experiment.model.remat, accumulate)
    return found.bytes, found.step_seconds * steps


def state_bytes(experiment: Experiment) -> float:
    """Bytes of a checkpoint: parameters and two moments of Adam."""
    itemsize = int(experiment.model.dtypes[0].itemsize)
    return 3.0 * itemsize * parameters(experiment.model.shape()).everything


def disk_bytes(experiment: Experiment) -> float:
    """Bytes of a run directory at its largest: the checkpoints kept and one being written (none
    where they are in a store), metrics, and the evaluation traces."""
    evaluations = 1 + experiment.total_steps // max(
        1, experiment.steps_of(experiment.evaluation.every, "config.evaluation.every")
    )
    traced = min(experiment.evaluation.trace_tokens, experiment.evaluation.max_tokens)
    lines = experiment.total_steps / experiment.log.every
    kept = 0 if experiment.checkpoint.dir else experiment.checkpoint.keep + 1
    return (
        kept * state_bytes(experiment)
        + BYTES_PER_LINE * lines
        + BYTES_PER_TRACED_TOKEN * traced * evaluations
    )


def refusals(
    cells: Sequence[Cell],
    estimates: Sequence[Estimate],
    machine: Machine,
    have: Collection[str] = (),
) -> list[str]:
    """Why cells cannot run on the machine, a line each; empty where everything fits.

    Args:
      have: directories of cells that are on the disk already.
    """
    found = []
    for cell, own in zip(cells, estimates, strict=True):
        if own.memory > machine.memory:
            found.append(
                f"{cell.name}: needs about {gib(own.memory)} GiB of memory, {machine.name} has "
                f"{gib(machine.memory)}; nearest valid: a smaller config.train.batch_size, "
                "config.train.accumulate, or config.model.remat=full"
            )
    pairs = zip(cells, estimates, strict=True)
    total = math.fsum(own.disk for cell, own in pairs if cell.directory not in have)
    if total > machine.disk:
        found.append(
            f"{len(cells)} cells: need about {gib(total)} GiB of disk, {machine.disk_place} has "
            f"{gib(machine.disk)} free; nearest valid: config.checkpoint.keep=1, another --root, "
            "or fewer cells"
        )
    return found


def gib(number: float) -> str:
    """Bytes as GiB with two or three digits."""
    value: Any = number / 1024**3
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"
