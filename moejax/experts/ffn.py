"""The compute seam: `expert_ffn(x, routing, weights, spec) -> (y, ledger)`, whatever the back end.

A back end computes every filled slot of the routing and drops nothing of its own accord.
"""

from __future__ import annotations

import jax

from moejax.experts.backends.auto import auto
from moejax.experts.backends.grouped import grouped
from moejax.experts.backends.loop import loop
from moejax.experts.backends.native import native
from moejax.experts.backends.tiles import tiles
from moejax.experts.plan import Backend
from moejax.experts.spec import ExpertsSpec, Weights
from moejax.routing.contract import Routing
from moejax.routing.ledger import Ledger, open_ledger

BACKENDS: dict[str, Backend] = {
    "loop": loop,
    "tiles": tiles,
    "native": native,
    "grouped": grouped,
}
"""The back ends by name; "auto" is the one that suits the platform a program is lowered for."""


def expert_ffn(
    x_TD: jax.Array,
    routing: Routing,
    weights: Weights,
    spec: ExpertsSpec,
    ledger: Ledger | None = None,
) -> tuple[jax.Array, Ledger]:
    """Sends every token through its experts and adds the weighted results.

    Args:
      x_TD: `[T, D]` of the compute dtype.
      routing: who goes where (bounded by capacity already, if at all).
      weights: the arrays of `spec.weight_names`, `[N, U, D]`, of the compute dtype.
      spec: what the experts are; an expert of width 0 adds nothing and is in the books as kept.
      ledger: the books so far; opened from `routing` if None.

    Returns:
      `y_TD` in the dtype of `x_TD`, and the ledger with what was dropped on the way.
    """
    y_TD = compute(x_TD, routing, weights, spec)
    return y_TD, open_ledger(routing) if ledger is None else ledger


def compute(x_TD: jax.Array, routing: Routing, weights: Weights, spec: ExpertsSpec) -> jax.Array:
    """`y_TD` by the spec's back end."""
    backend = auto if spec.backend == "auto" else BACKENDS[spec.backend]
    return backend(x_TD, routing, weights, spec)
