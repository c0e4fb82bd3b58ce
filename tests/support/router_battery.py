"""The router battery: what every registered router is held to. Free: registering is enough.

    from router_battery import check_router
    check_router(MyRouter(k=3))

Every check is a function of a `Subject`, which compiles the router's few programs once. Assertions
are made in NumPy: what they do compiles nothing.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from router_subject import (
    D,
    E,
    Subject,
    T,
    assert_finite,
    assert_sound,
    fields_of,
    routed_once,
    same_choice,
)
from routers_under_test import stack

from moejax.config import ConfigError
from moejax.routing import LinearRouter, routing_stats
from moejax.routing.losses import load_balance

REAL = np.arange(T) % 3 != 1  # 21 tokens; the others are padding where a check says so
CHECKS = []


def check_router(router):
    """Runs every check on a router.

    Raises:
      AssertionError: of the first check that fails; a note names it.
    """
    subject = Subject(router)
    for check in CHECKS:
        try:
            check(subject)
        except AssertionError as error:
            error.add_note(f"{check.__name__} of {router}")
            raise


def a_check(function):
    CHECKS.append(function)
    return function


# ---- shapes and books


@a_check
def shapes_types_and_books(subject):
    router, out = subject.router, subject.plain
    routing = out["routing"]
    slots = router.slots(E)
    assert routing.expert_TK.shape == routing.weight_TK.shape == (T, slots)
    assert routing.expert_TK.dtype == routing.requested_T.dtype == np.int32
    assert routing.weight_TK.dtype == np.float32
    for name, array in (("scores", routing.scores_TE), ("logits", routing.logits_TE)):
        assert (array is not None) == getattr(router, f"has_{name}"), f"has_{name} is wrong"
        assert array is None or (array.shape, array.dtype) == ((T, E), np.float32)
    assert routing.scores_TE is None or (routing.scores_TE >= 0).all()
    assert routing.max_rows == router.max_rows(T, E)
    if router.carries:
        assert out["carry_TE"].shape == (T, E) and out["carry_TE"].dtype == np.float32
    else:
        assert out["carry_TE"] is not None, "inputs.carry_TE must be passed on"
        np.testing.assert_array_equal(out["carry_TE"], subject.inputs.carry_TE)
    assert 0 < router.nominal_active(E) <= slots <= E
    assert router.num_parameters(D, E) == sum(leaf.size for leaf in subject.params.values())
    initial = jax.tree.leaves((router.init(jax.random.key(0), D, E), router.init_state(E)))
    assert all(leaf.dtype == np.float32 for leaf in initial), "parameters must be float32"
    assert_sound(router, out)
    assert_finite(out)


@a_check
def state_keeps_its_shape(subject):
    """`update_state` and `auxiliary` of two layers: same structure out, scalars, finite."""
    stats, state = (
        jax.tree.map(lambda leaf: np.stack([leaf, leaf]), tree)
        for tree in (subject.plain["stats"], subject.state)
    )
    new, aux = jax.jit(
        lambda state, stats: (
            subject.router.update_state(state, stats),
            subject.router.auxiliary(stats, state),
        )
    )(state, stats)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    for old_leaf, new_leaf in zip(jax.tree.leaves(state), jax.tree.leaves(new), strict=True):
        same = (old_leaf.shape, old_leaf.dtype) == (new_leaf.shape, new_leaf.dtype)
        assert same, f"update_state made {new_leaf.shape} of {old_leaf.shape}"
    assert all(value.shape == () for value in aux.values())
    assert_finite((new, aux))


# ---- declared properties


@a_check
def causality_is_as_declared(subject):
    half = T // 2
    changed = subject.x_TD.copy()
    changed[half:] += 5.0
    inputs = dataclasses.replace(
        subject.inputs,
        token_id_T=np.where(np.arange(T) < half, subject.inputs.token_id_T, 1),
        carry_TE=np.where(np.arange(T)[:, None] < half, subject.inputs.carry_TE, 1.0),
        activity_TE=np.where(np.arange(T)[:, None] < half, subject.inputs.activity_TE, 1.0),
    )
    before, after = subject.plain, subject.graded(changed, inputs)
    same = np.array_equal(before["combine_TE"][:half], after["combine_TE"][:half])
    assert same == subject.router.causal, f"causal={subject.router.causal} is not so"


@a_check
def token_equivariance_is_as_declared(subject):
    order = np.random.default_rng(1).permutation(T)
    inputs = jax.tree.map(lambda leaf: leaf[order] if leaf.ndim else leaf, subject.inputs)
    moved = subject.graded(subject.x_TD[order], inputs)["combine_TE"]
    same = np.allclose(subject.plain["combine_TE"][order], moved, atol=1e-6)
    declared = subject.router.token_equivariant
    assert same == declared, f"token_equivariant={declared} is not so"


@a_check
def expert_equivariance_is_as_declared(subject):
    """Without noise: noise belongs to a column and stays where it is."""
    order = subject.permuted_E

    def permuted(leaf):  # no other axis is E long, but for two-layer routers' 8 E: left alone
        for axis, size in enumerate(leaf.shape):
            if size == E:
                leaf = np.take(leaf, order, axis)
        return leaf

    seen = subject.inputs
    params, state, carry_TE, activity_TE = jax.tree.map(
        permuted, (subject.params, subject.state, seen.carry_TE, seen.activity_TE)
    )
    inputs = dataclasses.replace(seen, carry_TE=carry_TE, activity_TE=activity_TE)
    plain = dense(subject.plain_modes["evaluated"])
    moved = dense(subject.modes(params, state, inputs)["evaluated"])
    same = np.allclose(plain[:, order], moved, atol=1e-5)
    declared = subject.router.expert_equivariant
    assert same == declared, f"expert_equivariant={declared} is not so"


def dense(routing):
    """`combine_TE`, in NumPy."""
    table = np.zeros((routing.expert_TK.shape[0], E + 1), np.float32)
    np.put_along_axis(table, routing.expert_TK, routing.weight_TK, -1)
    return table[:, :E]


# ---- padding


@a_check
def padded_equals_compacted_in_values_and_gradients(subject):
    inputs = dataclasses.replace(subject.inputs, valid_T=REAL)
    padded = subject.graded(inputs=inputs)
    compact = subject.graded(
        subject.x_TD[REAL],
        jax.tree.map(lambda leaf: leaf[REAL] if leaf.ndim else leaf, inputs),
        want_TE=subject.want_TE[REAL],
    )
    assert (padded["routing"].expert_TK[~REAL] == E).all(), "padding holds an expert"
    assert not padded["routing"].requested_T[~REAL].any()
    assert not padded["d_x"][~REAL].any(), "a gradient reaches padding"
    same_choice(
        jax.tree.map(lambda leaf: leaf[REAL], padded["routing"]),
        compact["routing"],
    )
    assert_sound(subject.router, padded)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    close(padded["d_x"][REAL], compact["d_x"])
    for name in ("loss", "d_params", "stats"):
        jax.tree.map(close, padded[name], compact[name])


@a_check
def a_batch_of_only_padding(subject):
    inputs = dataclasses.replace(subject.inputs, valid_T=np.zeros(T, bool))
    out = subject.graded(inputs=inputs)
    assert (out["routing"].expert_TK == E).all() and not out["routing"].weight_TK.any()
    assert not out["routing"].requested_T.any() and out["stats"].ledger.requested == 0
    assert_finite(out)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(out["d_params"]))
    assert_finite(subject.router.update_state(stack(subject.state), stack(out["stats"])))


# ---- numbers


@a_check
def ties_go_to_the_lowest_index(subject):
    """Experts alike and tokens alike: slots hold the first experts in order, and where experts
    choose tokens they choose the first."""
    router = subject.router
    if not router.has_scores:
        return  # nothing that could be equal
    # Positive, so that a rule with a threshold at 0 (ReMoE) uses somebody.
    params = jax.tree.map(lambda leaf: np.full_like(leaf, 1 / 8), subject.params)
    state = jax.tree.map(np.asarray, router.init_state(E))
    inputs = jax.tree.map(lambda leaf: np.ones_like(leaf) if leaf.ndim else leaf, subject.inputs)
    routing = subject.modes(params, state, inputs, np.ones_like(subject.x_TD))["evaluated"]
    if np.ptp(routing.scores_TE):
        assert not router.expert_equivariant, "equal parameters and tokens, unequal scores"
        return  # experts that differ by the rule itself cannot be tied
    active_T = routing.active_T
    assert active_T.any(), "equal scores, and no expert is in use"
    slots_K = np.arange(routing.expert_TK.shape[1])
    want_TK = np.where(slots_K < active_T[:, None], slots_K, E)
    np.testing.assert_array_equal(routing.expert_TK, want_TK)
    assert (np.diff(active_T) <= 0).all(), "of equal tokens a later one was preferred"


@a_check
def extreme_logits(subject):
    """All equal, huge, masked: as rows of logits, and by way of the tokens and the parameters."""
    router = subject.router
    rows_TE = np.zeros((T, E), np.float32)
    rows_TE[1], rows_TE[2] = 3e4, -3e4
    rows_TE[3, 5] = 3e4
    rows_TE[4, 5] = -3e4
    rows_TE[5, ::2], rows_TE[5, 1::2] = 3e4, -3e4
    rows_TE[6, 2:] = -1e30
    rows_TE[7, :7] = -1e30
    rows_TE[8] = -1e30
    rows_TE[9] = np.linspace(-3e4, 3e4, E)
    rows_TE[10] = 1e-30
    silent = dataclasses.replace(subject.inputs, carry_TE=0 * subject.inputs.carry_TE)
    out = subject.graded(0 * subject.x_TD, silent, shift_TE=rows_TE)
    if isinstance(router, LinearRouter) and router.has_logits:
        reached = np.abs(out["routing"].logits_TE).max() > 1e4
        assert reached, "a LinearRouter that does not use its own `logits`"
    assert_sound(router, out, bounded=False)
    assert_finite(out | {"stats": None})  # logsumexp squared is no router's business
    for tokens, parameters in ((0, 1), (1e4, 1), (1, 1e4), (1, -1e4)):
        params = {name: parameters * leaf for name, leaf in subject.params.items()}
        out = subject.graded(tokens * subject.x_TD, params=params)
        assert_sound(router, out, bounded=False)
        assert_finite(out)


@a_check
def bfloat16_activations_choose_what_float32_math_says(subject):
    low = subject.plain_modes["bfloat16"]
    exact = subject.graded(subject.low_TD.astype(np.float32))["routing"]
    np.testing.assert_array_equal(low.expert_TK, exact.expert_TK)
    np.testing.assert_allclose(low.weight_TK, exact.weight_TK, rtol=1e-6)
    assert low.weight_TK.dtype == np.float32


@a_check
def noise_needs_a_key_and_training(subject):
    same_choice(subject.plain_modes["evaluated"], subject.plain_modes["without_key"])


@a_check
def rematerialisation_changes_nothing(subject):
    (_, once), once_d_x = subject.plain_modes["once"]
    (_, again), again_d_x = subject.plain_modes["rematerialised"]
    same_choice(once, again)
    same_choice(once, subject.plain["routing"])
    np.testing.assert_allclose(once_d_x, again_d_x, rtol=1e-5, atol=1e-6)


@a_check
def jit_equals_eager(subject):
    eager, _ = subject.router(subject.x_TD, subject.inputs, subject.params, subject.state)
    same_choice(jax.tree.map(np.asarray, eager), subject.plain["routing"], rtol=1e-5)


# ---- the ends of the knobs


@a_check
def k_equal_to_the_number_of_experts(subject):
    if "k" not in fields_of(subject.router):
        return
    knobs = {"groups_kept": subject.router.groups} if hasattr(subject.router, "groups") else {}
    router, routing = subject.variant(k=E, **knobs)
    router.check_experts(E, "router")
    assert router.slots(E) == E
    if dataclasses.replace(router, k=1).slots(E) == 1:  # k is what each token uses
        np.testing.assert_array_equal(np.sort(routing.expert_TK, -1), [list(range(E))] * T)
    with pytest.raises(ConfigError, match=r"^router\.k: .*nearest valid value 8$"):
        dataclasses.replace(router, k=E + 1).check_experts(E, "router")


@a_check
def one_expert_for_all(subject):
    """E = 1, with the fewest experts that the knobs allow."""
    ones = {"k", "k_min", "k_max", "groups", "groups_kept"} & fields_of(subject.router)
    if "zero_experts" in fields_of(subject.router):
        ones = ones | {"zero_experts"}
    router = dataclasses.replace(
        subject.router, **{name: 0 if name == "zero_experts" else 1 for name in ones}
    )
    router.check_experts(1, "router")
    params, state = router.init(jax.random.key(0), D, 1), router.init_state(1)
    seen = subject.inputs
    inputs = dataclasses.replace(
        seen, num_experts=1, carry_TE=seen.carry_TE[:, :1], activity_TE=seen.activity_TE[:, :1]
    )
    routing = routed_once(router, subject.x_TD, inputs, params, state)
    assert routing.expert_TK.shape == (T, 1)
    assert np.isfinite(routing.weight_TK).all(), "one expert, and no finite weight"
    assert set(np.unique(routing.expert_TK)) <= {0, 1} and routing.filled_TK.any()


@a_check
def the_ends_of_p(subject):
    """p -> 0 is top-1 (or `k_min`); p = 1 is every expert."""
    if "p" not in fields_of(subject.router):
        return
    fewest = getattr(subject.router, "k_min", 1)
    _, low = subject.variant(p=1e-9)
    _, high = subject.variant(p=1.0)
    assert (low.requested_T == fewest).all(), f"p -> 0 asks for other than {fewest}"
    assert (high.requested_T == E).all(), "p = 1 asks for fewer than all experts"
    np.testing.assert_array_equal(low.expert_TK[:, 0], low.scores_TE.argmax(-1))


# ---- balance


@a_check
def the_balance_loss_lowers_the_load_cv(subject):
    """A router is driven to load CV >= 1 and let go; or its rule keeps the load even all the way.

    Both ways go by the gradient of all parameters, whatever they are.
    """
    router = subject.router
    if not router.has_scores or not subject.params:
        return  # no probability that a loss could push
    x_TD = subject.x_TD + 1.0  # a direction that all tokens share carries the bias
    inputs = dataclasses.replace(subject.inputs, carry_TE=None)
    favour_E = np.array([3, 2, 1] + [-3] * (E - 3), np.float32)

    def loss(params, driven):
        routing, _ = router(x_TD, inputs, params, router.init_state(E))
        stats = routing_stats(routing, inputs)
        # No further than to 1: where a rule cuts off (ReMoE), no loss brings the dead back.
        driven &= stats.count_E.std() < stats.count_E.mean()
        value_TE = routing.logits_TE if router.has_logits else routing.scores_TE
        away = ((value_TE - favour_E) ** 2).mean()
        balance = load_balance(stats, "deepseek")
        return jnp.where(driven, away, balance), (driven, stats.count_E, stats.prob_E)

    def step(carry, _):
        params, driven = carry
        slopes, (driven, *seen) = jax.grad(loss, has_aux=True)(params, driven)

        def moved(leaf, slope):
            return leaf - 0.01 * slope / (jnp.sqrt((slope**2).mean()) + 1e-12)

        return (jax.tree.map(moved, params, slopes), driven), seen

    walk = jax.jit(lambda params: jax.lax.scan(step, (params, True), None, length=40)[1])
    counts_NE, probs_NE = (np.asarray(array) for array in walk(subject.params))
    cv_N = counts_NE.std(-1) / counts_NE.mean(-1)
    if (cv_N < 1).all():
        even = (np.ptp(counts_NE, -1) <= 1).all()
        assert even, f"driven to a load CV of {cv_N.max():.2f} only"
        rest = probs_NE[-1, 3:].mean()
        assert probs_NE[-1, :3].mean() > 2 * rest, "even only because nothing drives it"
    else:
        before, after = cv_N[np.argmax(cv_N >= 1)], cv_N[-1]
        assert after < 0.75 * before, f"load CV went from {before:.2f} to {after:.2f}"
