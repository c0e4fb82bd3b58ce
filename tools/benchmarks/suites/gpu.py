"""The MoE layer on one GPU in bfloat16: grouped matmuls against GEMM, a dense FFN and torch.

Run it on a machine with a GPU (`pip install "moejax[gpu,bench]"` and a CUDA build of torch). What
can be proven without one, that every program of it lowers for CUDA, is a test.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from moejax.config import ConfigError
from moejax.routing.routers import TopK
from tools.benchmarks import peers_torch
from tools.benchmarks import targets as t
from tools.benchmarks.context import Context
from tools.benchmarks.copies import mismatch
from tools.benchmarks.gemm import gemm, size_of
from tools.benchmarks.layers import (
    LayerShape,
    Program,
    dense_apply,
    layer_arrays,
    moe_apply,
    tokens,
    value_and_gradients,
)
from tools.benchmarks.rows import Case, Comparison, Workload, unknown
from tools.benchmarks.timing import Basis, Candidate

DTYPE = jnp.bfloat16
SHAPES = tuple(
    LayerShape(count, 2048, width, experts, k)
    for count in (16_384, 65_536)
    for experts, k, width in ((8, 2, 8192), (8, 2, 4096), (64, 6, 1408))
)
MATMULS = ("ragged_dot", "tokamax")
TORCH_GROUPED = "speed / torch grouped_mm"
BASIS: Basis = "wall"
"""The GPU's work is nobody's CPU time."""
TOLERANCE, AGREEING = 2.0**-6, 0.75
"""Largest difference from torch over the largest value, in bfloat16, and the share of the tokens
that it holds for: logits are rounded, so that of two experts nearly tied either may be chosen."""


def check_gpu() -> None:
    """Raises ConfigError where there is none."""
    if jax.default_backend() != "gpu":
        raise ConfigError(f"--suite=gpu: no GPU, JAX runs on {jax.default_backend()}")


def ours(shape: LayerShape, matmul: str) -> tuple[Any, Any]:
    """`(apply, params)` of the layer by the back end `grouped`."""
    config = shape.config(TopK(k=shape.k), "grouped", grouped_matmul=matmul)
    return moe_apply(shape.d_model, config, DTYPE)


def workload(context: Context) -> Workload:
    """All shapes are timed together: what they hold between calls is their weights and tokens."""
    check_gpu()
    work = Workload()
    for shape in SHAPES[:2] if context.targets_only else SHAPES:
        _layer(work, context, shape)
    return work


def _layer(work: Workload, context: Context, shape: LayerShape) -> None:
    case = Case(
        f"gpu, top-{shape.k} of {shape.experts}, T={shape.tokens} F={shape.width}",
        f"{shape.text} bf16",
    )
    x_TD, dy_TD = tokens(shape, dtype=DTYPE)
    size = size_of(shape.flops)
    product = work.time(gemm(size, DTYPE, f"{shape.text}: gemm {size}^3"))
    share = shape.flops / (2.0 * size**3)
    dense = value_and_gradients(*dense_apply(shape.d_model, shape.active_width, DTYPE), x_TD, dy_TD)
    yardstick = work.time(dense.candidate(f"{shape.text}: dense"))
    unrouted = dataclasses.replace(case, dropless=None)
    work.comparisons.append(
        Comparison(unrouted, "dense FFN", t.GEMM, yardstick, product, work=share, basis=BASIS)
    )
    programs = {matmul: _program(shape, matmul, x_TD, dy_TD) for matmul in MATMULS}
    reference = next((found for found in programs.values() if isinstance(found, Program)), None)
    rival = "" if reference is None else _torch(work, context, shape, reference)
    for matmul, program in programs.items():
        if isinstance(program, str):
            work.rows += [
                unknown(context.suite, case, matmul, metric, program, basis=BASIS)
                for metric in (t.DENSE, t.GEMM, TORCH_GROUPED)
            ]
            continue
        name = work.time(program.candidate(f"{shape.text}: {matmul}"))
        speed: dict[str, Any] = {"case": case, "backend": matmul, "of": name, "basis": BASIS}
        work.comparisons += [
            Comparison(metric=t.DENSE, to=yardstick, **speed),
            Comparison(metric=t.GEMM, to=product, work=share, **speed),
        ]
        if rival.startswith("!"):
            reason = rival[1:]
            work.rows.append(
                unknown(context.suite, case, matmul, TORCH_GROUPED, reason, basis=BASIS)
            )
        else:
            work.comparisons.append(Comparison(metric=TORCH_GROUPED, to=rival, **speed))


def _program(shape: LayerShape, matmul: str, x_TD: jax.Array, dy_TD: jax.Array) -> Program | str:
    """The layer's program, or why there is none."""
    try:
        return value_and_gradients(*ours(shape, matmul), x_TD, dy_TD)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"


def _torch(work: Workload, context: Context, shape: LayerShape, reference: Program) -> str:
    """Mixtral's block of transformers by torch's grouped_mm, on the same GPU, weights and tokens:
    the candidate to compare with, or "!" and why there is none."""
    if not context.peers:
        return "!--no-peers"
    if reason := peers_torch.without_gpu():
        return f"!{reason}"
    params, x_TD, dy_TD = reference.args
    arrays = layer_arrays(params)
    block = peers_torch.hf_moe(
        "mixtral", arrays, shape.k, "grouped_mm", device="cuda", dtype="bfloat16"
    )
    step = peers_torch.step(block, x_TD, dy_TD)
    y_TD, (_, dx_TD) = reference.run()
    their_y, their_dx = step()
    pairs = {"output": (y_TD, their_y), "input gradient": (dx_TD, their_dx)}
    if wrong := mismatch(pairs, TOLERANCE, AGREEING):
        return f"!{wrong}"
    return work.time(Candidate(f"{shape.text}: torch grouped_mm", step))
