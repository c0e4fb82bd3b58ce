"""One MoE layer, router included, forward and backward: against GEMM, dense FFN and peers."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from moejax.routing.routers import TopK
from tools.benchmarks import one_hot, peers_torch
from tools.benchmarks import targets as t
from tools.benchmarks.context import Context
from tools.benchmarks.copies import mismatch
from tools.benchmarks.gemm import FLOPS, NAME, gemm
from tools.benchmarks.layers import (
    LayerShape,
    Program,
    compiled,
    dense_program,
    layer_arrays,
    moe_program,
    tokens,
    unavailable,
)
from tools.benchmarks.rows import Case, Comparison, Workload, known, unknown
from tools.benchmarks.scratch import scratch_bytes
from tools.benchmarks.timing import Candidate

ONE_HOT = f"speed / {one_hot.NAME}"
TORCH_DENSE = "speed / torch dense FFN of equal FLOPs"


@dataclasses.dataclass(frozen=True)
class Layer:
    """A case: its shape, its router, and the block of transformers that has the same one."""

    name: str
    shape: LayerShape
    router: TopK
    peer: str


LAYERS = (
    Layer(t.TOP_2, LayerShape(2048, 256, 1024, 8, 2), TopK(k=2), "mixtral"),
    Layer(t.TOP_6, LayerShape(2048, 256, 128, 64, 6), TopK(k=6, renormalise=False), "olmoe"),
)
MORE = (
    Layer("top-2 of 8, D=512", LayerShape(2048, 512, 1024, 8, 2), TopK(k=2), "mixtral"),
    Layer("top-2 of 8, few tokens", LayerShape(256, 256, 512, 8, 2), TopK(k=2), "mixtral"),
)


def workload(context: Context) -> Workload:
    """All layers at once."""
    work = Workload()
    work.time(gemm())
    for layer in LAYERS if context.targets_only else LAYERS + MORE:
        _layer(work, context, layer)
    return work


def _layer(work: Workload, context: Context, layer: Layer) -> None:
    suite, shape = context.suite, layer.shape
    case = Case(layer.name, shape.text)
    x_TD, dy_TD = tokens(shape)
    dense = dense_program(shape.active_width, x_TD, dy_TD)
    dense_name = work.time(dense.candidate(f"{layer.name}: dense"))
    work.comparisons.append(
        Comparison(
            dataclasses.replace(case, dropless=None),
            "dense FFN",
            t.GEMM,
            dense_name,
            NAME,
            work=shape.flops / FLOPS,
        )
    )
    reference = moe_program(shape.d_model, shape.config(layer.router, "tiles"), x_TD, dy_TD)
    rivals = _rivals(work, context, layer, case, reference)
    for backend in context.backends:
        if reason := unavailable(backend):
            for metric in (t.DENSE, t.GEMM, t.MEMORY, *rivals):
                work.rows.append(unknown(suite, case, backend, metric, reason))
            continue
        ours = moe_program(shape.d_model, shape.config(layer.router, backend), x_TD, dy_TD)
        name = work.time(ours.candidate(f"{layer.name}: {backend}"))
        speed: dict[str, Any] = {"case": case, "backend": backend, "of": name}
        work.comparisons += [
            Comparison(metric=t.DENSE, to=dense_name, **speed),
            Comparison(metric=t.GEMM, to=NAME, work=shape.flops / FLOPS, **speed),
        ]
        for metric, rival in rivals.items():
            if rival.startswith("!"):
                work.rows.append(unknown(suite, case, backend, metric, rival[1:]))
            else:
                work.comparisons.append(Comparison(metric=metric, to=rival, **speed))
        scratch = scratch_bytes(backend, shape)
        used = ours.temp_bytes + scratch
        work.rows.append(
            known(suite, case, backend, t.MEMORY, used / dense.temp_bytes)
            | {
                "note": f"{used / 2**20:.1f} of {dense.temp_bytes / 2**20:.1f} MiB"
                + (f", {scratch / 2**20:.1f} of them the back end's own scratch" * bool(scratch))
            }
        )


def _rivals(
    work: Workload, context: Context, layer: Layer, case: Case, ours: Program
) -> dict[str, str]:
    """By metric, the candidate to compare with, or "!" and why there is none."""
    shape = layer.shape
    arrays = layer_arrays(ours.args[0])
    _, x_TD, dy_TD = ours.args
    weights = jax.tree.map(jax.numpy.asarray, arrays)

    def dispatch(weights: Any, x_TD: jax.Array, dy_TD: jax.Array) -> Any:
        y_TD, pull_back = jax.vjp(lambda w, x: one_hot.one_hot_moe(w, x, k=shape.k), weights, x_TD)
        return y_TD, pull_back(dy_TD)

    lossy = compiled(dispatch, weights, x_TD, dy_TD)
    found = {ONE_HOT: work.time(lossy.candidate(f"{layer.name}: {one_hot.NAME}"))}
    if not context.peers:
        return found | dict.fromkeys((t.HF_GROUPED, t.HF_EAGER, TORCH_DENSE), "!--no-peers")
    y_TD, (_, dx_TD) = ours.run()
    for metric, implementation in ((t.HF_GROUPED, "grouped_mm"), (t.HF_EAGER, "eager")):
        block = peers_torch.hf_moe(layer.peer, arrays, shape.k, implementation)
        step = peers_torch.step(block, x_TD, dy_TD)
        their_y, their_dx = step()
        wrong = mismatch({"output": (y_TD, their_y), "input gradient": (dx_TD, their_dx)})
        name = f"{layer.name}: HF {layer.peer} {implementation}"
        found[metric] = f"!{wrong}" if wrong else work.time(Candidate(name, step))
    torch_dense = peers_torch.dense_ffn(shape.d_model, shape.active_width)
    name = f"{layer.name}: torch dense"
    step = peers_torch.step(torch_dense, x_TD, dy_TD)
    return found | {TORCH_DENSE: work.time(Candidate(name, step))}
