"""What a set of routed experts is: widths, storage units, activation.

Storage: three arrays `[N, U, D]`, one row of `D` numbers per hidden unit, `U` hidden units per
storage unit, `N` units in all; expert `e` owns the contiguous units `start_e : start_e + units_e`.
A gated FFN is a sum over its hidden units, so a slice of units is itself a valid (narrower)
expert: one layout serves equal and unequal widths, and may be split between devices by units.
With equal experts and `U` equal to their width the arrays are the usual `[E, F, D]`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp

Weights = dict[str, jax.Array]

ACTIVATIONS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "swiglu": lambda gate, up: jax.nn.silu(gate) * up,
}
"""Gated activations `(gate, up) -> hidden`, elementwise."""


@dataclasses.dataclass(frozen=True)
class ExpertsSpec:
    """Static description of the routed experts of one layer (hashable).

    Attributes:
      widths: hidden width of each expert; a multiple of `unit`; 0 is an expert that returns 0.
      unit: `U`, hidden units per storage unit.
      activation: name in `ACTIVATIONS`.
      backend: name in `moejax.experts.ffn.BACKENDS`, or "auto".
      tile: rows that the `tiles` back end works on at a time.
    """

    widths: tuple[int, ...]
    unit: int
    activation: str = "swiglu"
    backend: str = "auto"
    tile: int = 128

    @property
    def num_experts(self) -> int:
        return len(self.widths)

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
    Returns `gate_NUD`, `up_NUD`, `down_NUD`, each `[N, U, D]` of `dtype`.
    """
    shape = (spec.num_units, spec.unit, d_model)
    gate_key, up_key, down_key = jax.random.split(key, 3)
    fan_in_N = [
        width for width, units in zip(spec.widths, spec.units, strict=True) for _ in range(units)
    ]
    down_std_N11 = out_scale * jnp.asarray(fan_in_N, jnp.float32)[:, None, None] ** -0.5
    normal = jax.random.normal
    return {
        "gate_NUD": (normal(gate_key, shape) * d_model**-0.5).astype(dtype),
        "up_NUD": (normal(up_key, shape) * d_model**-0.5).astype(dtype),
        "down_NUD": (normal(down_key, shape) * down_std_N11).astype(dtype),
    }


def expert_rows(weight_NUD: jax.Array, spec: ExpertsSpec, expert: int) -> jax.Array:
    """`[F_e, D]`: the hidden units of one expert."""
    start = spec.starts[expert]
    rows = weight_NUD[start : start + spec.units[expert]]
    return rows.reshape(spec.widths[expert], weight_NUD.shape[-1])
