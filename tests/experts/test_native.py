"""The native kernel equals the oracle, whatever the shape, the instruction set and the threads.

These tests need a C++ compiler (or a kernel that was compiled before); without one they fail.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import native_stress
import numpy as np
import pytest
from ffn_battery import SPECS, D, T, agree, battery, ffn_subject, graded, routing_of
from flax import nnx
from native_stress import must, problem

from moejax.config import ConfigError
from moejax.experts import ExpertsSpec, MoeConfig, MoELayer, expert_ffn, init_weights
from moejax.experts.backends import auto, native
from moejax.experts.native import load
from moejax.experts.native.isa import ISAS, cpu_flags
from moejax.routing.routers import TopP


@pytest.fixture(scope="module", autouse=True)
def _kernel():
    must(load)


HERE = [isa.name for isa in ISAS if isa.cpu <= cpu_flags()]
"""What this processor can run; that the others are not chosen: test_native_build.py."""


def sharper(name, backend, **changes):
    """A subject of the battery that is compiled for itself."""
    subject = ffn_subject(name, backend, **changes)
    return dataclasses.replace(subject, compute=lambda *args: subject.compute(*args))


@pytest.mark.parametrize("spec", SPECS)
def test_native_equals_the_oracle(spec):
    battery(ffn_subject(spec, "native"), ("float32",))


@pytest.mark.parametrize("rows_per_token", [0.3, 1.0])
def test_experts_whose_activations_found_no_room_are_computed_again(rows_per_token):
    battery(ffn_subject("arithmetic", "native", rows_per_token=rows_per_token), ("float32",))


@pytest.mark.parametrize("isa", HERE or [None])  # of no values, pytest would skip it
def test_every_instruction_set_equals_the_oracle(isa, monkeypatch):
    assert isa in HERE, "this processor has no instruction set that the kernel is compiled for"
    monkeypatch.setenv("MOEJAX_NATIVE", isa)
    assert load().isa == isa
    battery(sharper("uniform", "native"), ("float32",), ("mixed", "full"))
    compared(LARGE["many_blocks"], sharp=True)


# --- shapes ---------------------------------------------------------------------------------------

# Widths, tokens, D, slots: what the battery is too small for.
LARGE = {
    "many_blocks": ((300, 33, 0, 64), 700, 70, 2),  # several ranges of rows and of hidden units
    "wide_tokens": ((40, 72), 50, 1100, 2),  # D past one packed block
    "whole_panels": ((64, 128, 32), 260, 64, 3),
    "one_unit": ((1, 1), 9, 1, 1),
}


def compared(case, table=None, activation="swiglu", rows_per_token=0.0, sharp=False):
    """Holds `native` to `loop` in values and gradients."""
    args, spec = problem(case, table, activation, rows_per_token)

    def slopes(backend):
        def compute(x_TD, routing, weights):
            return expert_ffn(x_TD, routing, weights, dataclasses.replace(spec, backend=backend))

        return graded(compute)(*args)

    (dx, dweight, dweights), (y, _) = slopes("native")
    (want_dx, want_dweight, want_dweights), (want_y, _) = slopes("loop")
    agree("y", y, want_y, 1e-5)
    agree("dx", dx, want_dx, 1e-5)
    filled = np.asarray(args[3].filled_TK)
    agree("dweight", dweight, np.where(filled, want_dweight, 0), 1e-5)
    for name, want in want_dweights.items():
        agree(f"d{name}", dweights[name], want, 1e-5)


@pytest.mark.parametrize("case", LARGE)
def test_shapes_that_are_multiples_of_nothing(case):
    compared(LARGE[case])


@pytest.mark.parametrize("table", ["all_on_one", "nobody", "out_of_range"])
def test_loads_at_the_ends(table):
    compared(LARGE["many_blocks"], table, rows_per_token=0.5)


def test_no_tokens_at_all():
    spec = dataclasses.replace(SPECS["uniform"], backend="native")
    weights = init_weights(jax.random.key(1), spec, D, jnp.float32)
    routing = jax.tree.map(lambda leaf: leaf[:0], routing_of("full", "float32"))

    def loss(x_TD, weights):
        y_TD, _ = expert_ffn(x_TD, routing, weights, spec)
        return y_TD.sum(), y_TD

    slopes, y_TD = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(jnp.zeros((0, D)), weights)
    assert y_TD.shape == slopes[0].shape == (0, D)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(slopes[1]))


def test_buffers_of_wrong_sizes_are_refused():
    """By the handlers themselves, before anybody divides by a size or writes past an end."""
    (x_TD, weight_TK, weights, routing, dy_TD), spec = problem(LARGE["one_unit"])
    arrays = [weights[name] for name in spec.weight_names]
    attributes = {"widths": np.asarray(spec.widths), "activation": np.int64(0)}
    kept = jnp.zeros(0)

    def refused(target, results, *args):
        shapes = [jax.ShapeDtypeStruct(array.shape, jnp.float32) for array in results]
        with pytest.raises(jax.errors.JaxRuntimeError) as error:
            jax.block_until_ready(jax.ffi.ffi_call(target, shapes)(*args, **attributes))
        return str(error.value)

    def forward(x_TD, arrays, y_TD):
        args = (x_TD, routing.expert_TK, weight_TK, *arrays)
        return refused(load().forward, (y_TD, kept), *args)

    def backward(dy_TD, *results):
        args = (x_TD, routing.expert_TK, weight_TK, kept, dy_TD, *arrays)
        return refused(load().backward, results, *args)

    no_TD, more_TD = jnp.zeros((9, 0)), jnp.zeros((9, 2))
    assert "tokens must have at least one number" in forward(
        no_TD, [jnp.zeros((2, 1, 0))] * 3, jnp.zeros((1, 1))
    )
    assert "results must have the shape of tokens" in forward(x_TD, arrays, more_TD)
    wrong = "gradients must have the shapes of what they belong to"
    right = [x_TD, weight_TK, *arrays]
    assert wrong in backward(more_TD, *right)
    for place in range(len(right)):
        assert wrong in backward(dy_TD, *right[:place], jnp.zeros((7, 7)), *right[place + 1 :])
    assert wrong in backward(dy_TD, *right, arrays[0])


def test_a_NaN_stays_in_its_row():
    spec = dataclasses.replace(SPECS["arithmetic"], backend="native")
    weights = init_weights(jax.random.key(1), spec, D, jnp.float32)
    routing = routing_of("full", "float32")
    x_TD = jax.random.normal(jax.random.key(0), (T, D))
    run = jax.jit(jax.value_and_grad(lambda x: (lambda y: (y.sum(), y))(
        expert_ffn(x, routing, weights, spec)[0]), has_aux=True))  # fmt: skip
    (_, clean_TD), dclean_TD = run(x_TD)
    (_, y_TD), dx_TD = run(x_TD.at[3, 5].set(jnp.nan))
    others = np.arange(T) != 3
    for got, want in ((y_TD, clean_TD), (dx_TD, dclean_TD)):
        assert np.isnan(np.asarray(got)[3]).all()
        np.testing.assert_array_equal(np.asarray(got)[others], np.asarray(want)[others])


# --- transformations ------------------------------------------------------------------------------


def test_under_scan_remat_and_vmap():
    spec = SPECS["uniform"]
    x_TD = jax.random.normal(jax.random.key(0), (T, D))
    routing = routing_of("mixed", "float32")
    layers = jax.vmap(lambda key: init_weights(key, spec, D, jnp.float32))(
        jax.random.split(jax.random.key(1), 2)
    )

    def slopes(backend, wrap):
        named = dataclasses.replace(spec, backend=backend)

        def loss(x_TD, layers):
            layer = wrap(lambda x, w: (x + expert_ffn(x, routing, w, named)[0], None))
            return (jax.lax.scan(layer, x_TD, layers)[0] ** 2).sum()

        one = jax.grad(lambda x, w: (expert_ffn(x, routing, w, named)[0] ** 2).sum(), (0, 1))
        return jax.jit(
            lambda x, layers: (
                jax.grad(loss, argnums=(0, 1))(x, layers),
                jax.vmap(one)(jnp.stack([x, -x]), layers),
            )
        )(x_TD, layers)

    want = slopes("loop", lambda layer: layer)
    for wrap in (lambda layer: layer, jax.checkpoint):
        jax.tree.map(lambda a, b: agree("slope", a, b, 1e-5), slopes("native", wrap), want)


def test_threads_devices_and_repeats_give_the_same_bits():
    """In a process of its own, because in this one XLA may have been denied its threads, without
    which no expert's backward pass is split."""
    flags = "--xla_force_host_platform_device_count=8"
    repository = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, native_stress.__file__],
        env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": repository},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["equal_to_loop"] == 6  # the output, and gradients for all five arrays
    assert said["most_parts"] > 1
    assert said["threads"] == 4 and said["calls"] > 40
    assert said["different"] == 0
    # A bounded scratch: as many buffers as calls can run at once, and nothing that grows.
    assert said["held_after"] <= said["held_before"] + 64 * 2**20


