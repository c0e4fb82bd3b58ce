"""The selection rules of the routers once more, with `k` and `p` as arrays and experts closed.

A router's own `select` has its knobs as Python numbers, so that each value would be a program of
its own. At the trained values, with every expert open, these choose and weigh as the routers do,
which the tests hold against them. A router of your own has no such twin and is refused where one
is needed: the table goes by exact type.
"""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from moejax.routing.contract import Router, State
from moejax.routing.groups import limit_to_groups
from moejax.routing.linear import Selection, renormalised
from moejax.routing.routers import (
    MoEfication,
    MoEPlusPlus,
    NoisyTopK,
    Oracle,
    ReMoE,
    SigmoidBias,
    TopK,
    TopP,
)


class Values(Protocol):
    """Scalars that may be traced."""

    @property
    def k(self) -> jax.Array:
        """int32."""

    @property
    def p(self) -> jax.Array:
        """float32."""

    @property
    def extra(self) -> jax.Array:
        """int32, experts beyond those that the rule asks for."""


class Rule(Protocol):
    """`(router, scores, open experts, router state, values, slots) -> Selection` of `[T, slots]`.

    Scores of closed experts are 0. None of them is chosen, however few are left.
    """

    def __call__(
        self,
        router: Any,
        scores_TE: jax.Array,
        open_TE: jax.Array,
        state: State,
        values: Values,
        slots: int,
    ) -> Selection: ...


def _top_k(
    router: Any,
    scores_TE: jax.Array,
    open_TE: jax.Array,
    state: State,
    values: Values,
    slots: int,
) -> Selection:
    del state
    limited_TE = limit_to_groups(
        _ranked(scores_TE, open_TE), router.groups, router.groups_kept, best=1
    )
    chosen = _best(limited_TE, scores_TE, values.k + values.extra, slots)
    return _weighted(chosen, router.renormalise, router.scale, scores_TE.shape[-1])


def _sigmoid_bias(
    router: Any,
    scores_TE: jax.Array,
    open_TE: jax.Array,
    state: State,
    values: Values,
    slots: int,
) -> Selection:
    ranked_TE = _ranked(scores_TE + state["bias_E"], open_TE)
    limited_TE = limit_to_groups(ranked_TE, router.groups, router.groups_kept, best=2)
    chosen = _best(limited_TE, scores_TE, values.k + values.extra, slots)
    return _weighted(chosen, router.renormalise, router.scale, scores_TE.shape[-1])


def _moe_plus_plus(
    router: Any,
    scores_TE: jax.Array,
    open_TE: jax.Array,
    state: State,
    values: Values,
    slots: int,
) -> Selection:
    del state
    ranked_TE = _ranked(scores_TE, open_TE)
    chosen = _best(ranked_TE, scores_TE, values.k + values.extra, slots)
    counted = scores_TE.shape[-1] - router.zero_experts
    return _weighted(chosen, router.renormalise, 1.0, counted)


def _top_p(
    router: Any,
    scores_TE: jax.Array,
    open_TE: jax.Array,
    state: State,
    values: Values,
    slots: int,
) -> Selection:
    del state
    num_experts = scores_TE.shape[-1]
    # Closed experts come last: they are ranked below every open one, even one of probability 0.
    _, order_TE = jax.lax.top_k(_ranked(scores_TE, open_TE), num_experts)
    mass_TE = jnp.cumsum(jnp.take_along_axis(scores_TE, order_TE, axis=-1), axis=-1)
    crossed_TE = mass_TE >= values.p if router.inclusive else mass_TE > values.p
    crossed_TE = crossed_TE & (values.p < 1.0)
    crossing_T = jnp.where(crossed_TE.any(-1), crossed_TE.argmax(-1), num_experts - 1)
    asked_T = jnp.maximum(crossing_T.astype(jnp.int32) + 1, router.k_min)
    there_T = open_TE.sum(-1, dtype=jnp.int32)
    most = router.k_max or num_experts
    count_T1 = (jnp.minimum(asked_T, most) + values.extra)[:, None]
    chosen = _best(_ranked(scores_TE, open_TE), scores_TE, count_T1, slots)
    selection = _weighted(chosen, router.renormalise, 1.0, num_experts)
    return selection._replace(requested_T=jnp.minimum(asked_T + values.extra, there_T))


def _remoe(
    router: Any,
    scores_TE: jax.Array,
    open_TE: jax.Array,
    state: State,
    values: Values,
    slots: int,
) -> Selection:
    del router, state, values
    # A score of 0 is not in use, and closed experts have it.
    num_experts = scores_TE.shape[-1]
    ranked_TE = jnp.where(open_TE & (scores_TE > 0), scores_TE, -jnp.inf)
    return _best(ranked_TE, scores_TE, jnp.int32(num_experts), slots)


def _moefication(
    router: Any,
    scores_TE: jax.Array,
    open_TE: jax.Array,
    state: State,
    values: Values,
    slots: int,
) -> Selection:
    del router, state
    chosen = _best(_ranked(scores_TE, open_TE), scores_TE, values.k + values.extra, slots)
    filled_TK = chosen.expert_TK < scores_TE.shape[-1]
    return chosen._replace(weight_TK=filled_TK.astype(scores_TE.dtype))


RULES: dict[type[Router], Rule] = {
    TopK: _top_k,
    NoisyTopK: _top_k,  # there is no noise outside training
    SigmoidBias: _sigmoid_bias,
    MoEPlusPlus: _moe_plus_plus,
    TopP: _top_p,
    ReMoE: _remoe,
    MoEfication: _moefication,
    Oracle: _moefication,
}
"""The rule of each router that can choose among the experts that are left."""


def _ranked(ranked_TE: jax.Array, open_TE: jax.Array) -> jax.Array:
    return jnp.where(open_TE, ranked_TE, -jnp.inf)


def _best(ranked_TE: jax.Array, scores_TE: jax.Array, count: jax.Array, slots: int) -> Selection:
    """The `count` (scalar, or `[T, 1]`) best of each row in descending order, at most `slots`;
    never one of rank -inf. Ties: lowest index first."""
    num_experts = scores_TE.shape[-1]
    value_TK, expert_TK = jax.lax.top_k(ranked_TE, slots)
    filled_TK = (jnp.arange(slots) < count) & (value_TK > -jnp.inf)
    weight_TK = jnp.take_along_axis(scores_TE, expert_TK, axis=-1)
    return Selection(
        jnp.where(filled_TK, expert_TK, num_experts), jnp.where(filled_TK, weight_TK, 0.0)
    )


def _weighted(chosen: Selection, renormalise: bool, scale: float, counted: int) -> Selection:
    """Weights as the router makes them; only experts below `counted` are, when renormalised."""
    weight_TK = chosen.weight_TK
    if renormalise:
        weight_TK = renormalised(weight_TK, chosen.expert_TK < counted)
    return chosen._replace(weight_TK=scale * weight_TK)
