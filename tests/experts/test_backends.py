"""Every back end equals the oracle; and the battery would notice if it did not."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ffn_battery import SPECS, D, E, T, agree, battery, routing_of, routing_tables
from routers_under_test import ROUTERS, make_inputs, route

from moejax.experts import BACKENDS, ExpertsSpec, expert_ffn, init_weights
from moejax.experts.backends.loop import loop
from moejax.experts.backends.tiles import tiles
from moejax.routing import open_ledger


def through(backend):
    def ffn(x_TD, routing, weights, spec):
        return expert_ffn(x_TD, routing, weights, dataclasses.replace(spec, backend=backend))

    return ffn


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "loop"])
def test_backend_equals_the_oracle(backend, spec, dtype):
    battery(through(backend), specs=(spec,), dtypes=(dtype,))


def test_the_oracle_itself_against_numpy():
    spec = SPECS["unequal"]
    with jax.enable_x64(True):
        x_TD = np.asarray(jax.random.normal(jax.random.key(0), (T, D), "float64"))
        weights = init_weights(jax.random.key(1), spec, D, jnp.dtype("float64"))
        routing = routing_of(routing_tables()["holes"], "float64")
        got = loop(jnp.asarray(x_TD), routing, weights, spec)
    gate, up, down = (np.asarray(weights[k]).reshape(-1, D) for k in weights)
    want = np.zeros((T, D))
    first = np.cumsum([0, *spec.widths])
    for t, k in np.ndindex(*routing.expert_TK.shape):
        e = int(routing.expert_TK[t, k])
        if e < E:
            rows = slice(first[e], first[e + 1])
            g, u = gate[rows] @ x_TD[t], up[rows] @ x_TD[t]
            hidden = g / (1 + np.exp(-g)) * u
            want[t] += float(routing.weight_TK[t, k]) * (hidden @ down[rows])
    agree("numpy", got, want, 1e-12)


# --- three deliberate mutations: each must turn the battery red ----------------------------------


def weight_detached(x_TD, routing, weights, spec):
    routing = dataclasses.replace(routing, weight_TK=jax.lax.stop_gradient(routing.weight_TK))
    return expert_ffn(x_TD, routing, weights, spec)


def one_row_dropped(x_TD, routing, weights, spec):
    ledger = open_ledger(routing)
    flat = routing.expert_TK.reshape(-1)
    first = jnp.argmax(flat < routing.num_experts)
    flat = flat.at[first].set(routing.num_experts)
    routing = dataclasses.replace(routing, expert_TK=flat.reshape(routing.expert_TK.shape))
    return expert_ffn(x_TD, routing, weights, spec, ledger)


def counts_doubled(x_TD, routing, weights, spec):
    y_TD, ledger = expert_ffn(x_TD, routing, weights, spec)
    return y_TD, dataclasses.replace(ledger, kept=2 * ledger.kept)


@pytest.mark.parametrize(
    "mutant,symptom",
    [
        (weight_detached, "dweight: error"),
        (one_row_dropped, "y: error"),
        (counts_doubled, "ledger does not balance"),
    ],
)
def test_the_battery_turns_red_for(mutant, symptom):
    with pytest.raises(AssertionError, match=symptom):
        battery(mutant, specs=("uniform",), dtypes=("float32",), tables=("mixed",))


# --- shapes, transformations, dtypes -------------------------------------------------------------


def test_one_token_alone():
    spec = SPECS["unequal"]
    weights = init_weights(jax.random.key(1), spec, D, jnp.float32)
    x_TD = jax.random.normal(jax.random.key(0), (1, D))
    routing = jax.tree.map(lambda leaf: leaf[:1], routing_of(routing_tables()["full"], "float32"))
    agree(
        "one token", tiles(x_TD, routing, weights, spec), loop(x_TD, routing, weights, spec), 1e-5
    )


SKETCH_SPEC = ExpertsSpec((4, 0, 8, 4, 4, 6, 4, 2), unit=2, tile=8)
"""One expert set for every kind of routing; the zero-width expert is what MoE++ needs."""


@functools.cache
def graded(backend):
    spec = dataclasses.replace(SKETCH_SPEC, backend=backend)

    def loss(x_TD, weight_TK, weights, routing):
        routing = dataclasses.replace(routing, weight_TK=weight_TK)
        y_TD, ledger = expert_ffn(x_TD, routing, weights, spec)
        return (y_TD**2).sum(), (y_TD, ledger.balanced)

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))


@pytest.mark.parametrize("name", ROUTERS)
def test_every_router_and_sketch_passes_the_oracle(name):
    weights = init_weights(jax.random.key(1), SKETCH_SPEC, D, jnp.float32)
    x_TD = jax.random.normal(jax.random.key(0), (T, D))
    routing = route(name, x_TD, make_inputs(T, valid_T=jnp.arange(T) != 4))
    # Empty slots up to K = 8 and no scores: one compiled program then serves every router.
    slots = ((0, 0), (0, 8 - routing.expert_TK.shape[1]))
    routing = dataclasses.replace(
        routing,
        expert_TK=jnp.pad(routing.expert_TK, slots, constant_values=8),
        weight_TK=jnp.pad(routing.weight_TK, slots),
        scores_TE=None,
        logits_TE=None,
        max_rows=0,
    )
    args = (x_TD, routing.weight_TK, weights, routing)
    (got, (y_TD, balanced)), (want, (want_TD, _)) = graded("tiles")(*args), graded("loop")(*args)
    assert bool(balanced)
    agree("y", y_TD, want_TD, 1e-5)
    agree("dx", got[0], want[0], 1e-5)
    agree("dweight", got[1], np.where(routing.filled_TK, want[1], 0), 1e-5)
    for key in weights:
        agree(f"d{key}", got[2][key], want[2][key], 1e-5)


def test_copy_experts_are_a_function_of_the_routing():
    """MoE++'s copy expert `E(x) = x` needs no back end: zero width plus its combine weight."""
    spec = ExpertsSpec((4, 0, 4, 4), unit=4, tile=8)
    weights = init_weights(jax.random.key(1), spec, D, jnp.float32)
    x_TD = jax.random.normal(jax.random.key(0), (T, D))
    routing = routing_of(routing_tables()["full"], "float32")
    copied_TD = routing.combine_TE()[:, 1:2] * x_TD
    y_TD = expert_ffn(x_TD, routing, weights, spec)[0] + copied_TD
    others = dataclasses.replace(
        routing, weight_TK=jnp.where(routing.expert_TK == 1, 0, routing.weight_TK)
    )
    agree("copy", y_TD, loop(x_TD, others, weights, spec) + copied_TD, 1e-5)


