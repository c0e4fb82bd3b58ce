"""What the router battery works on: a router with parameters and its few compiled programs, and
what must hold for whatever it returns.
"""

import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from routers_under_test import E, make_inputs, make_router, stack

from moejax.routing import CAUSES, LinearRouter, routing_stats

T, D = 32, 16


class Subject:
    """A router, its parameters and state, and its compiled programs."""

    def __init__(self, router):
        self.router = router
        self.params, self.state = make_router(router, D)
        random = np.random.default_rng(0)
        self.x_TD = random.normal(size=(T, D)).astype(np.float32)
        self.want_TE = random.normal(size=(T, E)).astype(np.float32)
        self.inputs = make_inputs(T, train=True)
        self.permuted_E = self._permutation()
        self._graded = jax.jit(jax.grad(self._loss, argnums=(0, 1), has_aux=True))
        self._modes = jax.jit(self._all_modes)

    def _permutation(self):
        """Of the experts; where the rule has groups, of groups and inside each; experts that the
        rule itself sets apart stay last."""
        groups = getattr(self.router, "groups", 1)
        apart = getattr(self.router, "zero_experts", 0)
        random = np.random.default_rng(2)
        table = np.arange(E - apart).reshape(groups, -1)
        table = table[random.permutation(groups)]
        return np.concatenate(
            [random.permutation(row) for row in table] + [np.arange(E)[E - apart :]]
        )

    def _loss(self, params, x_TD, inputs, state, want_TE, shift_TE):
        """Something of everything that carries a gradient."""
        routing, carry_TE = shifted(self.router, shift_TE)(x_TD, inputs, params, state)
        stats = routing_stats(routing, inputs)
        combine_TE = routing.combine_TE()
        loss = (combine_TE * want_TE).sum()
        if stats.prob_E is not None:
            loss += (stats.prob_E**2).sum() / T + stats.entropy
        for value in self.router.auxiliary(stack(stats), stack(state)).values():
            loss += value
        out = {"routing": routing, "combine_TE": combine_TE, "stats": stats, "loss": loss}
        return loss, out | {"carry_TE": carry_TE}

    def graded(self, x_TD=None, inputs=None, params=None, state=None, want_TE=None, shift_TE=None):
        """Routing, statistics and gradients, training with a key: NumPy arrays by name."""
        x_TD = self.x_TD if x_TD is None else x_TD
        gradients, out = self._graded(
            self.params if params is None else params,
            x_TD,
            self.inputs if inputs is None else inputs,
            self.state if state is None else state,
            self.want_TE if want_TE is None else want_TE,
            np.zeros((len(x_TD), E), np.float32) if shift_TE is None else shift_TE,
        )
        out["d_params"], out["d_x"] = gradients
        return jax.tree.map(np.asarray, out)

    def _all_modes(self, x_TD, low_TD, inputs, params, state):
        def routed(x_TD, **fields):
            return self.router(x_TD, dataclasses.replace(inputs, **fields), params, state)[0]

        def combined(x_TD):
            routing = self.router(x_TD, inputs, params, state)[0]
            return (routing.weight_TK**2).sum(), routing

        again = jax.value_and_grad(jax.checkpoint(combined), has_aux=True)
        once = jax.value_and_grad(combined, has_aux=True)
        return {
            "evaluated": routed(x_TD, train=False),
            "without_key": routed(x_TD, key=None),
            "bfloat16": routed(low_TD),
            "once": once(x_TD),
            "rematerialised": again(x_TD),
        }

    @functools.cached_property
    def plain(self):
        return self.graded()

    @functools.cached_property
    def low_TD(self):
        return self.x_TD.astype(jnp.bfloat16)

    def modes(self, params=None, state=None, inputs=None, x_TD=None):
        """Routings of the same tokens: evaluated, without key, in bfloat16, rematerialised."""
        x_TD = self.x_TD if x_TD is None else x_TD
        out = self._modes(
            x_TD,
            x_TD.astype(jnp.bfloat16),
            self.inputs if inputs is None else inputs,
            self.params if params is None else params,
            self.state if state is None else state,
        )
        return jax.tree.map(np.asarray, out)

    @functools.cached_property
    def plain_modes(self):
        return self.modes()

    def variant(self, **knobs):
        """A small call of the same rule with other knobs."""
        router = dataclasses.replace(self.router, **knobs)
        return router, routed_once(router, self.x_TD, self.inputs, self.params, self.state)


def shifted(router, shift_TE):
    """The router with something added to its logits where they are made, whatever its parameters
    are; one that is no LinearRouter has no such place and comes back as it is."""
    if not isinstance(router, LinearRouter):
        return router
    clone = copy.copy(router)
    object.__setattr__(clone, "logits", lambda *given: router.logits(*given) + shift_TE)
    return clone


def routed_once(router, x_TD, inputs, params, state):
    out = jax.jit(lambda *given: router(*given)[0])(x_TD, inputs, params, state)
    return jax.tree.map(np.asarray, out)


def fields_of(router):
    return {field.name for field in dataclasses.fields(router)}


def same_choice(one, other, rtol=1e-6):
    np.testing.assert_array_equal(one.expert_TK, other.expert_TK)
    np.testing.assert_array_equal(one.requested_T, other.requested_T)
    np.testing.assert_allclose(one.weight_TK, other.weight_TK, rtol=rtol, atol=1e-6)


def assert_sound(router, out, bounded=True):
    """What holds for every batch whatever is in it."""
    routing, stats = out["routing"], out["stats"]
    expert_TK, weight_TK, filled_TK = routing.expert_TK, routing.weight_TK, routing.filled_TK
    assert ((expert_TK >= 0) & (expert_TK <= E)).all(), "an expert that is none"
    assert not weight_TK[~filled_TK].any(), "an empty slot has a weight"
    assert np.isfinite(weight_TK).all() and (weight_TK >= 0).all(), "a weight that is none"
    for row in expert_TK:
        held = row[row < E]
        assert len(set(held)) == len(held), "a token holds an expert twice"
    assert filled_TK.sum() <= routing.max_rows, "more rows than max_rows"
    assert (routing.requested_T >= routing.active_T).all(), "more experts than asked for"
    count_E = np.bincount(expert_TK[filled_TK], minlength=E)
    np.testing.assert_array_equal(stats.count_E, count_E)
    ledger = stats.ledger
    dropped = sum(getattr(ledger, cause) for cause in CAUSES)
    assert ledger.kept + dropped == ledger.requested == routing.requested_T.sum()
    assert ledger.kept == filled_TK.sum()
    low, high = router.weight_sum()
    total_T = weight_TK.sum(-1)
    used_T = filled_TK.any(-1)
    assert (total_T <= high * (1 + 1e-5)).all(), f"weights sum to {total_T.max()} > {high}"
    if bounded:
        assert (total_T[used_T] >= low * (1 - 1e-5)).all(), f"weights sum to less than {low}"


def assert_finite(tree):
    for path, leaf in jax.tree.leaves_with_path(tree):
        if np.issubdtype(np.asarray(leaf).dtype, np.floating):
            assert np.isfinite(leaf).all(), f"{jax.tree_util.keystr(path)} is not finite"
