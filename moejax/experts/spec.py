"""What a set of routed experts is: widths, storage units, activation.

Storage: arrays `[N, U, D]`, one row of `D` numbers per hidden unit, `U` hidden units per storage
unit, `N` units in all; expert `e` owns the contiguous units `start_e : start_e + units_e`. A gated
FFN has three arrays (gate, up, down), an ungated one two (up, down). Either is a sum over its
hidden units, so a slice of units is itself a valid (narrower) expert: one layout serves equal and
unequal widths, and may be split between devices by units. With equal experts and `U` equal to their
width the arrays are the usual `[E, F, D]`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp

Weights = dict[str, jax.Array]

GATED: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "swiglu": lambda gate, up: jax.nn.silu(gate) * up,
    "geglu": lambda gate, up: jax.nn.gelu(gate) * up,
}
"""Gated activations `(gate, up) -> hidden`, elementwise (Shazeer 2020; geglu: T5 1.1, ST-MoE)."""

UNGATED: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": jax.nn.gelu,
    "relu": jax.nn.relu,
    "relu2": lambda up: jnp.square(jax.nn.relu(up)),
}
"""Activations `up -> hidden` of FFNs without a gate (relu: GShard, Switch; relu2: Primer).

`gelu` is the tanh approximation, here as in `geglu`: that of T5, GPT-2 and flax."""

ACTIVATIONS: dict[str, Callable[..., jax.Array]] = {**GATED, **UNGATED}
"""All of them; each takes one array per projection into the hidden units."""


def projections(activation: str) -> tuple[str, ...]:
    """The weight matrices of an FFN: those into the hidden units in order, and "down", the last."""
    return ("gate", "up", "down") if activation in GATED else ("up", "down")


ROOM = 1.25
"""Rows that `grouped` and `native` hold over those that are planned."""


@dataclasses.dataclass(frozen=True)
class ExpertsSpec:
    """Static description of the routed experts of one layer (hashable).

    Attributes:
      widths: hidden width of each expert; a multiple of `unit`; 0 is an expert that returns 0.
      unit: `U`, hidden units per storage unit.
      activation: name in `ACTIVATIONS`.
      backend: name in `moejax.experts.ffn.BACKENDS`, or "auto".
      tile: rows that the `tiles` back end works on at a time, at most.
      grouped_matmul: name in `moejax.experts.backends.grouped_matmul.MATMULS`, or "auto": what the
        `grouped` back end multiplies with.
      rows_per_token: rows that `grouped` holds at a time, per token of the batch; what is more
        takes further passes. `native` keeps as many for its backward pass. 0: as many as there can
        be.
    """

    widths: tuple[int, ...]
    unit: int
    activation: str = "swiglu"
    backend: str = "auto"
    tile: int = 128
    grouped_matmul: str = "auto"
    rows_per_token: float = 0.0

    @property
    def num_experts(self) -> int:
        return len(self.widths)

    @property
    def weight_names(self) -> tuple[str, ...]:
        """The stored arrays, `down_NUD` last."""
        return tuple(f"{name}_NUD" for name in projections(self.activation))

    @property
    def units(self) -> tuple[int, ...]:
        """Storage units of each expert."""
        return tuple(width // self.unit for width in self.widths)

    @property
    def starts(self) -> tuple[int, ...]:
        """First storage unit of each expert."""
        return tuple(itertools.accumulate((0, *self.units)))[:-1]

    @property
    def num_units(self) -> int:
        """`N`, storage units of the layer."""
        return sum(self.units)

    @property
    def widest_first(self) -> tuple[int, ...]:
        """Experts by descending width, those of one width in their own order."""
        return tuple(sorted(range(self.num_experts), key=lambda expert: -self.widths[expert]))

    def by_width(self) -> dict[int, tuple[int, ...]]:
        """Experts of each distinct positive width, widest first."""
        groups: dict[int, list[int]] = {}
        for expert, width in enumerate(self.widths):
            if width:
                groups.setdefault(width, []).append(expert)
        return {width: tuple(groups[width]) for width in sorted(groups, reverse=True)}


def init_weights(
    key: jax.Array, spec: ExpertsSpec, d_model: int, dtype: jnp.dtype, out_scale: float = 1.0
) -> Weights:
    """Normal initialisation with each expert's *own* fan-in.

    Gate and up projections have standard deviation `D**-0.5`; the down projection of an expert of
    width F has `out_scale * F**-0.5`, so that wide and narrow experts start equally loud.
    Returns the arrays of `spec.weight_names`, each `[N, U, D]` of `dtype`.
    """
    shape = (spec.num_units, spec.unit, d_model)
    gate_key, up_key, down_key = jax.random.split(key, 3)
    keys = {"gate_NUD": gate_key, "up_NUD": up_key, "down_NUD": down_key}
    fan_in_N = [
        width for width, units in zip(spec.widths, spec.units, strict=True) for _ in range(units)
    ]
    down_std_N11 = out_scale * jnp.asarray(fan_in_N, jnp.float32)[:, None, None] ** -0.5
    weights = {}
    for name in spec.weight_names:
        std = down_std_N11 if name == "down_NUD" else d_model**-0.5
        weights[name] = (jax.random.normal(keys[name], shape) * std).astype(dtype)
    return weights


def expert_rows(weight_NUD: jax.Array, spec: ExpertsSpec, expert: int) -> jax.Array:
    """`[F_e, D]`: the hidden units of one expert."""
    start = spec.starts[expert]
    rows = weight_NUD[start : start + spec.units[expert]]
    return rows.reshape(spec.widths[expert], weight_NUD.shape[-1])
