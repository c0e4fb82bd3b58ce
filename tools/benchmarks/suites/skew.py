"""Unequal loads: what an expert layer costs when its router is far from balance.

The assignment is steered by the tokens: the first E features of a token are its logits, so an
ordinary top-k router chooses exactly the experts that a workload asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moejax.routing.routers import TopK
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
from tools.benchmarks.timing import Candidate

SHAPE = LayerShape(2048, 256, 512, 16, 2)
SEQUENCE = 4
"""Batches of a workload whose loads change from batch to batch."""

Choice = np.ndarray
"""int `[T, K]`, the experts that each token shall choose."""


def balanced(tokens: int, experts: int, k: int) -> Choice:
    """Every expert as often as every other."""
    return np.arange(tokens * k).reshape(tokens, k) % experts


def hot(tokens: int, experts: int, k: int, expert: int = 0) -> Choice:
    """One expert in every token (max/mean load E/k); the others share the rest equally."""
    others = np.delete(np.arange(experts), expert)
    rest = others[np.arange(tokens * (k - 1)).reshape(tokens, k - 1) % (experts - 1)]
    return np.concatenate([np.full((tokens, 1), expert), rest], axis=1)


def ragged(tokens: int, experts: int, k: int) -> Choice:
    """Popularity 1/rank, drawn without replacement (Gumbel top-k)."""
    generator = np.random.default_rng(0)
    score = generator.gumbel(size=(tokens, experts)) - np.log(np.arange(1, experts + 1))
    return np.argsort(-score, axis=1)[:, :k]


def zero_load(tokens: int, experts: int, k: int) -> Choice:
    """A quarter of the experts share all tokens; the others get none."""
    return balanced(tokens, max(k, experts // 4), k)


def rotating(tokens: int, experts: int, k: int) -> list[Choice]:
    """Another hot expert in every batch."""
    return [hot(tokens, experts, k, batch * experts // SEQUENCE) for batch in range(SEQUENCE)]


def burst(tokens: int, experts: int, k: int) -> list[Choice]:
    """Balanced batches, and then a hot one."""
    return [balanced(tokens, experts, k)] * (SEQUENCE - 1) + [hot(tokens, experts, k)]


WORKLOADS = {
    "balanced": balanced,
    "hot expert": hot,
    "ragged": ragged,
    "zero load": zero_load,
    "rotating": rotating,
    "burst": burst,
}


def imbalance(choice: Choice, experts: int) -> float:
    """Largest load over the mean one."""
    count_E = np.bincount(choice.reshape(-1), minlength=experts)
    return float(count_E.max() / count_E.mean())


def steered(x_TD: jax.Array, choice: Choice, experts: int) -> jax.Array:
    """Tokens whose first E features are logits that make `identity_router` choose `choice`."""
    logits_TE = 0.1 * np.asarray(x_TD[:, :experts])
    np.put_along_axis(logits_TE, choice, 4.0 - 0.1 * np.arange(choice.shape[1]), axis=1)
    return x_TD.at[:, :experts].set(logits_TE)


def identity_router(d_model: int, experts: int) -> jax.Array:
    """`[D, E]`: logit e is feature e."""
    return jnp.eye(d_model, experts)


def workload(context: Context) -> Workload:
    """Every workload against the balanced one, batch for batch."""
    work = Workload()
    chosen = ("balanced", "hot expert") if context.targets_only else tuple(WORKLOADS)
    batches = {name: _batches(name) for name in chosen}
    cases = {
        name: Case(
            t.SKEW if name == "hot expert" else f"skew, {name}",
            f"{SHAPE.text}, max/mean load "
            f"{'/'.join(f'{imbalance(choice, SHAPE.experts):.1f}' for choice in batches[name])}",
        )
        for name in chosen
        if name != "balanced"
    }
    x_TD, dy_TD = tokens(SHAPE)
    for backend in context.backends:
        if reason := unavailable(backend):
            work.rows += [
                unknown(context.suite, case, backend, t.BALANCED, reason) for case in cases.values()
            ]
            continue
        apply, params = moe_apply(SHAPE.d_model, SHAPE.config(TopK(k=SHAPE.k), backend))
        params["router"]["w_DE"] = nnx.Param(identity_router(SHAPE.d_model, SHAPE.experts))
        program = value_and_gradients(apply, params, x_TD, dy_TD)
        for name in chosen:
            inputs = [steered(x_TD, choice, SHAPE.experts) for choice in batches[name]]
            work.time(Candidate(f"{name}: {backend}", _all(program, inputs), len(inputs)))
        for name, case in cases.items():
            pair = (f"{name}: {backend}", f"balanced: {backend}")
            work.comparisons.append(Comparison(case, backend, t.BALANCED, *pair, "time"))
    return work


def _batches(name: str) -> list[Choice]:
    made: Any = WORKLOADS[name](SHAPE.tokens, SHAPE.experts, SHAPE.k)
    return made if isinstance(made, list) else [made]


def _all(program: Program, inputs: list[jax.Array]) -> Callable[[], None]:
    params, _, dy_TD = program.args

    def run() -> None:
        for x_TD in inputs:
            jax.block_until_ready(program.call(params, x_TD, dy_TD))

    return run
