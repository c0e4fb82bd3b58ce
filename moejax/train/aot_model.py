"""What a train step should cost, from its configuration alone: FLOPs, rows, seconds.

*Model* FLOPs are the convention of `moejax.config.counts` (3x forward, causal half of the scores).
*Executed* FLOPs are what the program has to do for them here: recomputation, scores that are
computed whole, experts whose hidden activations are computed again in the backward pass.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from moejax.config import counts
from moejax.experts.exchange.all_to_all import rows_per_pair
from moejax.experts.exchange.ragged import rows_received
from moejax.sharding.hlo_totals import Route
from moejax.sharding.topology import Topology
from moejax.train.experiment import Experiment

FLASH = ("splash", "cudnn")
"""Attention back ends whose kernels skip the scores above the diagonal (by prefix)."""


@dataclasses.dataclass(frozen=True)
class StepFlops:
    """FLOPs of one optimiser step of the whole machine.

    Attributes:
      model: by the convention of `counts`.
      executed: parts of what is really computed, by name.
    """

    model: float
    executed: dict[str, float]

    @property
    def total(self) -> float:
        """All parts."""
        return sum(self.executed.values())


def step_flops(experiment: Experiment) -> StepFlops:
    """The FLOPs of one optimiser step under balanced routing at the router's nominal activation.

    Executed parts, in forward passes of each matrix:

    | part | forward and backward | `remat=full` adds |
    |---|---|---|
    | attention, router | 3 | 1 |
    | scores, whole | 3 | 1 (also with `dots_no_batch`) |
    | scores in a flash kernel, half | 4.5: its two backward kernels begin anew | 1 |
    | dense and shared FFN | 3 | all matrices but `down` |
    | routed experts, m matrices | (4m - 1) / m | 0: they recompute by themselves |
    | head | 3, with the loss | 0 |

    A loss of scope `global` under accumulation adds a forward pass of everything.
    """
    model = experiment.model
    shape, remat = model.shape(), model.remat
    found = counts.parameters(shape)
    tokens, seq_len = experiment.tokens_per_step, experiment.data.seq_len
    head = shape.vocab_size * shape.d_model
    matrices = found.active_non_embedding + found.router + head
    # Whatever the attention variant: what the convention counts beyond matrices is the scores.
    half_scores = counts.flops_per_token(shape, seq_len) / 3 - 2 * matrices
    again = float(remat == "full")
    flash = attention_backend(experiment).startswith(FLASH)
    scores_again = float(remat in ("full", "dots_no_batch"))
    scores = (4.5 + scores_again) * half_scores if flash else (3 + scores_again) * 2 * half_scores
    ffn = {layer.ffn_matrices for layer in shape.layers if layer.dense_width or layer.shared_width}
    kept = 1 - 1 / max(ffn, default=3)
    moe = [moe for moe in model.plan() if moe is not None]
    m = max((layer.ffn_matrices for layer in shape.layers if layer.widths), default=3)
    experts = (4 * m - 1) / m * found.active_experts
    if any(one.backend == "loop" for one in moe):
        experts = (3 + again * (1 - 1 / m)) * found.experts
    parts = {
        "attention": (3 + again) * 2 * found.attention,
        "scores": scores,
        "ffn": (3 + again * kept) * 2 * (found.dense_ffn + found.shared_experts),
        "experts": 2 * experts,
        "router": (3 + again) * 2 * found.router,
        "head": 3 * 2 * head,
    }
    if experiment.train.accumulate > 1 and _has_global_losses(experiment):
        forward = {
            "attention": 2 * found.attention,
            "scores": (1 if flash else 2) * half_scores,
            "ffn": 2 * (found.dense_ffn + found.shared_experts),
            "experts": 2 * found.active_experts,
            "router": 2 * found.router,
            "head": 2 * head,
        }
        parts = {name: value + forward[name] for name, value in parts.items()}
    return StepFlops(
        model=tokens * counts.flops_per_token(shape, seq_len),
        executed={name: tokens * float(value) for name, value in parts.items()},
    )


def attention_backend(experiment: Experiment) -> str:
    """Name of the attention's back end."""
    return str(getattr(experiment.model.attention, "backend", "einsum"))


def _has_global_losses(experiment: Experiment) -> bool:
    return any(
        bool(moe.losses.coefficients("global")) or moe.router.auxiliary_scope == "global"
        for moe in experiment.model.plan()
        if moe is not None
    )


@dataclasses.dataclass(frozen=True)
class RowBudget:
    """Rows of the expert computation on one device, in one layer and micro-batch.

    Attributes:
      tokens: of the device's own part of the micro-batch.
      slots: assignments that a token can have.
      balanced: rows that a device computes when routing is balanced at nominal activation.
      exchanged: rows of the exchange's receive buffer (0: nothing is exchanged).
      buffer: rows that the back end makes room for without a smaller `max_rows`.
      overflow: what happens to more rows than the exchange's buffer holds.
    """

    tokens: int
    slots: int
    balanced: float
    exchanged: int
    buffer: int
    overflow: str