# --- the choice -----------------------------------------------------------------------------------


def lowered(platform="cpu", dtype="float32", **changes):
    spec = dataclasses.replace(SPECS["uniform"], **changes)
    weights = init_weights(jax.random.key(1), spec, D, jnp.dtype(dtype))
    routing = routing_of("mixed", "float32")

    def loss(x_TD, weights):
        return (expert_ffn(x_TD, routing, weights, spec)[0] ** 2).sum()

    traced = jax.jit(jax.grad(loss, (0, 1))).trace(jnp.zeros((T, D), dtype), weights)
    return traced.lower(lowering_platforms=(platform,))


def test_auto_is_native_on_a_cpu():
    text = lowered().as_text()
    assert text.count(f"@{load().forward}") == text.count(f"@{load().backward}") == 1
    assert "stablehlo.while" not in text


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_programs_for_other_platforms_never_ask_for_the_kernel(platform, monkeypatch):
    monkeypatch.setattr(native, "load", lambda: pytest.fail("the kernel was asked for"))
    assert "moejax_experts" not in lowered(platform).as_text()


def test_what_cannot_be_native_is_tiles_with_one_line(monkeypatch, caplog):
    monkeypatch.setattr(auto, "_said", set())
    for _ in range(2):
        assert "moejax_experts" not in lowered(dtype="bfloat16").as_text()
    monkeypatch.setenv("MOEJAX_NATIVE", "off")
    for _ in range(2):
        assert "stablehlo.while" in lowered().as_text()
    said = [record.getMessage() for record in caplog.records if "tiles" in record.getMessage()]
    assert said == [
        "experts run on 'tiles', not on the native kernel: it computes in float32, not bfloat16",
        "experts run on 'tiles', not on the native kernel: MOEJAX_NATIVE=off",
    ]


