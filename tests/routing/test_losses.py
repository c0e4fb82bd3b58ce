"""Every loss: value at balance and collapse, gradient direction, conventions, reductions."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand_routing import hand_routing, stats_of

from moejax.config import ConfigError, check
from moejax.routing import LossesConfig, RouterInputs, health, open_ledger, routing_stats
from moejax.routing.losses import (
    CONVENTIONS,
    SCOPES,
    Communication,
    DeviceBalance,
    Entropy,
    LoadBalance,
    ParameterPenalty,
    ZLoss,
    communication,
    device_balance,
    entropy_loss,
    load_balance,
    neighbours,
    parameter_penalty,
    z_loss,
)
from moejax.routing.routers import Hash, TopK

N, K, T = 8, 2, 16


def routed(experts, probs):
    sequence_T = jnp.arange(T) // 4
    routing = hand_routing(experts, probs, N)
    return stats_of(routing, num_sequences=4, num_groups=GROUPS, sequence_T=sequence_T)


@functools.cache
def balanced():
    """Every expert equally loaded, in every sequence of four tokens too."""
    experts = [[(2 * t) % N, (2 * t + 1) % N] for t in range(T)]
    return routed(experts, np.full((T, N), 1 / N))


@functools.cache
def collapsed():
    """All probability, equally, on the same K experts."""
    probs = np.zeros((T, N))
    probs[:, :K] = 1 / K
    return routed([[0, 1]] * T, probs)


TABLE = {
    "switch": (K, N),
    "hf": (K, N),
    "deepseek": (1, N / K),
    "megatron": (1, N / K),
    "megablocks": (1, N / K),
    "hmoe": (K, N),
    "moe_plus_plus": (K / N, 1),
}
GROUPS = 4
GROUPED = {
    # K = 2 experts of one group of 2: one of 4 groups holds everything at collapse.
    "device_balance": (1, GROUPS),
    # At balance each token's two neighbouring experts share a device: M = 1 device per token.
    "communication": (1, GROUPS),
    "parameter_penalty": (K, N),
}
each_scope = pytest.mark.parametrize("scope", SCOPES)


def test_the_table_covers_every_convention():
    assert set(TABLE) == set(CONVENTIONS)


WIDTHS = (3, 1) * (N // 2)  # K = 2 neighbours are of average width together
BALANCE = {name: functools.partial(load_balance, convention=name) for name in CONVENTIONS} | {
    "device_balance": functools.partial(device_balance, group_E=neighbours(N, GROUPS)),
    "communication": functools.partial(communication, kept=1),
    "parameter_penalty": functools.partial(parameter_penalty, widths=WIDTHS),
}
each_balance = pytest.mark.parametrize("name", BALANCE)


@functools.cache
def compiled(name, scope):
    return jax.jit(functools.partial(BALANCE[name], scope=scope))


@each_scope
@each_balance
def test_balance_loss_at_balance_and_collapse(name, scope):
    at_balance, at_collapse = (TABLE | GROUPED)[name]
    loss = compiled(name, scope)
    np.testing.assert_allclose(loss(balanced()), at_balance, rtol=1e-6)
    np.testing.assert_allclose(loss(collapsed()), at_collapse, rtol=1e-6)


@each_scope
@each_balance
def test_balance_losses_ignore_padding(name, scope):
    """Eight tokens of padding, two of them in a sequence of their own, change nothing."""
    valid = np.r_[np.ones(T, bool), np.zeros(8, bool)]
    sequence = np.r_[np.arange(T) // 4, [0, 1, 2, 3, 0, 1], [4, 4]]
    probs = np.random.default_rng(0).dirichlet(np.ones(N), T + 8)
    experts = [
        row.argsort()[-K:].tolist() if ok else [N] * K for row, ok in zip(probs, valid, strict=True)
    ]
    padded = stats_of(
        hand_routing(experts, probs, N), num_sequences=5, num_groups=GROUPS,
        valid_T=jnp.asarray(valid), sequence_T=jnp.asarray(sequence, jnp.int32),
    )  # fmt: skip
    compact = routed(experts[:T], probs[:T])
    loss = functools.partial(BALANCE[name], scope=scope)
    np.testing.assert_allclose(loss(padded), loss(compact), rtol=1e-6)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_balance_loss_is_the_mean_over_layers(convention):
    stacked = jax.tree.map(lambda a, b: jnp.stack([a, b]), balanced(), collapsed())
    expected = sum(TABLE[convention]) / 2
    if convention == "hf":  # fractions are averaged over layers first
        f = np.full(N, K / N) / 2 + np.r_[np.ones(K), np.zeros(N - K)] / 2
        q = np.full(N, 1 / N) / 2 + np.r_[np.full(K, 1 / K), np.zeros(N - K)] / 2
        expected = N * (f * q).sum()
    np.testing.assert_allclose(load_balance(stacked, convention), expected, rtol=1e-6)


@functools.cache
def skewed_stats():
    return stats_from_logits(skewed_logits())


def stats_from_logits(logits):
    probs = jax.nn.softmax(logits)
    _, expert_TK = jax.lax.top_k(probs, K)
    routing = hand_routing(expert_TK.tolist(), np.zeros(logits.shape), N)
    routing = dataclasses.replace(routing, scores_TE=probs, logits_TE=logits)
    sequence_T = jnp.arange(len(logits)) // 4
    return stats_of(routing, num_sequences=4, num_groups=GROUPS, sequence_T=sequence_T)


@functools.cache
def skewed_logits():
    return jax.random.normal(jax.random.key(0), (T, N)) + jnp.r_[3.0, 2.0, jnp.zeros(N - 2)]


def gradient(loss):
    """Gradient of a loss of stats with respect to logits, with the choice of experts fixed."""
    logits = skewed_logits()
    fixed = skewed_stats()

    def of_logits(logits):
        probs = jax.nn.softmax(logits)
        lse = jax.nn.logsumexp(logits, axis=-1)
        return loss(
            dataclasses.replace(
                fixed,
                prob_E=probs.sum(0),
                prob_BE=probs.reshape(4, 4, N).sum(1),
                entropy=-(probs * jnp.log(probs)).sum(),
                z=(lse**2).sum(),
            )
        )

    return jax.jit(jax.grad(of_logits))(logits)


@each_scope
@each_balance
def test_descending_the_balance_loss_moves_mass_off_the_busy_experts(name, scope):
    g = np.asarray(gradient(functools.partial(BALANCE[name], scope=scope))).sum(0)
    assert g[:2].sum() > 0 > g[2:].sum()


def test_experts_that_compute_nothing_weigh_tau():
    eta = (1.0,) * 6 + (0.75,) * 2
    value = load_balance(balanced(), "moe_plus_plus", eta=eta)
    np.testing.assert_allclose(value, K / N * np.mean(eta), rtol=1e-6)
    losses = LossesConfig(LoadBalance(0.01, "moe_plus_plus", tau=0.75))
    np.testing.assert_allclose(
        losses.values(balanced(), (4,) * 6 + (0,) * 2)["load_balance"], value, rtol=1e-6
    )


def test_a_token_counts_once_per_device():
    probs = np.full((2, 4), 0.25)
    stats = stats_of(hand_routing([[0, 1], [1, 2]], probs, 4), num_groups=2)
    assert stats.sent_G.tolist() == [2, 1]
    assert stats_of(hand_routing([[0, 4], [4, 4]], probs, 4), num_groups=2).sent_G.tolist() == [
        1,
        0,
    ]
    # D/(M T) * sent = 2/(1*2) * [2, 1]; P' = 1/2 each.
    np.testing.assert_allclose(communication(stats, kept=1), 1.5, rtol=1e-6)


def test_C9_device_level_loss():
    probs = [[0.5, 0.3, 0.2], [0.1, 0.3, 0.6]]
    stats = stats_of(hand_routing([[0, 1], [2, 1]], probs, 3))
    np.testing.assert_allclose(load_balance(stats, "deepseek"), 0.975, rtol=1e-6)
    np.testing.assert_allclose(device_balance(stats, (0, 0, 1)), 0.975, rtol=1e-6)


def test_descending_the_entropy_loss_sharpens_and_the_z_loss_shrinks():
    logits = skewed_logits()
    g = gradient(entropy_loss)
    assert (g[jnp.arange(T), logits.argmax(-1)] < 0).all()
    assert (gradient(z_loss).sum(-1) * jax.nn.logsumexp(logits, axis=-1) > 0).all()


def test_the_parameter_penalty_makes_wide_experts_dear():
    widths = (1, 1, 1, 1, 1, 1, 1, 9)
    uniform = routed([[(2 * t) % N, (2 * t + 1) % N] for t in range(T)], np.full((T, N), 1 / N))

    def loss(prob_E):
        return parameter_penalty(dataclasses.replace(uniform, prob_E=prob_E), widths)

    g = jax.grad(loss)(uniform.prob_E)
    assert g[-1] > 8 * g[0] > 0
    np.testing.assert_allclose(parameter_penalty(uniform, (5,) * N), K, rtol=1e-6)
    wide = routed([[7]] * T, np.eye(N)[[7] * T])
    narrow = routed([[0]] * T, np.eye(N)[[0] * T])
    assert parameter_penalty(wide, widths) == 9 * parameter_penalty(narrow, widths)


def test_entropy_ranges_from_collapse_to_uniform():
    np.testing.assert_allclose(entropy_loss(balanced()), np.log(N), rtol=1e-6)
    np.testing.assert_allclose(entropy_loss(collapsed()), np.log(K), rtol=1e-6)
    np.testing.assert_allclose(entropy_loss(routed([[3]] * T, np.eye(N)[[3] * T])), 0, atol=1e-7)


def test_sequence_scope_sees_imbalance_that_the_batch_hides():
    # Each sequence uses two experts only; the batch as a whole is balanced.
    experts = [[2 * (t // 4), 2 * (t // 4) + 1] for t in range(T)]
    probs = np.zeros((T, N))
    for t, row in enumerate(experts):
        probs[t, row] = 0.5
    stats = routed(experts, probs)
    np.testing.assert_allclose(load_balance(stats, "deepseek"), 1.0, rtol=1e-6)
    np.testing.assert_allclose(load_balance(stats, "deepseek", scope="sequence"), N / K, rtol=1e-6)


def test_counts_carry_no_gradient():
    g = jax.grad(lambda q: load_balance_of(q))(jnp.full(N, 2.0))
    np.testing.assert_allclose(g, N * np.asarray(collapsed().count_E) / T / T, rtol=1e-6)


def load_balance_of(prob_E):
    return load_balance(dataclasses.replace(collapsed(), prob_E=prob_E), "switch")


def test_values_and_coefficients_name_only_the_losses_in_use():
    losses = LossesConfig(LoadBalance(0.0), Entropy(1e-4), ParameterPenalty(0.1), ZLoss(0.0))
    values = losses.values(balanced(), (4,) * N)
    assert set(values) == set(losses.coefficients()) == {"entropy", "parameter_penalty"}
    everything = LossesConfig(LoadBalance(1.0), Entropy(1.0), ParameterPenalty(1.0), ZLoss(1.0))
    stats = stats_from_logits(skewed_logits())
    assert set(everything.values(stats, (4,) * N)) == {
        "load_balance",
        "entropy",
        "parameter_penalty",
        "z_loss",
    }


def test_a_loss_that_needs_scores_refuses_a_hash_router_at_config_time():
    with pytest.raises(ConfigError, match=r"x\.load_balance\.coefficient: this router has no sc"):
        LossesConfig().check_router(Hash(), N, "x")
    with pytest.raises(ConfigError, match=r"x\.z_loss\.coefficient: this router has no logits"):
        LossesConfig(LoadBalance(0.0), z_loss=ZLoss(1.0)).check_router(Hash(), N, "x")
    LossesConfig(LoadBalance(0.0)).check_router(Hash(), N, "x")
    LossesConfig().check_router(TopK(), N, "x")


@pytest.mark.parametrize(
    "losses, message",
    [
        (
            LossesConfig(device_balance=DeviceBalance(0.1, groups=3)),
            "x.device_balance.groups=3: does not divide 8 experts; nearest valid value 2",
        ),
        (
            LossesConfig(communication=Communication(0.1, groups=4, kept=5)),
            "x.communication.kept=5: there are 4 groups; nearest valid value 4",
        ),
    ],
)
def test_impossible_groups_are_refused(losses, message):
    with pytest.raises(ConfigError) as error:
        losses.check_router(TopK(), N, "x")
    assert str(error.value) == message


def test_errors_of_the_pure_functions():
    with pytest.raises(ValueError, match="unknown convention 'best'"):
        load_balance(balanced(), "best")
    bare = routing_stats(hand_routing([[0]], np.eye(N)[:1], N), RouterInputs.of(1))
    with pytest.raises(ValueError, match="statistics per sequence"):
        load_balance(bare, "deepseek", scope="sequence")
    with pytest.raises(ValueError, match="unknown scope 'all'"):
        load_balance(bare, "deepseek", scope="all")
    with pytest.raises(ValueError, match="needs statistics with num_groups"):
        communication(bare, kept=1)
    scoreless = dataclasses.replace(hand_routing([[0]], np.eye(N)[:1], N), scores_TE=None)
    with pytest.raises(ValueError, match="needs a router with scores"):
        load_balance(routing_stats(scoreless, RouterInputs.of(1)), "switch")
    with pytest.raises(ValueError, match="entropy loss needs a router with scores"):
        entropy_loss(routing_stats(scoreless, RouterInputs.of(1)))
    with pytest.raises(ValueError, match="z-loss needs a router with logits"):
        z_loss(bare)
    with pytest.raises(ValueError, match=r"per sequence need inputs\.sequence_T"):
        routing_stats(scoreless, RouterInputs.of(1), num_sequences=1)
    with pytest.raises(ValueError, match="no scores"):
        scoreless.probs_TE  # noqa: B018
    with pytest.raises(ConfigError, match=r"losses.convention='swich'.*did you mean 'switch'"):
        check(LoadBalance(1.0, "swich"), "losses")


def test_health_at_balance_and_collapse():
    widths = tuple(range(1, N + 1))
    good, bad = health(balanced(), widths), health(collapsed(), widths)
    np.testing.assert_allclose(good["load_max_over_mean"], 1)
    np.testing.assert_allclose(good["load_cv"], 0, atol=1e-6)
    np.testing.assert_allclose(good["dead_fraction"], 0)
    np.testing.assert_allclose(good["active_experts"], K)
    np.testing.assert_allclose(good["active_width"], K * np.mean(widths))
    np.testing.assert_allclose(good["entropy"], np.log(N), rtol=1e-6)
    np.testing.assert_allclose(bad["load_max_over_mean"], N / K)
    np.testing.assert_allclose(bad["load_cv"], np.sqrt(N / K - 1), rtol=1e-6)
    np.testing.assert_allclose(bad["dead_fraction"], (N - K) / N)
    np.testing.assert_allclose(bad["active_width"], 1 + 2)
    assert float(good["dropped/capacity"]) == 0


def test_health_of_nothing_is_finite():
    empty = hand_routing([[N]], np.eye(N)[:1], N)
    stats = routing_stats(empty, RouterInputs.of(1, valid_T=jnp.zeros(1, bool)))
    assert all(np.isfinite(value) for value in health(stats, (1,) * N).values())
    for convention in CONVENTIONS:
        assert load_balance(stats, convention) == 0
    assert bool(open_ledger(empty).balanced)
