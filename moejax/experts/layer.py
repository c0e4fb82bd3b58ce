"""The MoE layer: router -> `Routing` -> experts (+ shared expert), as an ordinary `nnx.Module`."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from moejax.config.compose import check
from moejax.experts.config import MoeConfig
from moejax.experts.dense import GatedFFN
from moejax.experts.ffn import expert_ffn
from moejax.experts.spec import init_weights
from moejax.routing.contract import RouterInputs, Routing
from moejax.routing.ledger import Ledger, open_ledger
from moejax.routing.stats import RoutingStats, routing_stats


class RouterState(nnx.Variable[jax.Array]):
    """Router state that no gradient reaches (aux-free bias, adaptive coefficients)."""


class MoeOutput(NamedTuple):
    """Everything a layer knows about one call.

    Attributes:
      y_TD: output, dtype of the input.
      routing: what the router chose, before capacity.
      kept: what the experts computed.
      ledger: requested, kept and dropped assignments.
      carry_TE: what the router passes on to the router of the next MoE layer, or None.
    """

    y_TD: jax.Array
    routing: Routing
    kept: Routing
    ledger: Ledger
    carry_TE: jax.Array | None


class MoELayer(nnx.Module):
    """A mixture-of-experts FFN for any model: `y, routing, ledger = layer(x)`.

    Args:
      d_model: width of the hidden states.
      config: router, experts, widths, losses and bounds.
      rngs: source of the initial parameters (`rngs.params()`).
      param_dtype: dtype of expert weights; router weights are always float32.
      out_scale: factor on the initial scale of the down projections.

    Raises:
      ConfigError: the config is impossible (k > E, widths that are no multiple of the unit, ...).
    """

    def __init__(
        self,
        d_model: int,
        config: MoeConfig,
        *,
        rngs: nnx.Rngs,
        param_dtype: jnp.dtype = jnp.float32,
        out_scale: float = 1.0,
    ) -> None:
        check(config, "moe")
        self.config = config
        self.spec = config.spec
        weights = init_weights(rngs.params(), self.spec, d_model, param_dtype, out_scale)
        router = config.router.init(rngs.params(), d_model, config.experts)
        state = config.router.init_state(config.experts)
        self.experts = nnx.Dict(jax.tree.map(nnx.Param, weights))
        self.router = nnx.Dict(jax.tree.map(nnx.Param, router))
        self.router_state = nnx.Dict(jax.tree.map(RouterState, state))
        self.shared = (
            GatedFFN(
                d_model,
                config.shared_width,
                rngs=rngs,
                activation=config.activation,
                param_dtype=param_dtype,
                out_scale=out_scale,
            )
            if config.shared_width
            else None
        )

    def __call__(
        self, x: jax.Array, inputs: RouterInputs | None = None
    ) -> tuple[jax.Array, Routing, Ledger]:
        """Routes and computes.

        Args:
          x: `[..., D]`; leading axes are flattened into tokens.
          inputs: what the router may look at besides `x`; default: every token is real.

        Returns:
          `y` like `x`, the routing that was computed (after capacity), and the ledger.
        """
        x_TD = x.reshape(-1, x.shape[-1])
        out = self.forward(x_TD, inputs or RouterInputs.of(x_TD.shape[0]))
        return out.y_TD.reshape(x.shape), out.kept, out.ledger

    def forward(self, x_TD: jax.Array, inputs: RouterInputs) -> MoeOutput:
        """One call on flat tokens, with everything there is to know about it."""
        config = self.config
        inputs = dataclasses.replace(inputs, num_experts=config.experts)
        params = nnx.to_pure_dict(nnx.state(self.router))
        state = nnx.to_pure_dict(nnx.state(self.router_state))
        routing, carry_TE = config.router(x_TD, inputs, params, state)
        active = config.router.nominal_active(config.experts)
        kept, ledger = config.capacity.apply(routing, open_ledger(routing), active=active)
        weights = {name: value[...].astype(x_TD.dtype) for name, value in self.experts.items()}
        y_TD, ledger = expert_ffn(x_TD, kept, weights, self.spec, ledger)
        if self.shared is not None:
            y_TD = y_TD + self.shared(x_TD)
        return MoeOutput(y_TD, routing, kept, ledger, carry_TE)

    def stats(self, out: MoeOutput, inputs: RouterInputs, num_sequences: int) -> RoutingStats:
        """Statistics of a call for losses and health; per sequence where a loss needs it."""
        return routing_stats(
            out.routing,
            inputs,
            kept=out.kept,
            ledger=out.ledger,
            num_sequences=num_sequences if self.config.losses.per_sequence else None,
        )
