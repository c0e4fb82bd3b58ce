"""The experts alone on a given routing: forward, and forward with backward."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from flax import nnx

from moejax.experts import MoELayer, expert_ffn
from moejax.routing import RouterInputs, Routing
from moejax.routing.routers import TopK
from tools.benchmarks import targets as t
from tools.benchmarks.context import Context
from tools.benchmarks.gemm import FLOPS, NAME, gemm
from tools.benchmarks.layers import (
    LayerShape,
    Program,
    compiled,
    dense_apply,
    ffn_flops,
    tokens,
    unavailable,
    value_and_gradients,
)
from tools.benchmarks.rows import Case, Comparison, Workload, unknown

SHAPES = {
    "experts, top-2 of 8": LayerShape(2048, 256, 1024, 8, 2),
    "experts, top-6 of 64": LayerShape(2048, 256, 128, 64, 6),
    # The dense FFN of equal FLOPs has a quarter of the weights, in the second case as many.
    "experts, 256 tokens, 2 of 8": LayerShape(256, 256, 512, 8, 2),
    "experts, 256 tokens, 2 of 2": LayerShape(256, 256, 512, 2, 2),
    "experts, decoding 64": LayerShape(64, 256, 512, 16, 2),
    "experts, decoding 1": LayerShape(1, 256, 512, 16, 2),
}


def experts(
    shape: LayerShape, backend: str, passes: int, x_TD: jax.Array, dy_TD: jax.Array
) -> Program:
    """The experts of a layer for the routing that its router gives `x_TD`."""
    layer = MoELayer(shape.d_model, shape.config(TopK(k=shape.k), backend), rngs=nnx.Rngs(0))
    routing = layer.forward(x_TD, RouterInputs.of(shape.tokens)).kept
    weights = {name: value[...] for name, value in layer.experts.items()}

    def forward(routing: Routing, weights: Any, x_TD: jax.Array) -> jax.Array:
        return expert_ffn(x_TD, routing, weights, layer.spec)[0]

    def both(routing: Routing, weights: Any, x_TD: jax.Array, dy_TD: jax.Array) -> Any:
        def of(weight_TK: jax.Array, weights: Any, x_TD: jax.Array) -> jax.Array:
            given = dataclasses.replace(routing, weight_TK=weight_TK)
            return forward(given, weights, x_TD)

        y_TD, pull_back = jax.vjp(of, routing.weight_TK, weights, x_TD)
        return y_TD, pull_back(dy_TD)

    if passes == 1:
        return compiled(forward, routing, weights, x_TD)
    return compiled(both, routing, weights, x_TD, dy_TD)


def dense(shape: LayerShape, passes: int, x_TD: jax.Array, dy_TD: jax.Array) -> Program:
    """The dense FFN of equal FLOPs."""
    apply, params = dense_apply(shape.d_model, shape.active_width)
    if passes == 1:
        return compiled(apply, params, x_TD)
    return value_and_gradients(apply, params, x_TD, dy_TD)


def workload(context: Context) -> Workload:
    """Every shape, both passes."""
    work = Workload()
    work.time(gemm())
    for label, shape in SHAPES.items():
        x_TD, dy_TD = tokens(shape)
        for passes, what in ((1, "forward"), (3, "forward + backward")):
            case = Case(f"{label}, {what}", shape.text)
            program = dense(shape, passes, x_TD, dy_TD)
            yardstick = work.time(program.candidate(f"{case.name}: dense"))
            flops = ffn_flops(shape.tokens, shape.d_model, shape.active_width, passes)
            for backend in context.backends:
                if reason := unavailable(backend):
                    rows = (
                        unknown(context.suite, case, backend, metric, reason)
                        for metric in (t.DENSE, t.GEMM)
                    )
                    work.rows.extend(rows)
                    continue
                ours = experts(shape, backend, passes, x_TD, dy_TD)
                name = work.time(ours.candidate(f"{case.name}: {backend}"))
                work.comparisons += [
                    Comparison(case, backend, t.DENSE, name, yardstick),
                    Comparison(case, backend, t.GEMM, name, NAME, work=flops / FLOPS),
                ]
    return work
