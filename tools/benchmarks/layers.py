"""Forward and backward passes of one layer as compiled programs: ours, and its dense yardstick."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moejax.config.widths import WidthPlan
from moejax.experts import DenseFFN, MoeConfig, MoELayer
from moejax.routing import Router
from tools.benchmarks.timing import Candidate

MATRICES = 3
"""Of a SwiGLU FFN. A product of `[T, D]` with `[D, F]` is 2TDF FLOPs forward, twice that backward;
what a back end computes again does not count."""


@dataclasses.dataclass(frozen=True)
class LayerShape:
    """Sizes of a layer and its batch: T tokens, width D, experts of width F, k of E for a token."""

    tokens: int
    d_model: int
    width: int
    experts: int
    k: int

    @property
    def text(self) -> str:
        return f"T={self.tokens} D={self.d_model} F={self.width} E={self.experts} k={self.k}"

    @property
    def active_width(self) -> int:
        """Hidden units that a token uses; the width of the dense FFN of equal FLOPs."""
        return self.k * self.width

    @property
    def flops(self) -> float:
        """Of the experts, forward and backward."""
        return ffn_flops(self.tokens, self.d_model, self.active_width)

    def config(self, router: Router, backend: str, **more: Any) -> MoeConfig:
        """The layer."""
        widths = WidthPlan(mean=self.width)
        return MoeConfig(self.experts, widths, router, backend=backend, **more)


def ffn_flops(tokens: int, d_model: int, active_width: float, passes: int = 3) -> float:
    """FLOPs of a SwiGLU FFN; a backward pass counts as two forward ones."""
    return 2.0 * MATRICES * passes * tokens * d_model * active_width


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled `(params, x_TD, dy_TD) -> (y_TD, (dparams, dx_TD))` with its arguments.

    Attributes:
      call: the compiled program.
      args: what it is called with.
      temp_bytes: temporary memory that the compiler planned.
      hlo: the program as it was lowered.
    """

    call: Any
    args: tuple[Any, ...]
    temp_bytes: int
    hlo: str

    def run(self) -> Any:
        """One call, waited for."""
        return jax.block_until_ready(self.call(*self.args))

    def candidate(self, name: str) -> Candidate:
        return Candidate(name, self.run)


def value_and_gradients(
    apply: Callable[[Any, jax.Array], jax.Array], params: Any, x_TD: jax.Array, dy_TD: jax.Array
) -> Program:
    """The program of a forward pass and its backward pass for a given gradient of the output."""

    def step(params: Any, x_TD: jax.Array, dy_TD: jax.Array) -> Any:
        y_TD, pull_back = jax.vjp(apply, params, x_TD)
        return y_TD, pull_back(dy_TD)

    return compiled(step, params, x_TD, dy_TD)


def compiled(function: Callable[..., Any], *args: Any) -> Program:
    """Any function of arrays as a program."""
    lowered = jax.jit(function).lower(*args)
    program = lowered.compile()
    memory = program.memory_analysis()
    return Program(program, args, int(memory.temp_size_in_bytes), lowered.as_text())


def tokens(shape: LayerShape, seed: int = 0, dtype: jnp.dtype = jnp.float32) -> Any:
    """`x_TD` and `dy_TD`."""
    return jax.random.normal(jax.random.key(seed), (2, shape.tokens, shape.d_model), dtype)


def moe_apply(d_model: int, config: MoeConfig, dtype: Any = jnp.float32) -> tuple[Any, Any]:
    """`(apply, params)` of an MoE layer, router included; equal seeds give equal weights whatever
    the back end."""
    layer = MoELayer(d_model, config, rngs=nnx.Rngs(0), param_dtype=dtype)
    graph, params, rest = nnx.split(layer, nnx.Param, ...)
    return lambda params, x_TD: nnx.merge(graph, params, rest)(x_TD)[0], params


def moe_program(d_model: int, config: MoeConfig, x_TD: jax.Array, dy_TD: jax.Array) -> Program:
    """Forward and backward of an MoE layer, router included."""
    apply, params = moe_apply(d_model, config, x_TD.dtype)
    return value_and_gradients(apply, params, x_TD, dy_TD)


def dense_apply(d_model: int, width: int, dtype: Any = jnp.float32) -> tuple[Any, Any]:
    """`(apply, params)` of a dense SwiGLU FFN."""
    ffn = DenseFFN(d_model, width, rngs=nnx.Rngs(0), param_dtype=dtype)
    graph, params = nnx.split(ffn)
    return lambda params, x_TD: nnx.merge(graph, params)(x_TD), params


def dense_program(width: int, x_TD: jax.Array, dy_TD: jax.Array) -> Program:
    """Forward and backward of a dense SwiGLU FFN."""
    apply, params = dense_apply(x_TD.shape[-1], width, x_TD.dtype)
    return value_and_gradients(apply, params, x_TD, dy_TD)


def layer_arrays(params: Any) -> dict[str, np.ndarray]:
    """The parameters of an MoE layer as float32: gate, up, down `[E, F, D]`, router `[D, E]`."""
    plain = nnx.to_pure_dict(params)
    named = {name.removesuffix("_NUD"): weight for name, weight in plain["experts"].items()}
    named["router"] = plain["router"]["w_DE"]
    return {name: np.asarray(weight, np.float32) for name, weight in named.items()}


@functools.cache
def unavailable(backend: str) -> str:
    """Why a back end cannot be measured here, or "".

    A back end that quietly leaves the work to another must not be timed under its own name:
    `native` is code of its own, which is seen in what a tiny layer of it is lowered to.
    """
    from moejax.experts import BACKENDS
    from moejax.routing.routers import TopK

    if backend not in BACKENDS:
        return f"there is no back end {backend!r} here, only {', '.join(BACKENDS)}"
    shape = LayerShape(64, 64, 64, 4, 2)
    x_TD, dy_TD = tokens(shape)
    try:
        program = moe_program(64, shape.config(TopK(k=2), backend), x_TD, dy_TD)
        program.run()
    except Exception as error:
        return f"{backend} does not run here: {str(error).splitlines()[0]}"
    if backend == "native":
        plain = moe_program(64, shape.config(TopK(k=2), "tiles"), x_TD, dy_TD)
        if program.hlo.count("custom_call") <= plain.hlo.count("custom_call"):
            return "native is registered but falls back to another back end here"
    return ""