def test_a_kernel_that_comes_between_the_passes_is_loud(monkeypatch):
    """What `tiles` kept for it is nothing: gradients are NaN, not those of nothing."""
    spec = dataclasses.replace(SPECS["uniform"], backend="auto")
    weights = init_weights(jax.random.key(1), spec, D, jnp.float32)
    routing = routing_of("full", "float32")
    x_TD = jax.random.normal(jax.random.key(0), (T, D))
    monkeypatch.setenv("MOEJAX_NATIVE", "off")
    y_TD, pull = jax.vjp(lambda x, w: expert_ffn(x, routing, w, spec)[0], x_TD, weights)
    monkeypatch.delenv("MOEJAX_NATIVE")
    assert np.isfinite(y_TD).all()
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(pull(jnp.ones_like(y_TD))))


def test_asked_for_by_name_it_is_refused_where_it_cannot_be(monkeypatch):
    nearest = "; nearest valid value backend='auto'"
    for platform, dtype, reason in (
        ("cpu", "bfloat16", "it computes in float32, not bfloat16"),
        ("tpu", "float32", "it is for CPUs, and this program for tpu"),
    ):
        with pytest.raises(ConfigError) as error:
            lowered(platform, dtype, backend="native")
        assert str(error.value) == f"backend='native': {reason}{nearest}"
    monkeypatch.setenv("MOEJAX_NATIVE", "off")
    with pytest.raises(ConfigError) as error:
        lowered(backend="native")
    assert str(error.value) == f"backend='native': MOEJAX_NATIVE=off{nearest}"


def test_what_is_kept_costs_nothing_where_it_is_not_used(monkeypatch):
    """`auto` hands a buffer from pass to pass that only the kernel fills: XLA must leave it out."""
    monkeypatch.setenv("MOEJAX_NATIVE", "off")
    spec = ExpertsSpec((64,) * 4, 64, tile=32)
    layers = jax.vmap(lambda key: init_weights(key, spec, 32, jnp.float32))(
        jax.random.split(jax.random.key(1), 3)
    )
    routing = dataclasses.replace(
        routing_of("full", "float32"),
        expert_TK=jnp.tile(jnp.arange(2, dtype=jnp.int32), (1024, 1)),
        weight_TK=jnp.ones((1024, 2)),
        requested_T=jnp.full(1024, 2, jnp.int32),
        max_rows=2048,
    )

    def temporary(backend):
        named = dataclasses.replace(spec, backend=backend)

        def loss(x_TD, layers):
            layer = lambda x, w: (x + expert_ffn(x, routing, w, named)[0], None)  # noqa: E731
            return (jax.lax.scan(layer, x_TD, layers)[0] ** 2).sum()

        step = jax.jit(jax.grad(loss, (0, 1))).lower(jnp.zeros((1024, 32)), layers).compile()
        return step.memory_analysis().temp_size_in_bytes

    kept = native.saved(jnp.zeros((1024, 32)), routing.weight_TK, {}, routing, spec).shape[0] * 4
    assert kept == 2 * 2048 * 64 * 4
    assert temporary("auto") < temporary("tiles") + kept / 8


def test_the_kept_buffer_follows_what_is_planned_not_the_worst_case():
    layer = MoELayer(32, MoeConfig(8, router=TopP(p=0.5, k_max=8)), rngs=nnx.Rngs(0))
    x_TD, weight_TK = jnp.zeros((100, 32)), jnp.zeros((100, 8))
    routing = dataclasses.replace(routing_of("full", "float32"), max_rows=800)
    size = native.saved(x_TD, weight_TK, {}, routing, layer.spec).shape[0]
    assert size == 2 * 128 * min(800, round(100 * layer.spec.rows_per_token))
    assert native.saved(x_TD.astype(jnp.bfloat16), weight_TK, {}, routing, layer.spec).shape == (0,)
