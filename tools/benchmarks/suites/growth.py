"""How time grows with the number of experts, with experts per token and with tokens."""

from __future__ import annotations

import dataclasses

from moejax.routing.routers import TopK
from tools.benchmarks import targets as t
from tools.benchmarks.context import Context
from tools.benchmarks.layers import LayerShape, Program, moe_program, tokens, unavailable
from tools.benchmarks.rows import Case, Comparison, Workload, unknown

BASE = LayerShape(2048, 256, 512, 8, 2)
EXPERTS = (16, 32, 64)
PER_TOKEN = (1, 4, 8)
TOKENS = (512, 1024, 4096)


def workload(context: Context) -> Workload:
    """Each axis against the base: E=8, k=2, T=2048."""
    work = Workload()
    cases = [(Case(t.GROWTH, _with(experts=64).text), _with(experts=64), t.GROWN)]
    if not context.targets_only:
        cases += [
            (Case(f"E 8 to {experts}, k=2", shape.text), shape, t.GROWN)
            for experts in EXPERTS[:-1]
            for shape in (_with(experts=experts),)
        ]
        cases += [
            (Case(f"k 2 to {k}", shape.text), shape, "time / k=2")
            for k in PER_TOKEN
            for shape in (_with(k=k),)
        ]
        cases += [
            (Case(f"T 2048 to {count}", shape.text), shape, "time / T=2048")
            for count in TOKENS
            for shape in (_with(tokens=count),)
        ]
    for backend in context.backends:
        if reason := unavailable(backend):
            work.rows += [
                unknown(context.suite, case, backend, metric, reason) for case, _, metric in cases
            ]
            continue
        base = work.time(_program(BASE, backend).candidate(f"{BASE.text}: {backend}"))
        for case, shape, metric in cases:
            name = work.time(_program(shape, backend).candidate(f"{shape.text}: {backend}"))
            work.comparisons.append(Comparison(case, backend, metric, name, base, "time"))
    return work


def _with(**changes: int) -> LayerShape:
    return dataclasses.replace(BASE, **changes)


def _program(shape: LayerShape, backend: str) -> Program:
    return moe_program(shape.d_model, shape.config(TopK(k=shape.k), backend), *tokens(shape))
