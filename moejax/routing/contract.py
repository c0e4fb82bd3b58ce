"""The contract between choosing and computing: `Router` -> `Routing` -> everything else.

Axis letters: `T` tokens (batch x sequence, flattened), `D` model width, `E` routed experts,
`K` slots per token. Every loss, drop count, FLOP count and analysis is a pure function of a
`Routing`; nothing downstream ever asks which router made it.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp

from moejax.config.knobs import ConfigError
from moejax.config.registry import Registry

if TYPE_CHECKING:
    from moejax.routing.stats import RoutingStats

ROUTERS = Registry("router")

Params = dict[str, Any]
State = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Card:
    """What the table of routers in docs/routers.md says about a router.

    Attributes:
      proposed: who, when, where: "Huang et al. 2024, arXiv 2403.07652".
      rule: which experts a token uses, in a few words.
      weights: what their outputs are combined with.
      losses: fields of `LossesConfig` that go with it; `own`: its `auxiliary`.
    """

    proposed: str = ""
    rule: str = ""
    weights: str = ""
    losses: tuple[str, ...] = ()


def normalised(score_TN: jax.Array) -> jax.Array:
    """Non-negative rows divided by their sum. Rows that sum to less than 1e-18 stay as they are,
    next to zero: the square of a smaller sum, which the gradient divides by, is 0 in float32."""
    total_T1 = score_TN.sum(-1, keepdims=True)
    return score_TN / jnp.where(total_T1 > 1e-18, total_T1, 1.0)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["expert_TK", "weight_TK", "requested_T", "scores_TE", "logits_TE"],
    meta_fields=["num_experts", "max_rows"],
)
@dataclasses.dataclass(frozen=True)
class Routing:
    """Who goes where: the only thing an expert computation, a loss or an analysis may look at.

    Attributes:
      expert_TK: int32 `[T, K]`, the expert of each slot; `num_experts` (the sentinel, one past the
        last expert, so that it sorts behind every real group) where the slot is empty. A token
        holds an expert at most once. Slots are in order of preference: bounds serve every token's
        first slot before any second one.
      weight_TK: float32 `[T, K]`, combine weight of each slot; 0 where empty.
      requested_T: int32 `[T]`, experts that the rule asked for before `k_max` or capacity.
      scores_TE: float32 `[T, E]` non-negative scores over all experts, or None (hash, random).
      logits_TE: float32 `[T, E]` router logits, or None.
      num_experts: static `E`.
      max_rows: static upper bound on the filled slots of a whole batch (top-k: `T*k`; expert
        choice: `E*C`); what a back end that materialises rows must allocate.
    """

    expert_TK: jax.Array
    weight_TK: jax.Array
    requested_T: jax.Array
    scores_TE: jax.Array | None
    logits_TE: jax.Array | None
    num_experts: int
    max_rows: int

    @property
    def filled_TK(self) -> jax.Array:
        """bool `[T, K]`: the slots that hold an expert."""
        return self.expert_TK < self.num_experts

    @property
    def active_T(self) -> jax.Array:
        """int32 `[T]`: experts that each token really uses."""
        return self.filled_TK.sum(-1, dtype=jnp.int32)

    @property
    def count_E(self) -> jax.Array:
        """int32 `[E]`: assignments held by each expert. No gradient flows through a count."""
        ids = self.expert_TK.reshape(-1)
        return jnp.zeros(self.num_experts, jnp.int32).at[ids].add(1, mode="drop")

    @property
    def probs_TE(self) -> jax.Array:
        """float32 `[T, E]`: scores normalised over all experts (rows of zeros stay zero).

        Raises:
          ValueError: the router has no scores.
        """
        if self.scores_TE is None:
            raise ValueError("this routing has no scores (its router is hash-like)")
        return normalised(self.scores_TE)

    def without(self, lost_TK: jax.Array) -> Routing:
        """The routing with some slots emptied."""
        return dataclasses.replace(
            self,
            expert_TK=jnp.where(lost_TK, self.num_experts, self.expert_TK),
            weight_TK=jnp.where(lost_TK, 0, self.weight_TK),
        )

    def combine_TE(self) -> jax.Array:
        """`[T, E]` combine weight of every token for every expert (0 where not routed)."""
        one_hot_TKE = self.expert_TK[..., None] == jnp.arange(self.num_experts)
        return jnp.where(one_hot_TKE, self.weight_TK[..., None], 0).sum(1)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "token_id_T",
        "valid_T",
        "position_T",
        "segment_T",
        "sequence_T",
        "key",
        "carry_TE",
        "activity_TE",
    ],
    meta_fields=["train", "num_experts"],
)
@dataclasses.dataclass(frozen=True)
class RouterInputs:
    """What a router may look at besides the hidden states.

    Attributes:
      valid_T: bool `[T]`; a padding token (False) fills no slot and enters no statistic.
      token_id_T: int32 `[T]` input token ids (hash routing), or None outside a language model.
      position_T: int32 `[T]` position inside the document, or None.
      segment_T: int32 `[T]` number of the document within its row, or None.
      sequence_T: int32 `[T]` row of the batch that the token came from, or None.
      key: PRNG key for stochastic routers, or None (then they must behave deterministically).
      carry_TE: float32 `[T, E]` what the router of the previous MoE layer passed on, or None.
      activity_TE: float32 `[T, E]` how strongly each expert's hidden units would answer
        (`moejax.experts.activity`), or None; an `MoELayer` fills it in for a router that
        `sees_activity`.
      train: static; jitter and noise act only when it is True.
      num_experts: static `E`, for a router whose parameters do not tell it (hash); an `MoELayer`
        fills it in.
    """

    valid_T: jax.Array
    token_id_T: jax.Array | None = None
    position_T: jax.Array | None = None
    segment_T: jax.Array | None = None
    sequence_T: jax.Array | None = None
    key: jax.Array | None = None
    carry_TE: jax.Array | None = None
    activity_TE: jax.Array | None = None
    train: bool = False
    num_experts: int = 0

    @property
    def noisy(self) -> bool:
        """Whether noise acts: while training, with a key to draw it from."""
        return self.train and self.key is not None

    @staticmethod
    def of(num_tokens: int, **fields: Any) -> RouterInputs:
        """Inputs for `num_tokens` real tokens: the default of a layer used outside a model."""
        fields.setdefault("valid_T", jnp.ones(num_tokens, bool))
        return RouterInputs(**fields)


@dataclasses.dataclass(frozen=True)
class Router:
    """Base of every router: a frozen dataclass of knobs that *is* the rule.

    A router owns no arrays: `init` makes its parameters, `init_state` its non-learned state, and
    `__call__` is pure. Register a subclass with `@ROUTERS.register("name")` and it is available
    to every config as `model.moe.router.name`. Whatever it declares below is held against it by
    the battery in tests/support/router_battery.py: a declared False must be seen to be false.
    """

    card: ClassVar[Card] = Card()
    """Its row in docs/routers.md."""
    causal: ClassVar[bool] = True
    """A token's routing depends on no later token of its sequence."""
    token_equivariant: ClassVar[bool] = True
    """Permuting the tokens (with their inputs) permutes the routing and changes nothing else."""
    expert_equivariant: ClassVar[bool] = True
    """Permuting the expert axis of parameters, state and carry permutes the experts and changes
    nothing else (ties and noise aside; where a rule has groups or kinds of experts: whole groups,
    and experts of one group or kind)."""
    has_scores: ClassVar[bool] = True
    has_logits: ClassVar[bool] = True
    carries: ClassVar[bool] = False
    """Passes a `[T, E]` array on to the router of the next MoE layer."""
    sees_activity: ClassVar[bool] = False
    """Reads `RouterInputs.activity_TE`: all experts are computed to choose a few. For analysis."""

    @property
    def auxiliary_scope(self) -> str:
        """Over which tokens `auxiliary` is taken: `micro` (the micro-batch) or `global`."""
        return "micro"

    def slots(self, num_experts: int) -> int:
        """`K`, the static number of slots per token."""
        raise TypeError(f"{type(self).__name__} does not say how many slots it needs")

    def max_rows(self, num_tokens: int, num_experts: int) -> int:
        """Static bound on the filled slots of a batch of `num_tokens` tokens."""
        return num_tokens * self.slots(num_experts)

    def nominal_active(self, num_experts: int) -> float:
        """Experts per token to plan with, before anything was measured."""
        return float(self.slots(num_experts))

    def weight_sum(self) -> tuple[float, float]:
        """Least and greatest sum of the combine weights of a token that uses an expert (scores
        that all underflow to 0 excepted). The default declares nothing."""
        return 0.0, float("inf")

    def check_experts(self, num_experts: int, path: str) -> None:
        """Raises ConfigError when this rule cannot serve `num_experts` experts."""
        slots = self.slots(num_experts)
        if slots > num_experts:
            # By convention the knob that sets the number of slots is called k.
            where = f"{path}.k" if getattr(self, "k", None) == slots else path
            raise ConfigError(
                f"{where}: asks for {slots} experts per token but there are {num_experts}; "
                f"nearest valid value {num_experts}"
            )

    def init(self, key: jax.Array, d_model: int, num_experts: int) -> Params:
        """Parameters, float32 (router numerics are float32 whatever the model's dtype)."""
        del key, d_model, num_experts
        return {}

    def num_parameters(self, d_model: int, num_experts: int) -> int:
        """Numbers that `init` makes: analytic, so that plans need no tracing."""
        del d_model, num_experts
        return 0

    def init_state(self, num_experts: int) -> State:
        """State that is not learned by gradient (aux-free bias, ReMoE's lambda)."""
        del num_experts
        return {}

    def update_state(self, state: State, stats: RoutingStats) -> State:
        """New state after one optimiser step.

        Leaves of `state` and `stats` carry a leading layer axis (all layers that share this
        router's config), so that a rule may average over layers (ReMoE) or not (aux-free bias).
        `stats` are sums over the *whole* batch, all micro-batches.
        """
        del stats
        return state

    def auxiliary(self, stats: RoutingStats, state: State) -> dict[str, jax.Array]:
        """Losses of the router's own, already scaled, by name: for a rule whose coefficient lives
        in its state (ReMoE). Leading layer axes as in `update_state`; values are scalars.

        Ordinary losses belong in `moejax.routing.losses`."""
        del stats, state
        return {}

    def __call__(
        self, x_TD: jax.Array, inputs: RouterInputs, params: Params, state: State
    ) -> tuple[Routing, jax.Array | None]:
        """Routes the tokens.

        Returns:
          The routing, and the carry for the next MoE layer: `inputs.carry_TE` as it came unless
          the router `carries`.
        """
        raise TypeError(f"{type(self).__name__} does not route")

    def routing(
        self,
        inputs: RouterInputs,
        expert_TK: jax.Array,
        weight_TK: jax.Array,
        *,
        requested_T: jax.Array | None = None,
        scores_TE: jax.Array | None = None,
        logits_TE: jax.Array | None = None,
        num_experts: int,
    ) -> Routing:
        """Wraps a selection into a `Routing`, emptying the slots of padding tokens."""
        valid_T1 = inputs.valid_T[:, None]
        filled_TK = valid_T1 & (expert_TK < num_experts)
        if requested_T is None:
            requested_T = filled_TK.sum(-1, dtype=jnp.int32)
        return Routing(
            expert_TK=jnp.where(filled_TK, expert_TK, num_experts).astype(jnp.int32),
            weight_TK=jnp.where(filled_TK, weight_TK, 0.0),
            requested_T=jnp.where(inputs.valid_T, requested_T, 0).astype(jnp.int32),
            scores_TE=scores_TE,
            logits_TE=logits_TE,
            num_experts=num_experts,
            max_rows=self.max_rows(expert_TK.shape[0], num_experts),
        )
