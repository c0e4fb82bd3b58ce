"""The MoE layer on one GPU in bfloat16: grouped matmuls against torch and a dense FFN.

Run it on a machine with a GPU (`pip install "moejax[gpu,bench]"` and a CUDA build of torch). What
can be proven without one, that every program of it lowers for CUDA, is a test.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from moejax.config import ConfigError
from moejax.routing.routers import TopK
from tools.benchmarks import targets as t
from tools.benchmarks.context import Context
from tools.benchmarks.layers import (
    LayerShape,
    dense_apply,
    layer_arrays,
    moe_apply,
    tokens,
    value_and_gradients,
)
from tools.benchmarks.rows import Case, Comparison, Workload, unknown
from tools.benchmarks.timing import Candidate

DTYPE = jnp.bfloat16
SHAPES = tuple(
    LayerShape(count, 2048, width, experts, k)
    for count in (16_384, 65_536)
    for experts, k, width in ((8, 2, 8192), (8, 2, 4096), (64, 6, 1408))
)
MATMULS = ("ragged_dot", "tokamax")
TORCH_GROUPED = "speed / torch grouped_mm"


def check_gpu() -> None:
    """Raises ConfigError where there is none."""
    if jax.default_backend() != "gpu":
        raise ConfigError(f"--suite=gpu: no GPU, JAX runs on {jax.default_backend()}")


def ours(shape: LayerShape, matmul: str) -> tuple[Any, Any]:
    """`(apply, params)` of the layer by the back end `grouped`."""
    config = shape.config(TopK(k=shape.k), "grouped", grouped_matmul=matmul)
    return moe_apply(shape.d_model, config, DTYPE)


def workload(context: Context) -> Workload:
    """Shapes one after the other would be more than fits; their arguments are shared per shape."""
    check_gpu()
    work = Workload()
    for shape in SHAPES[:2] if context.targets_only else SHAPES:
        case = Case(f"gpu, top-{shape.k} of {shape.experts}", f"{shape.text} bf16")
        x_TD, dy_TD = tokens(shape, dtype=DTYPE)
        dense = value_and_gradients(
            *dense_apply(shape.d_model, shape.active_width, DTYPE), x_TD, dy_TD
        )
        yardstick = work.time(dense.candidate(f"{shape.text}: dense"))
        rivals = dict(_torch(work, context, shape, x_TD, dy_TD))
        for matmul in MATMULS:
            try:
                program = value_and_gradients(*ours(shape, matmul), x_TD, dy_TD)
            except Exception as error:
                reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
                work.rows.append(unknown(context.suite, case, matmul, t.DENSE, reason))
                continue
            name = work.time(program.candidate(f"{shape.text}: {matmul}"))
            work.comparisons.append(Comparison(case, matmul, t.DENSE, name, yardstick))
            work.comparisons += [
                Comparison(case, matmul, metric, name, rival) for metric, rival in rivals.items()
            ]
    return work


def _torch(
    work: Workload, context: Context, shape: LayerShape, x_TD: jax.Array, dy_TD: jax.Array
) -> Iterator[tuple[str, str]]:
    """Mixtral's block of transformers by torch's grouped_mm, on the same GPU."""
    if not context.peers:
        return
    from tools.benchmarks.peers_torch import hf_moe, prepare

    torch = prepare()
    if not torch.cuda.is_available():
        return
    _, params = ours(shape, "ragged_dot")
    arrays = layer_arrays(params)
    block = hf_moe("mixtral", arrays, shape.k, "grouped_mm").to("cuda", torch.bfloat16)
    x, dy = (
        torch.randn(1, shape.tokens, shape.d_model, device="cuda", dtype=torch.bfloat16)
        for _ in range(2)
    )
    x.requires_grad_()

    def run() -> None:
        x.grad = None
        block.zero_grad(set_to_none=True)
        block(x).backward(dy)
        torch.cuda.synchronize()

    yield TORCH_GROUPED, work.time(Candidate(f"{shape.text}: torch grouped_mm", run))
