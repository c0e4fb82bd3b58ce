"""What a compiled program does per run on one device: products, kernels, collectives, memory.

XLA's own `cost_analysis` counts the body of a loop once. Here it counts as often as it runs, which
for a scan over layers is what matters. Of a conditional one branch runs: the cheaper one is taken
(`branch="least"`), because the others are for buffers that overflow, or the dearest (`"most"`).
Text knows no schedule: treat bytes of collectives as +-10 %.
"""

from __future__ import annotations

import dataclasses
import re

from moejax.sharding.hlo import Computation, Instruction, Program, branches, called, trip_count
from moejax.sharding.hlo_costs import (
    collective_kind,
    first_group,
    hbm_bytes,
    kernel_flops,
    product_flops,
    result_bytes,
    slow_transfer,
)


@dataclasses.dataclass(frozen=True)
class Route:
    """A kind of collective among a number of devices; `slow` if it leaves the slice (DCN)."""

    kind: str
    devices: int
    slow: bool


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A hand-written kernel by name and shapes (of its result, then of its operands).

    Attributes:
      flops: of one run by its own estimate; None if it states none.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    flops: float | None


@dataclasses.dataclass
class Totals:
    """Sums over one run of a program on one device.

    Attributes:
      product_flops: of dots and convolutions.
      kernels: runs of each kernel.
      collectives: runs and result bytes by route.
      hbm_bytes: read from and written to main memory, an estimate.
      unknown_loops: origins of loops whose number of runs is data; their bodies count once.
    """

    product_flops: float = 0.0
    kernels: dict[Kernel, float] = dataclasses.field(default_factory=dict)
    collectives: dict[Route, tuple[float, float]] = dataclasses.field(default_factory=dict)
    hbm_bytes: float = 0.0
    unknown_loops: dict[str, None] = dataclasses.field(default_factory=dict)

    def add(self, other: Totals, times: float = 1.0) -> None:
        """Adds another program part that runs `times` times."""
        self.product_flops += times * other.product_flops
        self.hbm_bytes += times * other.hbm_bytes
        for kernel, runs in other.kernels.items():
            self.kernels[kernel] = self.kernels.get(kernel, 0.0) + times * runs
        for route, (runs, num_bytes) in other.collectives.items():
            was = self.collectives.get(route, (0.0, 0.0))
            self.collectives[route] = was[0] + times * runs, was[1] + times * num_bytes
        self.unknown_loops.update(other.unknown_loops)

    @property
    def kernel_flops(self) -> float:
        """FLOPs of the kernels that state theirs."""
        return sum(runs * (kernel.flops or 0.0) for kernel, runs in self.kernels.items())

    @property
    def silent_kernels(self) -> tuple[str, ...]:
        """Names of kernels whose FLOPs are in no sum."""
        return tuple(sorted({kernel.name for kernel in self.kernels if kernel.flops is None}))

    @property
    def weight(self) -> tuple[float, float, float]:
        """What branches are compared by."""
        moved = sum(num_bytes for _, num_bytes in self.collectives.values())
        return self.product_flops + self.kernel_flops, moved, self.hbm_bytes


def totals(
    program: Program, num_devices: int = 1, slices: int = 1, branch: str = "least"
) -> Totals:
    """Sums over one run.

    Args:
      program: optimised HLO for one device of a mesh (`hlo.parse(compiled.as_text())`).
      num_devices: of the mesh.
      slices: equal parts of it, outermost in its order, that a slow network connects.
      branch: "least" or "most": which branch of a conditional counts.
    """
    memo: dict[tuple[str, bool], Totals] = {}
    choose = {"least": min, "most": max}[branch]
    per_slice = max(1, num_devices // slices)

    def of(name: str, fused: bool) -> Totals:
        if (name, fused) not in memo:
            memo[name, fused] = sums(program.computations[name], fused)
        return memo[name, fused]

    def sums(owner: Computation, fused: bool) -> Totals:
        total = Totals()
        for one in owner.instructions:
            total.product_flops += product_flops(owner, one)
            if not fused:
                total.hbm_bytes += hbm_bytes(program, owner, one)
            if one.opcode == "while":
                runs = trip_count(program, owner, one)
                if runs is None:
                    total.unknown_loops[one.op_name or one.name] = None
                body = of(one.attribute(r"body=%?([\w.\-]+)"), fused)
                total.add(body, 1 if runs is None else runs)
            elif one.opcode == "conditional":
                options = [of(name, fused) for name in branches(one)]
                total.add(choose(options, key=lambda option: option.weight))
            elif collective_kind(one) and not _later_step(owner, one):
                group = first_group(one, num_devices)
                if len(group) < 2:  # nothing travels
                    continue
                slow = len({device // per_slice for device in group}) > 1
                route = Route(collective_kind(one), len(group), slow)
                runs_bytes = (1.0, float(result_bytes(owner, one)))
                total.add(Totals(collectives={route: runs_bytes}))
            elif slow_transfer(one):
                route = Route(slow_transfer(one), slices, True)
                sent = owner.operand_shapes(one)[0]
                num_bytes = float(sum(shape.num_bytes for shape in sent))
                total.add(Totals(collectives={route: (1.0, num_bytes)}))
            elif one.opcode == "custom-call" and "tpu_custom_call" in one.attributes:
                total.add(Totals(kernels={_kernel(owner, one): 1.0}))
            for name in called(one):
                total.add(of(name, fused or one.opcode == "fusion"))
        return total

    return of(program.entry.name, False)


def _later_step(owner: Computation, one: Instruction) -> bool:
    """Whether a collective was counted where it started: on a TPU one that overlaps with other work
    appears in the fusion that starts it, in those that carry it on and in the one that ends it."""
    if "chain_id=" not in one.attributes and not owner.name.startswith("async_collective_fusion"):
        return False
    users = owner.users.get(one.name, [])
    return not any("AsyncCollectiveStart" in user.attributes for user in users)


def _kernel(owner: Computation, one: Instruction) -> Kernel:
    name = re.sub(r"[.\d]+$", "", one.name)
    if name in ("custom-call", "closed_call"):  # no name of its own: the function that it is in
        name = (re.findall(r"jit\(([\w.\-]+)\)", one.op_name) or [name])[-1]
    given = [shape for shapes in owner.operand_shapes(one) for shape in shapes]
    dims = tuple(shape.dims for shape in (*one.shapes, *given))
    return Kernel(name, dims, kernel_flops(one))


def score_tensors(program: Program, seq_len: int) -> tuple[str, ...]:
    """Origins of attention scores `[..., S, S]` that exist as a whole, in no particular order.

    Looked for is an `exponential` (the softmax's) whose result has two dimensions of `seq_len`.
    Other arrays can have such dimensions innocently: activations `[B, S, D]` where D equals S.
    Flash kernels exponentiate blocks, and inside the kernel.
    """
    found: dict[str, None] = {}
    for owner in program.computations.values():
        for one in owner.instructions:
            if one.opcode == "exponential" and one.shapes[0].dims.count(seq_len) >= 2:
                dims = ",".join(map(str, one.shapes[0].dims))
                found[f"{one.shapes[0].dtype}[{dims}] {one.op_name}".strip()] = None
    return tuple(found)
