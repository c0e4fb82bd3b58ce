"""Every back end, and everything behind a layer's router, equals the oracle; and the battery would
notice if it did not."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ffn_battery import (
    SPECS,
    D,
    E,
    T,
    agree,
    battery,
    ffn_subject,
    graded,
    layer_subject,
    routing_of,
    routing_tables,
)
from routers_under_test import ROUTERS, make_inputs, route

from moejax.config.widths import STRATEGIES
from moejax.experts import BACKENDS, ExpertsSpec, expert_ffn, init_weights
from moejax.experts.backends.grouped import grouped
from moejax.experts.backends.loop import loop
from moejax.experts.backends.tiles import tiles
from moejax.experts.spec import ACTIVATIONS, GATED


def test_the_battery_has_every_width_strategy_and_every_activation():
    assert set(SPECS) == {*STRATEGIES, "explicit"}
    assert sorted(spec.activation for spec in SPECS.values()) == sorted(ACTIVATIONS)
    assert len({spec.widths for spec in SPECS.values()}) == len(SPECS)
    assert {"top_k", "top_p"} < set(routing_tables())


AT_ONCE = [("uniform", "float64"), ("arithmetic", "float64"), ("explicit", "float64")]
"""What `grouped` is held to in `make test`; it compiles for longer than `tiles`."""


def oracle_cases():
    for backend, spec, dtype in itertools.product(BACKENDS, SPECS, ("float64", "float32")):
        slow = backend == "grouped" and (spec, dtype) not in AT_ONCE
        # `native` computes in float32 and has a file of its own (test_native.py).
        if backend not in ("loop", "native"):
            yield pytest.param(backend, spec, dtype, marks=[pytest.mark.slow] * slow)


@pytest.mark.parametrize("backend,spec,dtype", list(oracle_cases()))
def test_backend_equals_the_oracle(backend, spec, dtype):
    battery(ffn_subject(spec, backend), dtypes=(dtype,))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_everything_behind_the_router_equals_its_definition(dtype):
    """FFN, constant, copy and zero experts and the gated shared expert, values and gradients."""
    battery(layer_subject(), dtypes=(dtype,))


def test_B7_padding_every_expert_to_the_widest_changes_nothing():
    """Hidden units past an expert's width are masked before the down projection (methods B.6)."""
    spec = SPECS["arithmetic"]
    weights = init_weights(jax.random.key(1), spec, D, jnp.float32)
    x_TD = jax.random.normal(jax.random.key(2), (T, D))
    routing = routing_of("mixed", jnp.float32)
    widest = max(spec.widths)
    exists_EF = np.arange(widest) < np.asarray(spec.widths)[:, None]
    padded = {}
    for name, rows_NUD in weights.items():
        # Rubbish where nothing is: only the mask keeps it out.
        padded[name] = np.full((E, widest, D), 7.0, np.float32)
        padded[name][exists_EF] = np.asarray(rows_NUD).reshape(-1, D)
    into = [padded[name] for name in spec.weight_names if name != "down_NUD"]
    hidden_TEF = ACTIVATIONS[spec.activation](*(jnp.einsum("td,efd->tef", x_TD, w) for w in into))
    hidden_TEF = jnp.where(exists_EF, hidden_TEF, 0)
    out_TED = jnp.einsum("tef,efd->ted", hidden_TEF, padded["down_NUD"])
    want = jnp.einsum("te,ted->td", routing.combine_TE(), out_TED)
    agree("padded", loop(x_TD, routing, weights, spec), want, 1e-6)


NUMPY = {
    "swiglu": lambda g, u: g / (1 + np.exp(-g)) * u,
    "geglu": lambda g, u: NUMPY["gelu"](g) * u,
    "gelu": lambda u: u / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3))),
    "relu": lambda u: np.maximum(u, 0),
    "relu2": lambda u: np.maximum(u, 0) ** 2,
}


