"""Experts of different widths against a dense FFN of equal *activated* FLOPs."""

from __future__ import annotations

import jax

from moejax.config.widths import WidthPlan
from moejax.experts import MoeConfig
from moejax.routing import RouterInputs
from moejax.routing.routers import TopK
from tools.benchmarks import targets as t
from tools.benchmarks.context import Context
from tools.benchmarks.gemm import FLOPS, NAME, gemm
from tools.benchmarks.layers import (
    LayerShape,
    dense_program,
    ffn_flops,
    moe_apply,
    moe_program,
    tokens,
    unavailable,
)
from tools.benchmarks.rows import Case, Comparison, Workload, unknown

UNIT = 128
WIDTHS = tuple(UNIT * units for units in (1, 1, 2, 2, 3, 4, 6, 8))
SHAPE = LayerShape(2048, 256, 0, len(WIDTHS), 2)


def config(backend: str) -> MoeConfig:
    """Eight experts of 128 to 1024 hidden units."""
    widths = WidthPlan("explicit", explicit=WIDTHS, unit=UNIT)
    return MoeConfig(len(WIDTHS), widths, TopK(k=SHAPE.k), backend=backend)


def active_width(x_TD: jax.Array) -> float:
    """Mean hidden units per token that the router of `config` really uses."""
    _, params = moe_apply(SHAPE.d_model, config("tiles"))
    inputs = RouterInputs.of(x_TD.shape[0], num_experts=len(WIDTHS))
    routing, _ = TopK(k=SHAPE.k)(x_TD, inputs, {"w_DE": params["router"]["w_DE"][...]}, {})
    return float(routing.count_E @ jax.numpy.asarray(WIDTHS)) / x_TD.shape[0]


def workload(context: Context) -> Workload:
    """The layer, and a dense FFN as wide as what its tokens use on average."""
    work = Workload()
    work.time(gemm())
    x_TD, dy_TD = tokens(SHAPE)
    active = active_width(x_TD)
    # Whole vectors of the processor, so that the yardstick is not slow for its odd width.
    width = max(32, round(active / 32) * 32)
    case = Case(
        t.HETERO,
        f"T={SHAPE.tokens} D={SHAPE.d_model} F={WIDTHS[0]}..{WIDTHS[-1]} E={len(WIDTHS)} "
        f"k={SHAPE.k}, active width {active:.0f}",
    )
    flops = ffn_flops(SHAPE.tokens, SHAPE.d_model, active)
    yardstick = work.time(dense_program(width, x_TD, dy_TD).candidate(f"dense F={width}"))
    for backend in context.backends:
        if reason := unavailable(backend):
            work.rows += [
                unknown(context.suite, case, backend, metric, reason)
                for metric in (t.DENSE, t.GEMM)
            ]
            continue
        ours = moe_program(SHAPE.d_model, config(backend), x_TD, dy_TD)
        name = work.time(ours.candidate(f"widths: {backend}"))
        work.comparisons += [
            Comparison(case, backend, t.DENSE, name, yardstick, work=active / width),
            Comparison(case, backend, t.GEMM, name, NAME, work=flops / FLOPS),
        ]
    return work
