"""One change of a routing: experts taken away, another `k` or `p`, more experts; a pytree, so that
what changes from value to value is an array and every value runs through one compiled program."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from moejax.probe.interventions.rules import RULES
from moejax.routing.contract import Router, RouterInputs, Routing, State
from moejax.routing.linear import LinearRouter

BEFORE, AFTER = "before", "after"
WHENS = (BEFORE, AFTER)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["top", "drop_E", "k", "p", "extra", "shared"],
    meta_fields=["router", "slots", "when", "renormalise"],
)
@dataclasses.dataclass(frozen=True)
class Edit:
    """What happens to the routing of a layer (an `EditRouting`); in a model every array has a
    leading axis of layers (`SegmentStack.apply`).

    Attributes:
      top: int32, how many of each token's most probable experts are taken away.
      drop_E: bool `[E]`, experts that are taken away from all tokens.
      k: int32, experts per token, of a router whose rule has a `k`.
      p: float32, threshold, of a router whose rule has a `p`.
      extra: int32, experts beyond those that the rule asks for.
      shared: bool, whether the shared expert stays (`program.make_losses` acts on it).
      router: the layer's.
      slots: static bound on the experts of a token after the edit; not used with `after`.
      when: `before`: the router's rule chooses among the experts that are left. `after`: it chooses
        as ever, and what is taken away leaves an empty slot.
      renormalise: `before`: the scores are those of the logits that are left (a softmax over the
        rest; scores that no logit is behind stay); False: scores of experts that are taken away
        become 0, and their mass is lost to weights and thresholds. `after`: a token's weights are
        scaled to the sum that they had; False: they stay.
    """

    top: jax.Array
    drop_E: jax.Array
    k: jax.Array
    p: jax.Array
    extra: jax.Array
    shared: jax.Array
    router: Router
    slots: int
    when: str = BEFORE
    renormalise: bool = True

    def __call__(self, routing: Routing, inputs: RouterInputs, state: State) -> Routing:
        """The edited routing."""
        open_TE = ~self._removed(routing)
        if self.when == AFTER:
            return _emptied(routing, open_TE, self.renormalise)
        assert routing.scores_TE is not None
        scores_TE = jnp.where(open_TE, routing.scores_TE, 0.0)
        if self.renormalise and isinstance(self.router, LinearRouter):
            assert routing.logits_TE is not None
            fresh_TE = self.router.score(jnp.where(open_TE, routing.logits_TE, -jnp.inf))
            # Rows of which nothing is left have no softmax.
            scores_TE = jnp.where(open_TE, fresh_TE, 0.0)
        rule = RULES[type(self.router)]
        chosen = rule(self.router, scores_TE, open_TE, state, self, self.slots)
        made = self.router.routing(
            inputs,
            chosen.expert_TK,
            chosen.weight_TK,
            requested_T=chosen.requested_T,
            scores_TE=scores_TE,
            logits_TE=routing.logits_TE,
            num_experts=routing.num_experts,
        )
        return dataclasses.replace(made, max_rows=scores_TE.shape[0] * self.slots)

    def _removed(self, routing: Routing) -> jax.Array:
        """bool `[T, E]`; of equally probable experts the lowest goes first."""
        if routing.scores_TE is None:
            tokens = routing.expert_TK.shape[0]
            return jnp.broadcast_to(self.drop_E, (tokens, routing.num_experts))
        order_TE = jnp.argsort(-routing.scores_TE, axis=-1, stable=True)
        rank_TE = jnp.argsort(order_TE, axis=-1)
        return (rank_TE < self.top) | self.drop_E


def _emptied(routing: Routing, open_TE: jax.Array, renormalise: bool) -> Routing:
    padded_TE = jnp.pad(open_TE, ((0, 0), (0, 1)))  # the sentinel's slots are empty already
    left = routing.without(~jnp.take_along_axis(padded_TE, routing.expert_TK, axis=-1))
    if not renormalise:
        return left
    had_T1 = routing.weight_TK.sum(-1, keepdims=True)
    has_T1 = left.weight_TK.sum(-1, keepdims=True)
    # Untouched tokens keep their weights to the bit: x / x is 1.
    scale_T1 = jnp.where(has_T1 > 0, had_T1 / jnp.where(has_T1 > 0, has_T1, 1.0), 0.0)
    return dataclasses.replace(left, weight_TK=left.weight_TK * scale_T1)
