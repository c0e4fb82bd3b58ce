"""Experts that compute next to nothing: MoE++ (Jin et al., 2410.07348; methods H.6).

    constant    E(x) = a1 x + a2 v,    [a1, a2] = softmax(W_c x)
    copy        E(x) = x
    zero        E(x) = 0

They come after the FFN experts, in this order (that of the official code). To a router they are
experts like any other; to a back end they are experts of width 0, which add nothing and are in the
books as kept. What they do add is linear in x and v, so one pass over the tokens serves them all:
no sorting, no gathering, no back end.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from moejax.config.knobs import knob
from moejax.routing.contract import Routing


@dataclasses.dataclass(frozen=True)
class ZeroCompute:
    """How many experts of each kind that computes nothing stand behind the FFN experts."""

    constant: int = knob(
        0, low=0, unit="experts", doc="Experts that mix the token with a learned vector (MoE++ 2)."
    )
    copy: int = knob(0, low=0, unit="experts", doc="Experts that return the token (MoE++ 1).")
    zero: int = knob(0, low=0, unit="experts", doc="Experts that return 0 (MoE++ 1).")

    @property
    def total(self) -> int:
        """How many there are."""
        return self.constant + self.copy + self.zero

    def num_parameters(self, d_model: int) -> int:
        """Numbers that `init` makes: `W_c` and `v` of each constant expert."""
        return 3 * d_model * self.constant

    def init(self, key: jax.Array, d_model: int, dtype: jnp.dtype) -> dict[str, jax.Array]:
        """`mix_C2D` (`W_c`, float32 like every gate) and `bias_CD` (`v`, of `dtype`; called
        a bias because, like one, it should not decay). Empty without constant experts.

        As in the official code `v` is standard normal, as loud as a token behind its norm, and
        `W_c` has the standard deviation of torch's linear layers, `(3 D)**-0.5`.
        """
        if not self.constant:
            return {}
        mix_key, bias_key = jax.random.split(key)
        mix_C2D = jax.random.normal(mix_key, (self.constant, 2, d_model)) * (3 * d_model) ** -0.5
        bias_CD = jax.random.normal(bias_key, (self.constant, d_model)).astype(dtype)
        return {"mix_C2D": mix_C2D, "bias_CD": bias_CD}


def zero_compute(
    x_TD: jax.Array, routing: Routing, params: dict[str, jax.Array], config: ZeroCompute
) -> jax.Array:
    """The weighted sum of what the zero-computation experts return.

    Args:
      x_TD: `[T, D]` of the compute dtype.
      routing: over all experts, of which the last `config.total` compute nothing.
      params: as `ZeroCompute.init` makes them.
      config: how many there are of each kind.

    Returns:
      `y_TD` in the dtype of `x_TD`; gates, softmax and sums are float32 or better.
    """
    first = routing.num_experts - config.total
    acc = jnp.promote_types(x_TD.dtype, jnp.float32)
    # Combine weights of the constant and copy experts only; an empty slot is nobody's.
    expert_Z = first + jnp.arange(config.constant + config.copy)
    chosen_TKZ = routing.expert_TK[..., None] == expert_Z
    combine_TZ = jnp.where(chosen_TKZ, routing.weight_TK[..., None], 0).sum(1).astype(acc)
    keep_T = combine_TZ[:, config.constant :].sum(-1)
    if not config.constant:
        return (keep_T[:, None] * x_TD).astype(x_TD.dtype)
    logits_TC2 = jnp.einsum(
        "td,cid->tci",
        x_TD.astype(acc),
        params["mix_C2D"].astype(acc),
        precision=jax.lax.Precision.HIGHEST,
    )
    mix_TC2 = combine_TZ[:, : config.constant, None] * jax.nn.softmax(logits_TC2, axis=-1)
    keep_T = keep_T + mix_TC2[..., 0].sum(-1)
    bias_TD = mix_TC2[..., 1] @ params["bias_CD"].astype(acc)
    return (keep_T[:, None] * x_TD + bias_TD).astype(x_TD.dtype)
