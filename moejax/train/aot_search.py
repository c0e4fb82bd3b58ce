"""Ranks meshes, rematerialisation and micro-batches by arithmetic, before anything is compiled.

The arithmetic is coarse (memory within tens of percent): it is there to choose what to compile.
The batch of an optimiser step stays what the config says, so every candidate trains the same
model; micro-batches shrink with `accumulate`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any

from moejax.config import ConfigError
from moejax.config.counts import parameters
from moejax.experts.exchange.placement import placement
from moejax.sharding.hlo_totals import Route
from moejax.sharding.mesh import AXES, MeshConfig
from moejax.sharding.topology import Topology
from moejax.train.aot_model import (
    FLASH,
    Roofline,
    attention_backend,
    roofline,
    row_budget,
    step_flops,
)
from moejax.train.experiment import Experiment

REMATS = ("none", "dots", "full")
DATA = (1, 2, 4, 8, 16)
TENSOR = (1, 2, 4, 8)
ACCUMULATE = (1, 2, 4, 8, 16, 32)
USABLE = 0.92
"""Part of a chip's memory that a candidate may fill: the compiler keeps some, and fragments."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to run an experiment on a machine, with its estimates.

    Attributes:
      mesh, remat, accumulate: what would be set.
      memory: bytes of one chip by part.
      fits: whether they are below `USABLE` of the chip.
      time: seconds of one step by resource.
      mfu: model FLOPs per second over the peak, in the middle between full overlap and none.
    """

    mesh: MeshConfig
    remat: str
    accumulate: int
    memory: dict[str, float]
    fits: bool
    time: Roofline
    mfu: float

    @property
    def step_seconds(self) -> float:
        """The middle between full overlap and none."""
        return (self.time.overlapped + self.time.serial) / 2

    @property
    def bytes(self) -> float:
        """All parts of the memory."""
        return math.fsum(self.memory.values())

    def apply(self, experiment: Experiment) -> Experiment:
        """The experiment, run this way."""
        return dataclasses.replace(
            experiment,
            mesh=self.mesh,
            model=dataclasses.replace(experiment.model, remat=self.remat),
            train=dataclasses.replace(experiment.train, accumulate=self.accumulate),
        )


def search(experiment: Experiment, topology: Topology) -> list[Candidate]:
    """All candidates, the best first: those that fit by time, then the others by memory.

    Raises:
      ConfigError: no mesh divides the model and its batch.
    """
    found = [
        estimate(experiment, topology, mesh, remat, accumulate)
        for mesh in meshes(experiment, topology)
        for remat in REMATS
        for accumulate in ACCUMULATE
        if _divides(experiment, mesh, accumulate)
    ]
    if not found:
        raise ConfigError(
            f"--search: no mesh of {topology.num_chips} devices divides d_model="
            f"{experiment.model.d_model}, the heads, the experts and a batch of "
            f"{experiment.train.batch_size} sequences; nearest valid: a batch that is a multiple "
            f"of {topology.num_chips}, or fewer chips"
        )
    return sorted(
        found, key=lambda one: (not one.fits, one.step_seconds if one.fits else one.bytes)
    )


def meshes(experiment: Experiment, topology: Topology) -> Iterator[MeshConfig]:
    """Meshes that divide the model: `data` spans the slices, `expert` divides the experts."""
    model, inside = experiment.model, topology.num_chips // topology.slices
    shape = model.shape()
    units = [moe.spec.units for moe in dict.fromkeys(model.plan()) if moe is not None]
    heads = [size for layer in shape.layers for size in (layer.heads, layer.kv_heads)]
    for data, expert, tensor in itertools.product(DATA, _divisors(inside), TENSOR):
        if inside % (data * expert * tensor) or (expert > 1 and not units):
            continue
        fsdp = inside // (data * expert * tensor)
        widths = (shape.vocab_size, model.ffn_width, *heads)
        if any(size % tensor for size in widths if size) or model.d_model % (fsdp * expert):
            continue
        # Padding is placement's business; a mesh that pads much is no candidate.
        if any(placement(own, expert, tensor).max_over_mean > 1.01 for own in units):
            continue
        yield MeshConfig(topology.slices * data, fsdp, expert, tensor, topology.slices)


def estimate(
    experiment: Experiment, topology: Topology, mesh: MeshConfig, remat: str, accumulate: int
) -> Candidate:
    """Memory and time of one candidate."""
    own = Candidate(mesh, remat, accumulate, {}, False, Roofline(0, 0, 0, 0), 0.0).apply(experiment)
    memory = memory_bytes(own)
    flops = step_flops(own)
    chips = math.prod(mesh.sizes)
    time = roofline(topology, flops.total / chips, hbm_traffic(own), traffic(own, topology))
    middle = (time.overlapped + time.serial) / 2
    return Candidate(
        mesh=mesh,
        remat=remat,
        accumulate=accumulate,
        memory=memory,
        fits=math.fsum(memory.values()) <= USABLE * topology.figures.hbm,
        time=time,
        mfu=flops.model / (middle * chips * topology.figures.peak),
    )


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """Sizes of one chip: tokens of a micro-batch, bytes of a number, parameters of a layer."""

    tokens: int
    rows: int
    param: int
    compute: int
    shards: int
    layer_dense: float
    layer_experts: float
    table: float
    everything: float


def _sizes(experiment: Experiment) -> _Sizes:
    model, mesh = experiment.model, experiment.mesh
    found = parameters(model.shape())
    param, compute, _ = (dtype.itemsize for dtype in model.dtypes)
    rows = experiment.train.batch_size // experiment.train.accumulate
    rows = max(1, rows // (mesh.data * mesh.fsdp * mesh.expert))
    rest = found.attention + found.dense_ffn + found.shared_experts
    return _Sizes(
        tokens=rows * experiment.data.seq_len,
        rows=rows,
        param=param,
        compute=compute,
        shards=mesh.fsdp * mesh.expert * mesh.tensor,
        layer_dense=rest / model.num_layers / mesh.tensor,
        layer_experts=found.experts / model.num_layers / (mesh.expert * mesh.tensor),
        table=model.vocab_size * model.d_model / mesh.tensor,
        everything=found.everything,
    )


def memory_bytes(experiment: Experiment) -> dict[str, float]:
    """Bytes of one chip by part; `experiment.mesh` must be resolved.

    State: parameters, two moments of Adam and gradients, fully sharded. Gathered: the weights of
    two layers and of the head, in compute dtype. Saved: what the rematerialisation keeps of each
    layer. Working: one layer's activations and its rows of experts. Loss: one chunk's logits.
    """
    model, mesh, size = experiment.model, experiment.mesh, _sizes(experiment)
    shape = model.shape()
    copies = 4 if experiment.train.accumulate == 1 else 4 + 4 / size.param
    saved = sum(_saved_width(experiment, layer, model.remat) for layer in shape.layers)
    one = max(_saved_width(experiment, layer, "none") for layer in shape.layers)
    rows = row_budget(experiment, dict(zip(AXES, mesh.sizes, strict=True)))
    expert_rows = 0.0
    if rows is not None:
        width = max(max(layer.widths, default=0) for layer in shape.layers) / mesh.tensor
        per_row = model.d_model * (2 * size.compute + 8) + 3 * width * size.compute
        expert_rows = rows.buffer * per_row
    chunk = min(model.loss_chunk or experiment.data.seq_len, experiment.data.seq_len)
    logits = size.rows * chunk * model.vocab_size / mesh.tensor * (8 + size.compute)
    return {
        "state": copies * size.param * size.everything / size.shards,
        "gathered": 2 * size.compute * (size.layer_dense + size.layer_experts),
        "saved": size.tokens * saved,
        "working": size.tokens * one + expert_rows,
        "loss": logits + size.table * (size.compute + 4),
    }


def _saved_width(experiment: Experiment, layer: Any, remat: str) -> float:
    """Bytes per token that one layer keeps for its backward pass."""
    model, tensor = experiment.model, experiment.mesh.tensor
    compute = model.dtypes[1].itemsize
    stream = model.d_model * compute
    if remat == "full":
        return float(stream)
    heads = (layer.heads + 2 * layer.kv_heads) * layer.head_dim * compute / tensor
    hidden = (layer.dense_width + layer.shared_width) * compute / tensor
    matrices = layer.ffn_matrices - 1
    scores = 0.0
    if not attention_backend(experiment).startswith(FLASH):
        scores = layer.heads / tensor * experiment.data.seq_len * 4.0
    if remat == "none":
        return 6 * stream + 2 * heads + (matrices + 2) * hidden + scores * 1.5
    return 2 * stream + heads + matrices * hidden + scores


def hbm_traffic(experiment: Experiment) -> float:
    """Bytes that one chip reads and writes in a step, roughly: weights for each pass, activations
    a dozen times, the optimizer's state once."""
    model, size = experiment.model, _sizes(experiment)
    passes = 3 + {"none": 0.0, "full": 1.0}.get(model.remat, 0.5)
    weights = model.num_layers * (size.layer_dense + size.layer_experts) + 2 * size.table
    shape = model.shape()
    activations = sum(2 * _saved_width(experiment, layer, "none") for layer in shape.layers)
    micro = experiment.train.accumulate
    return (
        micro * passes * size.compute * weights
        + micro * passes * size.tokens * activations
        + 10 * size.param * size.everything / size.shards
    )


