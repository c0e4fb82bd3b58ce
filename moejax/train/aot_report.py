"""The report of a compiled train step: memory, FLOPs, collectives, a roofline; plain values."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
from collections.abc import Mapping
from typing import Any

import moejax
from moejax.config.counts import parameters
from moejax.sharding.hlo_totals import Kernel, Totals
from moejax.sharding.topology import GIB, Topology
from moejax.train.aot_model import (
    Roofline,
    RowBudget,
    attention_backend,
    balanced_fraction,
    kernel_rows,
    roofline,
    route_seconds,
    row_budget,
    step_flops,
)
from moejax.train.experiment import Experiment

FORMAT_VERSION = 1
GROUPED = ("gmm", "tgmm")
"""Kernels whose FLOPs follow the rows that routing fills."""
TOLERANCE = 0.1
"""How far compiled and analytic FLOPs may be apart."""
ATTENTION = ("splash",)
"""Kernels (by prefix) that state no FLOPs and compute attention's scores."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler said, of one device.

    Attributes:
      program: hash of the lowered text.
      seconds: of lowering and of compiling.
      memory: bytes by kind; empty if the program did not fit.
      out_of_memory: the compiler's reason; empty if the program fits.
      needed, available: bytes that the reason names; 0 if it names none.
      least, most: sums of the program, with the cheapest and the dearest branch of conditionals.
      scores: attention scores that exist as a whole.
    """

    program: str
    seconds: dict[str, float]
    memory: dict[str, int]
    out_of_memory: str = ""
    needed: int = 0
    available: int = 0
    least: Totals = dataclasses.field(default_factory=Totals)
    most: Totals = dataclasses.field(default_factory=Totals)
    scores: tuple[str, ...] = ()


def versions(topology: Topology) -> dict[str, str]:
    """Versions of what decides what a program is compiled to."""
    plugins = {"tpu": ("libtpu",), "cuda": ("jax-cuda12-plugin", "jax-cuda13-plugin")}
    found = {}
    for name in ("moejax", "jax", "jaxlib", *plugins[topology.figures.platform]):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = moejax.__version__ if name == "moejax" else "absent"
    return found


def make_report(
    experiment: Experiment,
    topology: Topology,
    mesh: Mapping[str, int],
    compiled: Compiled,
    state: Mapping[str, int],
    quick: bool,
) -> dict[str, Any]:
    """Everything that is printed and saved, as plain JSON values; figures are of one chip unless
    they say otherwise."""
    chips, chip = math.prod(mesh.values()), topology.figures
    analytic, rows = step_flops(experiment), row_budget(experiment, mesh)
    counted = parameters(experiment.model.shape())
    memory = compiled.memory
    used = max(memory["peak"], _held(memory)) if memory else compiled.needed
    available = compiled.available or chip.hbm
    fits = not compiled.out_of_memory and used <= available
    report: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "name": experiment.name,
        "topology": topology.name,
        "chip": topology.chip,
        "chips": chips,
        "mesh": dict(mesh),
        "quick": quick,
        "program": compiled.program,
        "versions": versions(topology),
        "seconds": compiled.seconds,
        "tokens_per_step": experiment.tokens_per_step,
        "seq_len": experiment.data.seq_len,
        "remat": experiment.model.remat,
        "parameters": {"total": counted.total, "active": counted.active},
        "state_bytes": dict(state),
        "memory": dict(memory),
        "hbm": {"used": used, "chip": chip.hbm, "fraction": used / chip.hbm},
        "fits": fits,
        "out_of_memory": compiled.out_of_memory,
        "rows": None if rows is None else dataclasses.asdict(rows),
        "model_flops_per_step": analytic.model,
        "executed_flops": {k: v / chips for k, v in analytic.executed.items()},
        "flops": None,
        "collectives": [],
        "roofline": None,
    }
    problems = [] if fits else [compiled.out_of_memory or "needs more memory than the chip has"]
    notes = _notes(experiment, topology, quick)
    if memory:
        flops = compiled_flops(compiled.least, analytic.executed["scores"] / chips, rows)
        least = compiled.least
        line = roofline(topology, flops["total"], least.hbm_bytes, least.collectives)
        report["flops"] = flops | {"ratio": flops["total"] / (analytic.total / chips)}
        report["hbm_bytes"] = least.hbm_bytes
        report["collectives"] = _collectives(topology, least)
        if rows is not None:
            report["rows"]["compiled"] = max(
                (
                    kernel_rows(kernel.shapes, kernel.flops or 0.0)
                    for kernel in least.kernels
                    if kernel.name in GROUPED
                ),
                default=0.0,
            )
        report["roofline"] = _roofline(line, chip.peak * chips, analytic.model, experiment)
        problems += _problems(compiled, experiment, report["flops"]["ratio"])
        notes += _compiled_notes(compiled)
    report["problems"], report["notes"] = problems, notes
    return report


def _held(memory: Mapping[str, int]) -> int:
    """Bytes of arguments, results that are no donated argument, and temporaries."""
    return memory["argument"] + memory["output"] - memory["alias"] + memory["temp"]


def compiled_flops(least: Totals, scores: float, rows: RowBudget | None) -> dict[str, float]:
    """FLOPs of the compiled program on one chip, under balanced routing.

    Products are counted from their shapes; kernels state theirs, of which grouped matmuls compute
    the rows that are filled; of attention kernels, which state none, the analytic count is taken.
    """
    stated = least.kernel_flops
    balanced = sum(
        runs * (kernel.flops or 0.0) * _fraction(kernel, rows)
        for kernel, runs in least.kernels.items()
    )
    assumed = scores if any(map(_is_attention, least.silent_kernels)) else 0.0
    return {
        "products": least.product_flops,
        "kernels_stated": stated,
        "kernels_balanced": balanced,
        "kernels_assumed": assumed,
        "total": least.product_flops + balanced + assumed,
    }


def _is_attention(name: str) -> bool:
    return name.startswith(ATTENTION)


def _fraction(kernel: Kernel, rows: RowBudget | None) -> float:
    if rows is None or kernel.name not in GROUPED or not kernel.flops:
        return 1.0
    return balanced_fraction(kernel.shapes, kernel.flops, rows.balanced)


def _collectives(topology: Topology, least: Totals) -> list[dict[str, Any]]:
    found = [
        dataclasses.asdict(route)
        | {"runs": runs, "bytes": moved, "seconds": sum(route_seconds(topology, route, moved))}
        for route, (runs, moved) in least.collectives.items()
    ]
    return sorted(found, key=lambda row: -row["seconds"])


def _roofline(
    line: Roofline, peak: float, model_flops: float, experiment: Experiment
) -> dict[str, Any]:
    return dataclasses.asdict(line) | {
        "limit": line.limit,
        "step_seconds": line.overlapped,
        "step_seconds_serial": line.serial,
        "mfu": model_flops / (peak * line.overlapped),
        "mfu_serial": model_flops / (peak * line.serial),
        "tokens_per_second": experiment.tokens_per_step / line.overlapped,
    }


def _problems(compiled: Compiled, experiment: Experiment, ratio: float) -> list[str]:
    found = []
    if compiled.scores:
        found.append(
            f"attention scores [S, S] exist as a whole: {compiled.scores[0]} (back end "
            f"{attention_backend(experiment)!r}); use a flash kernel"
        )
    slow = {moe.backend for moe in experiment.model.plan() if moe} & {"tiles", "loop"}
    if compiled.least.unknown_loops and slow:
        # (Passes of the grouped back end run once under balanced routing, and are counted once.)
        found.append(
            f"{len(compiled.least.unknown_loops)} loops run a number of times that is data, "
            f"counted once: FLOPs are too low (back end {min(slow)!r}; a TPU wants 'grouped'): "
            f"{next(iter(compiled.least.unknown_loops))}"
        )
    elif ratio > 1 + TOLERANCE or (ratio < 1 - TOLERANCE and experiment.finetune is None):
        found.append(
            f"compiled FLOPs are {ratio:.2f} x the analytic: something is computed densely or "
            "twice, or a kernel is in no count"
        )
    return found


def _notes(experiment: Experiment, topology: Topology, quick: bool) -> list[str]:
    notes = []
    if experiment.finetune is not None:
        notes.append(
            "a fine-tuning: what is not trained has no gradient; analytic FLOPs and MFU are those "
            "of training everything"
        )
    if quick:
        notes.append("quick: compiled with little optimisation; collectives and memory differ")
    if topology.figures.platform == "cuda":
        notes.append(
            "GPU: no check of memory by the compiler, no autotuning, no choice of cuBLAS or cuDNN "
            "kernels: temporaries and times are rough"
        )
    return notes


def _compiled_notes(compiled: Compiled) -> list[str]:
    notes = []
    silent = compiled.least.silent_kernels
    assumed = ", ".join(name for name in silent if _is_attention(name))
    if assumed:
        notes.append(f"kernels that state no FLOPs; the analytic count is taken: {assumed}")
    unknown = ", ".join(name for name in silent if not _is_attention(name))
    if unknown:
        notes.append(f"kernels that state no FLOPs and are in no count: {unknown}")
    least, most = (sum(one.weight[:2]) for one in (compiled.least, compiled.most))
    if most > 1.001 * least:
        extra = compiled.most.weight[0] - compiled.least.weight[0]
        notes.append(
            f"conditionals count their cheaper branch; the dearer ones add {extra:.3g} FLOPs "
            "(stated) where buffers overflow"
        )
    return notes


def summary_line(report: Mapping[str, Any]) -> str:
    """One line for logs."""
    used = report["hbm"]["used"] / GIB
    verdict = "fits" if report["fits"] else "does not fit"
    line = f"{report['name']} on {report['topology']}: {verdict}, {used:.2f} GiB per chip"
    if report["roofline"]:
        line += f", predicted MFU {report['roofline']['mfu']:.1%} ({report['roofline']['limit']})"
    return line