@pytest.mark.parametrize("name", SPECS)
def test_the_oracle_itself_against_numpy(name):
    spec = SPECS[name]
    with jax.enable_x64(True):
        x_TD = np.asarray(jax.random.normal(jax.random.key(0), (T, D), "float64"))
        weights = init_weights(jax.random.key(1), spec, D, jnp.dtype("float64"))
        routing = routing_of("holes", "float64")
        got = jax.jit(functools.partial(loop, spec=spec))(x_TD, routing, weights)
    assert set(weights) == set(spec.weight_names)
    assert len(weights) == (3 if spec.activation in GATED else 2)  # no gate array without a gate
    *into, down = (np.asarray(weights[n]).reshape(-1, D) for n in spec.weight_names)
    want = np.zeros((T, D))
    first = np.cumsum([0, *spec.widths])
    for t, k in np.ndindex(*routing.expert_TK.shape):
        e = int(routing.expert_TK[t, k])
        if e < E:
            rows = slice(first[e], first[e + 1])
            hidden = NUMPY[spec.activation](*(matrix[rows] @ x_TD[t] for matrix in into))
            want[t] += float(routing.weight_TK[t, k]) * (hidden @ down[rows])
    agree("numpy", got, want, 1e-12)


# --- deliberate mutations: each must turn the battery red ----------------------------------------


def weight_detached(compute):
    def mutant(x_TD, routing, weights):
        fixed = dataclasses.replace(routing, weight_TK=jax.lax.stop_gradient(routing.weight_TK))
        return compute(x_TD, fixed, weights)

    return graded(mutant)


def shared_gate_detached(compute):
    def mutant(x_TD, routing, weights):
        fixed = jax.lax.stop_gradient(weights["gates"]["shared_D"])
        return compute(x_TD, routing, weights | {"gates": weights["gates"] | {"shared_D": fixed}})

    return graded(mutant)


# These act on what goes into a compiled program, or comes out of it: nothing to compile again.


def one_row_dropped(compute):
    def mutant(x_TD, weight_TK, weights, routing, dy_TD):
        table = np.array(routing.expert_TK)
        token, slot = np.argwhere(table < routing.num_experts)[0]
        table[token, slot] = routing.num_experts
        routing = dataclasses.replace(routing, expert_TK=jnp.asarray(table))
        return graded(compute)(x_TD, weight_TK, weights, routing, dy_TD)

    return mutant


def counts_doubled(compute):
    def mutant(*args):
        gradients, (y_TD, ledger) = graded(compute)(*args)
        return gradients, (y_TD, dataclasses.replace(ledger, kept=2 * ledger.kept))

    return mutant


def constant_experts_mixed_up(compute):
    """[a2, a1] = softmax(W_c x)."""

    def mutant(x_TD, weight_TK, weights, routing, dy_TD):
        gates = weights["gates"] | {"mix_C2D": weights["gates"]["mix_C2D"][:, ::-1]}
        return graded(compute)(x_TD, weight_TK, weights | {"gates": gates}, routing, dy_TD)

    return mutant


ANY_SUBJECT = [
    (weight_detached, "dweight: error"),
    (one_row_dropped, "y: error"),
    (counts_doubled, "ledger does not balance"),
]


@pytest.mark.parametrize("mutate,symptom", ANY_SUBJECT)
def test_the_battery_turns_red_for(mutate, symptom):
    subject = ffn_subject("uniform", "tiles")
    with pytest.raises(AssertionError, match=symptom):
        battery(subject, ("float32",), ("mixed",), mutate(subject.compute))


@pytest.mark.parametrize(
    "mutate,symptom",
    [
        *ANY_SUBJECT,
        (constant_experts_mixed_up, "y: error"),
        (shared_gate_detached, "dgates/shared_D: error"),
    ],
)
def test_the_battery_of_the_layer_turns_red_for(mutate, symptom):
    subject = layer_subject()
    with pytest.raises(AssertionError, match=symptom):
        battery(subject, ("float32",), ("mixed",), mutate(subject.compute))


# --- shapes, transformations, dtypes -------------------------------------------------------------


def test_one_token_alone():
    spec = SPECS["arithmetic"]
    weights = init_weights(jax.random.key(1), spec, D, jnp.float32)
    x_TD = jax.random.normal(jax.random.key(0), (1, D))
    routing = jax.tree.map(lambda leaf: leaf[:1], routing_of("full", "float32"))
    want, *both = (
        jax.jit(functools.partial(ffn, spec=spec))(x_TD, routing, weights)
        for ffn in (loop, tiles, grouped)
    )
    for got in both:
        agree("one token", got, want, 1e-5)