def traffic(experiment: Experiment, topology: Topology) -> dict[Route, tuple[float, float]]:
    """Collectives of one chip and step, as in `hlo_totals.Totals`."""
    model, mesh, size = experiment.model, experiment.mesh, _sizes(experiment)
    layers, micro = model.num_layers, experiment.train.accumulate
    passes = 2 + (model.remat == "full")
    found: dict[Route, tuple[float, float]] = {}

    def add(kind: str, devices: int, runs: float, num_bytes: float, slow: bool = False) -> None:
        if devices > 1 and runs:
            route = Route(kind, devices, slow)
            was = found.get(route, (0.0, 0.0))
            found[route] = was[0] + runs, was[1] + runs * num_bytes

    both = mesh.fsdp * mesh.expert
    # Weights to everyone before use, gradients back to their owners, layer by layer.
    add("all-gather", both, micro * layers * passes, size.compute * size.layer_dense)
    add("all-gather", mesh.fsdp, micro * layers * passes, size.compute * size.layer_experts)
    add("all-gather", both, micro * 2, size.compute * size.table)
    add("reduce-scatter", both, micro * layers, 4 * size.layer_dense / both)
    add("reduce-scatter", mesh.fsdp, micro * layers, 4 * size.layer_experts / mesh.fsdp)
    add("reduce-scatter", both, micro * 2, 4 * size.table / both)
    own = size.param * size.everything / size.shards
    add("all-reduce", mesh.data, 1, own, slow=topology.slices > 1)
    stream = size.tokens * model.d_model * size.compute
    add("all-reduce", mesh.tensor, micro * layers * 2 * passes, stream)
    moe = sum(one is not None for one in model.plan())
    rows = row_budget(experiment, {"data": mesh.data, "fsdp": mesh.fsdp, "expert": mesh.expert})
    if rows is not None and mesh.expert > 1:
        there = rows.exchanged * model.d_model * size.compute
        kind = experiment.exchange.kind
        if kind == "allgather":
            add("all-gather", mesh.expert, micro * moe * passes, there)
            add("reduce-scatter", mesh.expert, micro * moe * passes, there / mesh.expert)
        else:
            kind = "all-to-all" if kind == "all_to_all" else "ragged-all-to-all"
            add(kind, mesh.expert, micro * moe * 2 * passes, there)
    return found


def _divides(experiment: Experiment, mesh: MeshConfig, accumulate: int) -> bool:
    batch, parts = experiment.train.batch_size, mesh.data * mesh.fsdp * mesh.expert
    return batch % accumulate == 0 and (batch // accumulate) % parts == 0


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