def test_tiles_under_scan_remat_and_vmap():
    spec = SPECS["uniform"]
    x_TD = jax.random.normal(jax.random.key(0), (T, D))
    routing = routing_of(routing_tables()["mixed"], "float32")
    layers = jax.vmap(lambda key: init_weights(key, spec, D, jnp.float32))(
        jax.random.split(jax.random.key(1), 2)
    )

    def scanned(ffn):
        def loss(x_TD, layers):
            layer = jax.checkpoint(lambda x_TD, w: (x_TD + ffn(x_TD, routing, w, spec), None))
            return (jax.lax.scan(layer, x_TD, layers)[0] ** 2).sum()

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(x_TD, layers)

    jax.tree.map(lambda a, b: agree("scan", a, b, 1e-5), scanned(tiles), scanned(loop))
    batched = jax.jit(jax.vmap(lambda x, w: tiles(x, routing, w, spec)))
    got = batched(jnp.stack([x_TD, -x_TD]), layers)
    for i, x in enumerate((x_TD, -x_TD)):
        own = jax.tree.map(lambda leaf: leaf[i], layers)  # noqa: B023
        agree("vmap", got[i], loop(x, routing, own, spec), 1e-5)


def test_bfloat16_accumulates_in_float32():
    spec = SPECS["unequal"]
    weights = init_weights(jax.random.key(1), spec, D, jnp.float32)
    x_TD = jax.random.normal(jax.random.key(0), (T, D))
    routing = routing_of(routing_tables()["full"], "float32")
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (x_TD, weights))
    got = tiles(low[0], routing, low[1], spec)
    want = loop(x_TD, routing, weights, spec)
    assert got.dtype == jnp.bfloat16
    # bfloat16 keeps 8 bits: rounding of inputs, weights and hidden units, measured 6e-3 here.
    assert np.abs(got.astype(np.float32) - want).max() < 2e-2 * np.abs(want).max()


def test_no_buffer_of_one_row_per_assignment():
    """`tiles` never holds `[T*K, D]`: the largest array it makes has T rows of D."""
    num_tokens, slots = 512, 4
    spec = ExpertsSpec((8,) * 4, unit=8, tile=16)
    weights = init_weights(jax.random.key(1), spec, D, jnp.float32)
    routing = dataclasses.replace(
        routing_of(routing_tables()["full"], "float32"),
        expert_TK=jnp.zeros((num_tokens, slots), jnp.int32),
        weight_TK=jnp.zeros((num_tokens, slots)),
        requested_T=jnp.zeros(num_tokens, jnp.int32),
    )

    def loss(x_TD):
        return tiles(x_TD, routing, weights, spec).sum()

    text = jax.jit(jax.grad(loss)).lower(jnp.zeros((num_tokens, D))).as_text()
    assert f"{num_tokens}x{D}xf32" in text
    assert f"{num_tokens * slots}x{D}xf32" not in text


def test_assignments_too_many_for_a_packed_key_are_sorted_stably(monkeypatch):
    from moejax.experts.backends import tiles as module

    table = jnp.asarray(routing_tables()["holes"])
    packed = module._sort_by_expert(table, E)
    huge = module._sort_by_expert(table, 2**31 // table.size)  # (E + 1) * N passes 2**31
    np.testing.assert_array_equal(
        np.asarray(table).reshape(-1)[packed[0]], np.sort(np.asarray(table).reshape(-1))
    )
    np.testing.assert_array_equal(packed[0], huge[0])
