"""ReMoE: ReLU routing, fully differentiable (Wang et al. 2024, 2412.14711; methods H.5)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from moejax.config.knobs import ConfigError, knob
from moejax.routing.contract import ROUTERS, Card, State
from moejax.routing.linear import LinearRouter, Selection
from moejax.routing.stats import RoutingStats


@ROUTERS.register("remoe")
@dataclasses.dataclass(frozen=True)
class ReMoE(LinearRouter):
    """`relu(x @ w)` is score and weight at once: an expert is in use where it is above 0.

    How many are in use is steered by an L1 penalty whose coefficient follows the sparsity: times
    `rate` after a step that was too dense, divided by it otherwise (as in the official code;
    eq. 7 as printed would leave it when the target is met exactly). A token may use no expert.
    """

    card = Card(
        proposed="Wang et al. 2024, arXiv 2412.14711",
        rule="every expert with a positive logit; a self-adjusting L1 penalty aims at `k` of them",
        weights="`relu(logits)`, not normalised",
        losses=("own",),
    )
    k: int = knob(
        2, low=1, unit="experts per token", doc="Experts per token to aim at, on average."
    )
    rate: float = knob(
        1.2, low=1.0, low_open=True, doc="Factor of the penalty's coefficient at each step."
    )
    init_lambda: float = knob(
        1e-8, low=0.0, low_open=True, doc="The coefficient that training starts with."
    )
    scope: str = knob(
        "micro", choices=("micro", "global"), doc="Tokens over which the penalty's loads are taken."
    )

    @property
    def auxiliary_scope(self) -> str:
        return self.scope

    def slots(self, num_experts: int) -> int:
        return num_experts

    def nominal_active(self, num_experts: int) -> float:
        return float(self.k)

    def check_experts(self, num_experts: int, path: str) -> None:
        if self.k > num_experts:
            raise ConfigError(
                f"{path}.k: asks for {self.k} experts per token but there are {num_experts}; "
                f"nearest valid value {num_experts}"
            )

    def init_state(self, num_experts: int) -> State:
        """`lambda`, a float32 scalar."""
        return {"lambda": jnp.full((), self.init_lambda, jnp.float32)}

    def score(self, logits_TE: jax.Array) -> jax.Array:
        return jax.nn.relu(logits_TE)

    def select(self, scores_TE: jax.Array, state: State) -> Selection:
        # In order of score, as in every router: a bound serves first choices first.
        num_experts = scores_TE.shape[-1]
        weight_TK, expert_TK = jax.lax.top_k(scores_TE, num_experts)
        return Selection(jnp.where(weight_TK > 0, expert_TK, num_experts), weight_TK)

    def update_state(self, state: State, stats: RoutingStats) -> State:
        num_experts = stats.count_E.shape[-1]
        tokens = jnp.maximum(stats.tokens.sum(dtype=jnp.float32), 1.0)
        sparsity = 1.0 - stats.count_E.sum(dtype=jnp.float32) / tokens / num_experts
        too_dense = sparsity < 1.0 - self.k / num_experts
        new = state["lambda"] * jnp.where(too_dense, self.rate, 1.0 / self.rate)
        return {"lambda": jnp.maximum(new, jnp.finfo(jnp.float32).tiny)}  # 0 would stay 0

    def auxiliary(self, stats: RoutingStats, state: State) -> dict[str, jax.Array]:
        """`lambda * sum_e f_e R_e`, mean over tokens and layers: L1 with balance (eq. 8).

        `f_e = E/(k T) count_e` carries no gradient; `R_e` are the raw scores. With k experts in
        use per token it is lambda times the sum of a token's scores at perfect balance, and E/k
        times as much when all tokens use the same k.
        """
        assert stats.score_E is not None  # ReLU scores are this router's own
        tokens_L1 = jnp.maximum(stats.tokens, 1)[..., None].astype(jnp.float32)
        share_LE = jax.lax.stop_gradient(stats.count_E / tokens_L1)
        f_LE = share_LE * (stats.count_E.shape[-1] / self.k)
        penalty_L = (f_LE * stats.score_E / tokens_L1).sum(-1)
        return {"remoe": (state["lambda"] * penalty_L).mean()}
