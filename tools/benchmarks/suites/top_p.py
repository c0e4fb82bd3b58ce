"""Top-p routing at a mean of two experts per token against top-2 of the same layer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from moejax.routing import Router, RouterInputs
from moejax.routing.routers import TopK, TopP
from tools.benchmarks import targets as t
from tools.benchmarks.context import Context
from tools.benchmarks.layers import (
    LayerShape,
    Program,
    moe_apply,
    tokens,
    unavailable,
    value_and_gradients,
)
from tools.benchmarks.rows import Case, Comparison, Workload, unknown

SHAPE = LayerShape(2048, 256, 512, 8, 2)
P = 0.6
STEPS = 24
"""Halvings of an interval: the mean is found to one token's choice."""


def router_scale(x_TD: jax.Array, w_DE: jax.Array) -> tuple[float, float]:
    """Factor on a router's weights at which top-p takes `SHAPE.k` experts on average, and what the
    average then is. Sharper scores need fewer experts, so it can be found by halving."""
    low, high = 0.0, 50.0
    mean = float("nan")
    for _ in range(STEPS):
        middle = (low + high) / 2
        inputs = RouterInputs.of(x_TD.shape[0], num_experts=SHAPE.experts)
        routing, _ = TopP(p=P)(x_TD, inputs, {"w_DE": middle * w_DE}, {})
        mean = float(routing.active_T.mean())
        low, high = (middle, high) if mean > SHAPE.k else (low, middle)
    return middle, mean


def program(router: Router, backend: str, scale: float) -> Program:
    """The layer with its router's weights multiplied."""
    apply, params = moe_apply(SHAPE.d_model, SHAPE.config(router, backend))
    params["router"]["w_DE"] = nnx.Param(scale * params["router"]["w_DE"][...])
    return value_and_gradients(apply, params, *tokens(SHAPE))


def workload(context: Context) -> Workload:
    """Both routers on the same weights; top-p has room for all eight experts (k_max=8)."""
    work = Workload()
    x_TD, _ = tokens(SHAPE)
    _, params = moe_apply(SHAPE.d_model, SHAPE.config(TopK(k=SHAPE.k), "tiles"))
    scale, mean = router_scale(x_TD, jnp.asarray(params["router"]["w_DE"][...]))
    case = Case(t.TOP_P, f"{SHAPE.text.rpartition(' ')[0]} p={P} k_max=8, mean k {mean:.3f}")
    for backend in context.backends:
        if reason := unavailable(backend):
            work.rows.append(unknown(context.suite, case, backend, t.FIXED, reason))
            continue
        names = [
            work.time(program(router, backend, scale).candidate(f"{kind}: {backend}"))
            for kind, router in (("top-p", TopP(p=P, k_max=8)), ("top-2", TopK(k=SHAPE.k)))
        ]
        work.comparisons.append(Comparison(case, backend, t.FIXED, *names, "time"))
    return work
