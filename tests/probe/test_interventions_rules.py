"""Edited routings against the obvious slow way: one token at a time, with sorted lists."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from moejax.probe.interventions import Edit
from moejax.routing import ROUTERS, Router, RouterInputs, Routing
from moejax.routing.routers import (
    ExpertChoice,
    Hash,
    LearnedMasks,
    MoEfication,
    MoEPlusPlus,
    NoisyTopK,
    Oracle,
    ReMoE,
    SigmoidBias,
    TopK,
    TopP,
)

EXPERTS = 6
BIAS = np.array([0.0, 0.3, -0.2, 0.1, 0.0, -0.4], np.float32)
ROUTERS_UNDER_TEST: dict[str, Router] = {
    "raw": TopK(k=2, renormalise=False, scale=1.5),
    "renormalised": NoisyTopK(k=3),
    "grouped": TopK(k=2, groups=3, groups_kept=2),
    "bias": SigmoidBias(k=2, scale=2.5),
    "bias_groups": SigmoidBias(k=2, renormalise=False, groups=2, groups_kept=1),
    "plus": MoEPlusPlus(k=3, renormalise=True, zero_experts=2),
    "p": TopP(p=0.5),
    "p_bounded": TopP(p=0.7, inclusive=True, renormalise=True, k_min=2, k_max=4),
    "remoe": ReMoE(k=2),
    "moefication": MoEfication(k=2),
    "oracle": Oracle(k=2),
}
UNTOUCHED = {"top": 0, "drop": (), "extra": 0}
CHANGES = (
    UNTOUCHED,
    UNTOUCHED | {"top": 1},
    UNTOUCHED | {"top": 3},
    UNTOUCHED | {"top": 6},
    UNTOUCHED | {"drop": (1, 4)},
    UNTOUCHED | {"drop": tuple(range(6))},
    UNTOUCHED | {"top": 2, "drop": (0,), "extra": 1},
    UNTOUCHED | {"k": 1, "p": 0.2},
    UNTOUCHED | {"k": 4, "p": 0.9, "extra": 1},
    UNTOUCHED | {"k": 6, "p": 1.0},
)

Held = dict[int, float]


def logits() -> NDArray[np.float32]:
    """Spread and rounded, so that some are equal; row 0 is all equal, row 1 all negative."""
    logits_TE = np.random.default_rng(5).normal(0, 1.5, (24, EXPERTS)).round(1)
    logits_TE[0] = 0.0
    logits_TE[1] = -1.0 - np.abs(logits_TE[1])
    return logits_TE.astype(np.float32)


@functools.cache
def routed(name: str) -> tuple[Routing, RouterInputs, dict[str, Any]]:
    """What the router itself makes of the logits; the last two tokens are padding."""
    router = ROUTERS_UNDER_TEST[name]
    state = {"bias_E": jnp.asarray(BIAS)} if isinstance(router, SigmoidBias) else {}
    inputs = RouterInputs.of(24, valid_T=jnp.arange(24) < 22, num_experts=EXPERTS)
    if isinstance(router, Oracle):
        inputs = dataclasses.replace(inputs, activity_TE=jnp.exp(jnp.asarray(logits())))
    params = {"w_DE": jnp.eye(EXPERTS)}
    return router(jnp.asarray(logits()), inputs, params, state)[0], inputs, state


def edit(router: Router, when: str, renormalise: bool, **change: Any) -> Edit:
    drop_E = np.array([expert in change.get("drop", ()) for expert in range(EXPERTS)])
    return Edit(
        top=np.int32(change.get("top", 0)),
        drop_E=drop_E,
        k=np.int32(change.get("k", getattr(router, "k", 0))),
        p=np.float32(change.get("p", getattr(router, "p", 0.0))),
        extra=np.int32(change.get("extra", 0)),
        shared=np.bool_(True),
        router=router,
        slots=EXPERTS,
        when=when,
        renormalise=renormalise,
    )


apply = jax.jit(lambda edit, routing, inputs, state: edit(routing, inputs, state))


def held(routing: Routing) -> list[Held]:
    expert_TK, weight_TK = np.asarray(routing.expert_TK), np.asarray(routing.weight_TK)
    assert (weight_TK[expert_TK == EXPERTS] == 0).all()
    return [
        {int(e): float(w) for e, w in zip(experts, weights, strict=True) if e < EXPERTS}
        for experts, weights in zip(expert_TK, weight_TK, strict=True)
    ]


# ---- the oracle


def scores_of(router: Router, logit: dict[int, float]) -> dict[int, float]:
    if isinstance(router, SigmoidBias | MoEfication):
        return {e: 1 / (1 + math.exp(-z)) for e, z in logit.items()}
    if isinstance(router, ReMoE):
        return {e: max(z, 0.0) for e, z in logit.items()}
    if isinstance(router, Oracle):  # what it sees of the experts is no logit
        return {e: math.exp(z) for e, z in logit.items()}
    total = sum(math.exp(z) for z in logit.values())
    return {e: math.exp(z) / total for e, z in logit.items()}


def best(score: dict[int, float], count: int) -> list[int]:
    """float32, as the router compares."""
    return sorted(score, key=lambda e: (-np.float32(score[e]), e))[:count]


def choice(router: Any, score: dict[int, float], change: dict[str, Any]) -> tuple[list[int], Held]:
    extra = change["extra"]
    if isinstance(router, TopP):
        p, order, mass, count = change.get("p", router.p), best(score, EXPERTS), 0.0, 0
        for count, expert in enumerate(order, start=1):  # noqa: B007
            mass += score[expert]
            if p < 1 and (mass >= p - 1e-7 if router.inclusive else mass > p + 1e-7):
                break
        count = min(max(count, router.k_min), router.k_max or EXPERTS) + extra
        chosen = order[:count]
    elif isinstance(router, ReMoE):
        chosen = [e for e in score if score[e] > 0]
    else:
        rank = {e: s + float(BIAS[e]) * isinstance(router, SigmoidBias) for e, s in score.items()}
        if getattr(router, "groups", 1) > 1:
            size = EXPERTS // router.groups
            top = 2 if isinstance(router, SigmoidBias) else 1
            total = {}
            for group in range(router.groups):
                there = sorted((rank[e] for e in rank if e // size == group), reverse=True)[:top]
                total[group] = sum(there) if len(there) == top else -math.inf
            groups = best(total, router.groups_kept)
            rank = {e: s for e, s in rank.items() if e // size in groups}
        chosen = best(rank, change.get("k", router.k) + extra)
    weight = {e: score[e] for e in chosen}
    if getattr(router, "renormalise", False):
        if isinstance(router, MoEPlusPlus):
            weight = {e: w if e < EXPERTS - router.zero_experts else 0.0 for e, w in weight.items()}
        total_weight = sum(weight.values())
        weight = {e: w / total_weight if total_weight else 0.0 for e, w in weight.items()}
    if isinstance(router, MoEfication | Oracle):
        return chosen, dict.fromkeys(chosen, 1.0)
    scale = getattr(router, "scale", 1.0)
    return chosen, {e: scale * w for e, w in weight.items()}


def expected(
    router: Router, logit_E: NDArray, change: dict[str, Any], when: str, renormalise: bool
) -> Held:
    if isinstance(router, MoEfication):  # sees the direction of a token
        logit_E = logit_E / (np.linalg.norm(logit_E) or 1.0)
    logit = {e: float(z) for e, z in enumerate(logit_E)}
    score = scores_of(router, logit)
    gone = {*best(score, change["top"]), *change["drop"]}
    if when == "after":
        _, weight = choice(router, score, UNTOUCHED)
        left = {e: w for e, w in weight.items() if e not in gone}
        had, has = sum(weight.values()), sum(left.values())
        factor = (had / has if has else 0.0) if renormalise else 1.0
        return {e: factor * w for e, w in left.items()}
    left_logit = {e: z for e, z in logit.items() if e not in gone}
    if not left_logit:
        return {}
    if renormalise:
        left = scores_of(router, left_logit)
    else:
        left = {e: s for e, s in score.items() if e not in gone}
    return choice(router, left, change)[1]


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("name", ROUTERS_UNDER_TEST)
def test_choosing_among_the_rest_equals_the_slow_way(name: str, renormalise: bool) -> None:
    router, (routing, inputs, state) = ROUTERS_UNDER_TEST[name], routed(name)
    compare(router, routing, inputs, state, CHANGES, "before", renormalise)


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("name", ["raw", "p_bounded"])
def test_emptied_slots_equal_the_slow_way(name: str, renormalise: bool) -> None:
    router, (routing, inputs, state) = ROUTERS_UNDER_TEST[name], routed(name)
    compare(router, routing, inputs, state, CHANGES[:6], "after", renormalise)


def compare(
    router: Router,
    routing: Routing,
    inputs: RouterInputs,
    state: dict[str, Any],
    changes: tuple[dict[str, Any], ...],
    when: str,
    renormalise: bool,
) -> None:
    differs = 0
    for change in changes:
        made = apply(edit(router, when, renormalise, **change), routing, inputs, state)
        got = held(made)
        for token, logit_E in enumerate(logits()):
            want = expected(router, logit_E, change, when, renormalise) if token < 22 else {}
            label = f"{change} token {token}"
            assert got[token].keys() == want.keys(), label
            assert got[token] == pytest.approx(want, abs=1e-6), label
        differs += got != held(routing)
        assert int(made.requested_T.sum()) >= int(made.active_T.sum())
    assert differs >= len(changes) // 2


@pytest.mark.parametrize("name", ROUTERS_UNDER_TEST)
def test_untouched_values_give_the_routing_of_the_router(name: str) -> None:
    """To the bit, but for the order of a sum; slots beyond the router's are empty."""
    router, (routing, inputs, state) = ROUTERS_UNDER_TEST[name], routed(name)
    for renormalise in (True, False):
        made = apply(edit(router, "before", renormalise), routing, inputs, state)
        slots = routing.expert_TK.shape[1]
        np.testing.assert_array_equal(made.expert_TK[:, :slots], routing.expert_TK)
        np.testing.assert_allclose(made.weight_TK[:, :slots], routing.weight_TK, rtol=3e-7)
        assert (made.expert_TK[:, slots:] == EXPERTS).all()
        np.testing.assert_array_equal(made.requested_T, routing.requested_T)
        assert made.max_rows == 24 * EXPERTS


@pytest.mark.parametrize("router", [Hash(k=2), ExpertChoice(1.5)], ids=["hash", "expert_choice"])
def test_any_router_can_lose_an_expert_after_it_chose(router: Router) -> None:
    inputs = RouterInputs.of(24, token_id_T=jnp.arange(24), num_experts=EXPERTS)
    params = {"w_DE": jnp.eye(EXPERTS)} if router.has_scores else {}
    routing, _ = router(jnp.asarray(logits()), inputs, params, {})
    made = apply(edit(router, "after", False, drop=(2, 3)), routing, inputs, {})
    want = [{e: w for e, w in token.items() if e not in (2, 3)} for token in held(routing)]
    assert held(made) == want and want != held(routing)


def test_every_scored_router_that_ships_has_its_oracle_here() -> None:
    tested = {type(router) for router in ROUTERS_UNDER_TEST.values()} | {ExpertChoice}
    tested |= {LearnedMasks}  # nothing is chosen among the rest: no rule
    shipped = {ROUTERS.get(name, "router") for name in ROUTERS.names()}
    scored = {r for r in shipped if r.has_scores and r.__module__.startswith("moejax.")}
    assert scored == tested