WIDE_SPEC = ExpertsSpec((4, 0, 8, 4, 4, 6, 4, 2), unit=2, tile=8)
"""One expert set for every kind of routing."""


@functools.cache
def graded_by(backend):
    spec = dataclasses.replace(WIDE_SPEC, backend=backend)

    def loss(x_TD, weight_TK, weights, routing):
        routing = dataclasses.replace(routing, weight_TK=weight_TK)
        y_TD, ledger = expert_ffn(x_TD, routing, weights, spec)
        return (y_TD**2).sum(), (y_TD, ledger.balanced)

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))


@pytest.mark.parametrize("backend", ["tiles", pytest.param("grouped", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ROUTERS)
def test_every_router_passes_the_oracle(name, backend):
    weights = init_weights(jax.random.key(1), WIDE_SPEC, D, jnp.float32)
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
        max_rows=8 * T,
    )
    args = (x_TD, routing.weight_TK, weights, routing)
    (got, (y_TD, balanced)), (want, (want_TD, _)) = (
        graded_by(backend)(*args),
        graded_by("loop")(*args),
    )
    assert bool(balanced)
    agree("y", y_TD, want_TD, 1e-5)
    agree("dx", got[0], want[0], 1e-5)
    agree("dweight", got[1], np.where(routing.filled_TK, want[1], 0), 1e-5)
    for key in weights:
        agree(f"d{key}", got[2][key], want[2][key], 1e-5)


def test_tiles_under_scan_remat_and_vmap():
    spec = SPECS["uniform"]
    x_TD = jax.random.normal(jax.random.key(0), (T, D))
    routing = routing_of("mixed", "float32")
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


@pytest.mark.parametrize("backend", [tiles, grouped], ids=["tiles", "grouped"])
def test_bfloat16_accumulates_in_float32(backend):
    spec = SPECS["arithmetic"]
    weights = init_weights(jax.random.key(1), spec, D, jnp.float32)
    x_TD = jax.random.normal(jax.random.key(0), (T, D))
    routing = routing_of("full", "float32")
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (x_TD, weights))
    got = jax.jit(functools.partial(backend, spec=spec))(low[0], routing, low[1])
    want = jax.jit(functools.partial(loop, spec=spec))(x_TD, routing, weights)
    assert got.dtype == jnp.bfloat16
    # bfloat16 keeps 8 bits: rounding of inputs, weights and hidden units, measured 6e-3 here.
    assert np.abs(got.astype(np.float32) - want).max() < 2e-2 * np.abs(want).max()


def test_no_buffer_of_one_row_per_assignment():
    """`tiles` never holds `[T*K, D]`: the largest array it makes has T rows of D."""
    num_tokens, slots = 512, 4
    spec = ExpertsSpec((8,) * 4, unit=8, tile=16)
    weights = init_weights(jax.random.key(1), spec, D, jnp.float32)
    routing = dataclasses.replace(
        routing_of("full", "float32"),
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
    from moejax.experts import plan as module

    spec = SPECS["explicit"]
    routing = routing_of("holes", "float32")
    packed = module.plan_of(routing, spec)
    monkeypatch.setattr(module, "PACKED_KEYS", (E + 1) * routing.expert_TK.size)
    stable = module.plan_of(routing, spec)
    for got, want in zip(jax.tree.leaves(stable), jax.tree.leaves(packed), strict=True):
        np.testing.assert_array_equal(got, want)
    # Experts have widths 8, 0, 4, 8: 0 and 3 come first, 1 and the empty slots last.
    rank = np.array([0, 3, 2, 1, E])
    in_order = rank[np.asarray(routing.expert_TK).reshape(-1)[packed.order_N]]
    np.testing.assert_array_equal(in_order, np.sort(in_order))
    for expert in range(E):
        first, count = int(packed.start_E[expert]), int(packed.count_E[expert])
        assert count > 0
        assert (in_order[first : first + count] == rank[expert]).all()
