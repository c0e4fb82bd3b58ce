"""The MoE layer: router -> `Routing` -> experts (+ shared expert), as an ordinary `nnx.Module`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from moejax.config.compose import check
from moejax.config.knobs import ConfigError
from moejax.experts.activity import activity
from moejax.experts.config import MoeConfig
from moejax.experts.dense import DenseFFN
from moejax.experts.exchange.sharded import Parallel, sharded_expert_ffn
from moejax.experts.ffn import compute, expert_ffn
from moejax.experts.spec import init_weights
from moejax.experts.zero_compute import zero_compute
from moejax.routing.contract import RouterInputs, Routing, State
from moejax.routing.ledger import Ledger, open_ledger
from moejax.routing.stats import RoutingStats, routing_stats

SHARED_GATE_STD = 0.02
"""Initial scale of the shared expert's gate (Qwen2-MoE's initializer_range)."""


EditRouting = Callable[[Routing, RouterInputs, State], Routing]
"""Another routing in place of the router's own, from it, its inputs and the router's state."""


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
      param_dtype: dtype of expert weights; weights of routers and gates are always float32.
      out_scale: factor on the initial scale of the down projections.
      parallel: the mesh that the layer runs on, and how tokens travel; experts are then stored in
        the order of their placement. None: one device, or a mesh that the caller manages.

    Raises:
      ConfigError: the config is impossible (k > E, widths that are no multiple of the unit, ...);
        or the router looks at all experts, and they lie on several devices.
    """

    def __init__(
        self,
        d_model: int,
        config: MoeConfig,
        *,
        rngs: nnx.Rngs,
        param_dtype: jnp.dtype = jnp.float32,
        out_scale: float = 1.0,
        parallel: Parallel | None = None,
    ) -> None:
        check(config, "moe")
        self.config = config
        self.spec = config.spec
        self.parallel = parallel
        if parallel is not None and config.router.sees_activity:
            raise ConfigError(
                f"moe.router: {type(config.router).__name__} looks at what all experts would do, "
                "on one device; nearest valid value: a mesh of one device"
            )
        weights = init_weights(rngs.params(), self.spec, d_model, param_dtype, out_scale)
        if parallel is not None:
            placed = parallel.placement(self.spec)
            weights = {name: placed.place(weight, axis=0) for name, weight in weights.items()}
        router = config.router.init(rngs.params(), d_model, config.num_experts)
        state = config.router.init_state(config.num_experts)
        self.experts = nnx.Dict(jax.tree.map(nnx.Param, weights))
        self.router = nnx.Dict(jax.tree.map(nnx.Param, router))
        self.router_state = nnx.Dict(jax.tree.map(RouterState, state))
        self.shared = (
            DenseFFN(
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
        gates: dict[str, jax.Array] = {}
        if config.zero_compute.constant:
            gates |= config.zero_compute.init(rngs.params(), d_model, param_dtype)
        if config.shared_gate:
            gates["shared_D"] = SHARED_GATE_STD * jax.random.normal(rngs.params(), (d_model,))
        self.gates = nnx.Dict(jax.tree.map(nnx.Param, gates))

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

    def forward(
        self, x_TD: jax.Array, inputs: RouterInputs, edit: EditRouting | None = None
    ) -> MoeOutput:
        """One call on flat tokens, with everything there is to know about it.

        `edit` is called on what the router chose, before capacity; its result counts as chosen.
        """
        config = self.config
        inputs = dataclasses.replace(inputs, num_experts=config.num_experts)
        params = nnx.to_pure_dict(nnx.state(self.router))
        state = nnx.to_pure_dict(nnx.state(self.router_state))
        if config.router.sees_activity:
            weights = {name: value[...].astype(x_TD.dtype) for name, value in self.experts.items()}
            inputs = dataclasses.replace(inputs, activity_TE=activity(x_TD, weights, self.spec))
        routing, carry_TE = config.router(x_TD, inputs, params, state)
        if edit is not None:
            routing = edit(routing, inputs, state)
        kept, ledger = config.capacity.apply(
            routing,
            open_ledger(routing),
            active=config.router.nominal_active(config.num_experts),
            widths=self.spec.widths,
            valid_T=inputs.valid_T,
            train=inputs.train,
        )
        y_TD, kept, ledger = self._compute(x_TD, kept, ledger)
        return MoeOutput(y_TD, routing, kept, ledger, carry_TE)

    def compute(
        self, x_TD: jax.Array, kept: Routing, ledger: Ledger | None = None
    ) -> tuple[jax.Array, Ledger]:
        """Everything behind the router: routed, zero-computation and shared experts.

        Args:
          x_TD: `[T, D]`.
          kept: who goes where.
          ledger: the books so far; opened from `kept` if None.

        Returns:
          `y_TD` in the dtype of `x_TD`, and the ledger.
        """
        y_TD, _, ledger = self._compute(x_TD, kept, ledger)
        return y_TD, ledger

    def _compute(
        self, x_TD: jax.Array, kept: Routing, ledger: Ledger | None
    ) -> tuple[jax.Array, Routing, Ledger]:
        """As `compute`, with what is left of the routing after an exchange that may drop."""
        weights = {name: value[...].astype(x_TD.dtype) for name, value in self.experts.items()}
        if self.parallel is None:
            y_TD, ledger = expert_ffn(x_TD, kept, weights, self.spec, ledger)
        else:
            ledger = open_ledger(kept) if ledger is None else ledger
            y_TD, lost = sharded_expert_ffn(x_TD, kept, weights, self.spec, self.parallel, compute)
            for cause, lost_TK in lost.items():
                ledger = ledger.drop(cause, lost_TK.sum(dtype=jnp.int32))
                kept = kept.without(lost_TK)
        gates = {name: value[...] for name, value in self.gates.items()}
        if self.config.zero_compute.total:
            y_TD = y_TD + zero_compute(x_TD, kept, gates, self.config.zero_compute)
        if self.shared is not None:
            shared_TD = self.shared(x_TD)
            if "shared_D" in gates:
                shared_TD = shared_TD * shared_gate(x_TD, gates["shared_D"])
            y_TD = y_TD + shared_TD
        return y_TD, kept, ledger

    def stats(self, out: MoeOutput, inputs: RouterInputs, num_sequences: int) -> RoutingStats:
        """Statistics of a call for losses and health; per sequence where a loss needs it."""
        return routing_stats(
            out.routing,
            inputs,
            kept=out.kept,
            ledger=out.ledger,
            num_sequences=num_sequences if self.config.losses.per_sequence else None,
            num_groups=self.config.losses.num_groups,
        )


def shared_gate(x_TD: jax.Array, w_D: jax.Array) -> jax.Array:
    """`sigmoid(x . w)` `[T, 1]` in the dtype of `x_TD`, computed in float32 or better (Qwen2-MoE:
    how much of the shared expert a token takes)."""
    acc = jnp.promote_types(x_TD.dtype, jnp.float32)
    logit_T = jnp.matmul(x_TD.astype(acc), w_D.astype(acc), precision=jax.lax.Precision.HIGHEST)
    return jax.nn.sigmoid(logit_T)[:, None].astype(x_TD.dtype)