def row_budget(experiment: Experiment, mesh: Mapping[str, int]) -> RowBudget | None:
    """The rows of the layer that has most of them; None for a dense model.

    Args:
      mesh: devices along each axis.
    """
    shards = mesh["data"] * mesh["fsdp"] * mesh["expert"]
    rows = experiment.train.batch_size // experiment.train.accumulate
    tokens = max(1, rows * experiment.data.seq_len // shards)
    found = []
    for moe in dict.fromkeys(experiment.model.plan()):
        if moe is None:
            continue
        slots, devices = moe.router.slots(moe.num_experts), mesh["expert"]
        kind, factor = experiment.exchange.kind, experiment.exchange.factor
        exchanged = {
            "allgather": tokens * devices,
            "all_to_all": devices * rows_per_pair(tokens, slots, devices, factor),
            "ragged": rows_received(tokens, slots, devices, factor),
        }[kind]
        budget = moe.capacity.row_budget
        own = math.ceil(budget * tokens) if budget else slots * tokens
        whole = devices == 1
        found.append(
            RowBudget(
                tokens=tokens,
                slots=slots,
                balanced=tokens * moe.router.nominal_active(moe.num_experts),
                exchanged=0 if whole else exchanged,
                buffer=own if whole else exchanged * slots,
                overflow="none" if whole or kind == "allgather" else experiment.exchange.overflow,
            )
        )
    return max(found, key=lambda one: one.buffer, default=None)


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of one step if each resource alone were the limit.

    A chip computes while it loads and stores; whether it also computes while it communicates is up
    to the compiler's schedule. So a step takes between `overlapped` and `serial`.
    """

    compute: float
    hbm: float
    ici: float
    dcn: float

    @property
    def limit(self) -> str:
        """The resource that takes longest."""
        parts = dataclasses.asdict(self)
        return max(parts, key=lambda name: parts[name])

    @property
    def overlapped(self) -> float:
        """Seconds per step if all resources work at the same time."""
        return max(dataclasses.astuple(self))

    @property
    def serial(self) -> float:
        """Seconds per step if communication and computation take turns."""
        return max(self.compute, self.hbm) + self.ici + self.dcn


def roofline(
    topology: Topology,
    flops: float,
    hbm_bytes: float,
    collectives: Mapping[Route, tuple[float, float]],
) -> Roofline:
    """Seconds of a step of one chip.

    Args:
      flops: of one chip.
      hbm_bytes: read and written by one chip.
      collectives: runs and result bytes on one chip, by route (`hlo_totals.Totals`).
    """
    chip = topology.figures
    times = [route_seconds(topology, route, moved) for route, (_, moved) in collectives.items()]
    return Roofline(
        compute=flops / chip.peak,
        hbm=hbm_bytes / chip.hbm_bandwidth,
        ici=math.fsum(ici for ici, _ in times),
        dcn=math.fsum(dcn for _, dcn in times),
    )


def route_seconds(topology: Topology, route: Route, result_bytes: float) -> tuple[float, float]:
    """Seconds on the fast and on the slow network.

    Assumed: a collective runs around one dimension of the torus, both ways, at the data sheet's
    bandwidth and without latency; a mesh axis that spans several dimensions is faster, a slice
    that is no full ring slower. Only an all-to-all among more chips than the longest dimension has
    is taken to use all dimensions. Across slices each chip carries its share of the group's bytes.
    """
    chip = topology.figures
    n = max(2, route.devices)
    ring = n if n <= max(topology.shape) else n ** (1 / max(1, chip.torus))
    # Bytes that a chip sends per result byte, in terms of both links of a ring.
    factor = {
        "all-gather": (n - 1) / n,
        "reduce-scatter": n - 1.0,  # its result is 1/n of what travels
        "all-reduce": 2 * (n - 1) / n,
        "all-to-all": ring / 4 if chip.torus else (n - 1) / n,
        "ragged-all-to-all": ring / 4 if chip.torus else (n - 1) / n,
        "collective-permute": 2.0 if chip.torus else 1.0,  # one of the two links
        "collective-broadcast": 1.0,
    }[route.kind]
    if not route.slow:
        return factor * result_bytes / chip.axis_bandwidth, 0.0
    share = min(1.0, topology.slices / n) if topology.slices > 1 else 1.0
    inside = factor * result_bytes / chip.axis_bandwidth if share < 1 else 0.0
    return inside, factor * result_bytes * share / chip.dcn


def kernel_rows(shapes: tuple[tuple[int, ...], ...], flops: float) -> float:
    """Rows of the buffer that a grouped matmul states its FLOPs for; 0 if its shapes do not say.

    Args:
      shapes: of a kernel's result and operands; the one with three sizes is `[groups, in, out]`.
      flops: that the kernel states.
    """
    weights = next((shape for shape in shapes if len(shape) == 3), None)
    return flops / (2 * weights[1] * weights[2]) if weights else 0.0


def balanced_fraction(shapes: tuple[tuple[int, ...], ...], flops: float, balanced: float) -> float:
    """What part of a grouped matmul's stated FLOPs is computed under balanced routing: kernels
    state those of the whole row buffer and skip the rows behind the last group.

    Args:
      shapes, flops: as in `kernel_rows`.
      balanced: rows of balanced routing.
    """
    rows = kernel_rows(shapes, flops)
    return min(1.0, balanced / rows) if rows else 1.0
