"""The `grouped` back end: its staircase, its buffer, its matmuls, and the platform's choice."""

import dataclasses
import functools
import importlib.util
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ffn_battery import SPECS, D, E, T, agree, battery, ffn_subject, routing_of
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from native_stress import must

from moejax.config.knobs import ConfigError
from moejax.experts import ExpertsSpec, MoeConfig, MoELayer, expert_ffn, init_weights
from moejax.experts.backends import grouped as grouped_module
from moejax.experts.backends import grouped_matmul
from moejax.experts.backends.grouped import grouped, staircase
from moejax.experts.backends.grouped_matmul import MATMULS, megablox_tiling, products
from moejax.experts.backends.loop import loop
from moejax.experts.native import load
from moejax.experts.platform import by_platform


def test_megablox_equals_the_oracle():
    """Interpreted: what a kernel does not write is NaN, so nothing may read it."""
    battery(ffn_subject("explicit", "grouped", "megablox"), dtypes=("float32",))


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["uniform", "arithmetic"])
def test_megablox_equals_the_oracle_for_more_widths(spec):
    battery(ffn_subject(spec, "grouped", "megablox"), dtypes=("float32",))


# --- the staircase --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPECS)
def test_every_storage_unit_is_in_one_step_of_the_staircase(name):
    spec = SPECS[name]
    steps = staircase(spec)
    units = [unit for step in steps for unit in step.units]
    assert sorted(units) == list(range(spec.num_units))
    assert len(steps) == len({width for width in spec.widths if width})
    for step, wider in itertools.pairwise(steps):
        assert step.experts[: len(wider.experts)] == wider.experts  # so rows are a prefix
    for expert, width in enumerate(spec.widths):
        assert sum(step.width for step in steps if expert in step.experts) == width


def test_the_staircase_of_three_widths():
    steps = staircase(ExpertsSpec((2, 4, 0, 6), unit=2))
    assert [(step.experts, step.width, step.units) for step in steps] == [
        ((3, 1, 0), 2, (3, 1, 0)),
        ((3, 1), 2, (4, 2)),
        ((3,), 2, (5,)),
    ]


# --- the buffer -----------------------------------------------------------------------------------


def test_the_buffer_has_max_rows_rows_and_they_suffice_when_all_are_filled():
    """400 of 2048 slots are filled and `max_rows` says so: a buffer of 512 rows, not of 2048."""
    num_tokens, slots, filled = 512, 4, 400
    spec = ExpertsSpec((8,) * 4, unit=8, backend="grouped")
    weights = init_weights(jax.random.key(1), spec, D, jnp.float32)
    expert_TK = np.full((num_tokens, slots), E, np.int32)
    expert_TK[:filled, 1] = np.random.default_rng(0).integers(0, E, filled)
    routing = dataclasses.replace(
        routing_of("full", "float32"),
        expert_TK=jnp.asarray(expert_TK),
        weight_TK=jnp.where(expert_TK < E, 0.5, 0.0),
        requested_T=jnp.asarray((expert_TK < E).sum(-1), jnp.int32),
        max_rows=filled,
    )
    x_TD = jax.random.normal(jax.random.key(0), (num_tokens, D))
    compute = jax.jit(functools.partial(grouped, spec=spec))
    agree("y", compute(x_TD, routing, weights), loop(x_TD, routing, weights, spec), 1e-5)
    text = compute.lower(x_TD, routing, weights).as_text()
    assert "512x12xf32" in text
    assert "2048x12xf32" not in text
    # One row less than there are: the last one must be missed, or the test above proves nothing.
    short = dataclasses.replace(routing, max_rows=128)
    assert not np.allclose(compute(x_TD, short, weights), compute(x_TD, routing, weights))


@pytest.mark.parametrize("spec", ["uniform", "explicit"])
def test_a_buffer_that_is_too_small_takes_more_passes(spec, monkeypatch):
    """16 rows at a time of up to 84, in values and gradients."""
    monkeypatch.setattr(grouped_module, "ROW_TILES", (8,))
    battery(ffn_subject(spec, "grouped", rows_per_token=0.4), dtypes=("float64",))


# --- the matmuls ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ragged_dot", "megablox"])
def test_products_against_numpy(name):
    """nt, nn and tn, with a group of no rows and rows of no group."""
    random = np.random.default_rng(0)
    sizes = np.array([50, 0, 77], np.int32)
    a, b = (random.normal(size=(256, width)).astype(np.float32) for width in (24, 600))
    w = random.normal(size=(3, 24, 600)).astype(np.float32)
    group = np.repeat(np.arange(3), sizes)
    rest = ((0, 256 - len(group)), (0, 0))
    want_nt = np.pad(np.einsum("rb,rab->ra", b[: len(group)], w[group]), rest)
    want_nn = np.pad(np.einsum("ra,rab->rb", a[: len(group)], w[group]), rest)
    want_tn = np.stack(
        [a[: len(group)][group == g].T @ b[: len(group)][group == g] for g in (0, 1, 2)]
    )
    nt, nn, tn = (jax.jit(product) for product in products(name, "cpu", jnp.dtype("float32")))
    agree("nt", nt(b, w, sizes), want_nt, 1e-5)
    agree("nn", nn(a, w, sizes), want_nn, 1e-5)
    agree("tn", tn(a, b, sizes), want_tn, 1e-5)


def test_what_a_kernel_leaves_alone_is_masked(monkeypatch):
    """Without the mask the rows of no group come out as NaN, so the tests above would notice."""
    monkeypatch.setattr(grouped_matmul, "_only_groups", lambda out_RN, sizes_G: out_RN)
    nn = products("megablox", "cpu", jnp.dtype("float32"))[1]
    out = jax.jit(nn)(jnp.ones((128, 8)), jnp.ones((2, 8, 8)), jnp.array([3, 4], jnp.int32))
    assert np.isnan(out[7:]).all() and not np.isnan(out[:7]).any()


def test_what_auto_means():
    named = {
        platform: grouped_matmul.chosen("auto", platform) for platform in ("cpu", "tpu", "cuda")
    }
    assert named == {"cpu": "ragged_dot", "tpu": "megablox", "cuda": "ragged_dot"}
    assert [grouped_matmul.chosen(name, "tpu") for name in MATMULS] == list(MATMULS)


@pytest.mark.parametrize(
    "platform,dtype,message",
    [
        ("cuda", "float32", "a kernel for TPUs, but the program is for cuda"),
        ("tpu", "float64", "computes float32 and bfloat16, but x is float64"),
    ],
)
def test_a_matmul_that_cannot_run_is_refused_with_one_that_can(platform, dtype, message):
    with pytest.raises(ConfigError) as error:
        products("megablox", platform, jnp.dtype(dtype))
    assert str(error.value) == (
        f"grouped_matmul='megablox': {message}; nearest valid value 'ragged_dot'"
    )


def test_an_unknown_matmul_is_refused():
    with pytest.raises(ConfigError) as error:
        products("ragged", "cpu", jnp.dtype("float32"))
    assert str(error.value) == (
        "grouped_matmul='ragged': must be auto, ragged_dot, megablox, tokamax; "
        "did you mean 'ragged_dot'?"
    )


def test_a_missing_tokamax_is_an_error_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    line = (
        "='tokamax': the package tokamax is not installed; install it with "
        "pip install \"moejax[tpu]\"; nearest valid value 'auto'"
    )
    with pytest.raises(ConfigError) as error:
        MoELayer(D, MoeConfig(grouped_matmul="tokamax"), rngs=nnx.Rngs(0))
    assert str(error.value) == "moe.grouped_matmul" + line
    with pytest.raises(ConfigError) as error:
        products("tokamax", "tpu", jnp.dtype("float32"))
    assert str(error.value) == "grouped_matmul" + line


VMEM = 16 * 2**20
WIDTHS = ((12, 40), (128, 1024), (853, 1500), (2048, 5632), (7168, 2048))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_megablox_tiles_fit(dtype):
    dtype = jnp.dtype(dtype)
    size = dtype.itemsize
    for rows in (128, 384, 4096, 4608, 65536):
        for width_in, width_out in WIDTHS:
            for groups in (1, 8, 256):
                row, into, out = megablox_tiling((rows, width_in), width_out, groups, dtype)
                assert rows % row == 0 and row in (128, 256, 512)
                for side, width in ((into, width_in), (out, width_out)):
                    # A block is as wide as the array, or a multiple of 128.
                    assert side == width or side % 128 == 0
                    assert -(-width // side) * side - width < 128 * -(-width // side)
                operands = [row * into, into * out, row * out]
                sums = max(row * out, into * out)
                assert 2 * size * sum(operands) + 4 * sums <= VMEM, (rows, width_in, width_out)
    assert megablox_tiling((65536, 128), 128, 8, dtype)[0] == 512
    assert megablox_tiling((65536, 128), 128, 256, dtype)[0] == 256
    assert megablox_tiling((4096, 128), 128, 256, dtype)[0] == 128


# --- the platform's choice ------------------------------------------------------------------------


def lowered_text(platform, **fields):
    spec = ExpertsSpec((128, 256, 128, 128), unit=128, **fields)
    x_TD = jax.ShapeDtypeStruct((256, 128), jnp.float32)
    weights = jax.eval_shape(lambda: init_weights(jax.random.key(0), spec, 128, jnp.float32))
    routing = dataclasses.replace(
        routing_of("full", "float32"),
        expert_TK=jax.ShapeDtypeStruct((256, 2), jnp.int32),
        weight_TK=jax.ShapeDtypeStruct((256, 2), jnp.float32),
        requested_T=jax.ShapeDtypeStruct((256,), jnp.int32),
        max_rows=512,
    )

    def loss(x_TD, weights, routing):
        return expert_ffn(x_TD, routing, weights, spec)[0].sum()

    traced = jax.jit(jax.value_and_grad(loss, (0, 1))).trace(x_TD, weights, routing)
    return traced.lower(lowering_platforms=(platform,)).as_text()


KERNEL = {"cpu": "moejax_experts_forward", "tpu": "tpu_custom_call", "cuda": "chlo.ragged_dot"}


@pytest.mark.parametrize("platform", KERNEL)
def test_the_platform_that_a_program_is_lowered_for_chooses(platform):
    """On this CPU machine: `native` for a CPU, megablox for a TPU, `ragged_dot` for a GPU."""
    if platform == "cpu":
        must(load)
    text = lowered_text(platform)
    found = {name for name, kernel in KERNEL.items() if kernel in text}
    assert found == {platform}


def test_a_named_matmul_beats_the_platform():
    text = lowered_text("tpu", backend="grouped", grouped_matmul="ragged_dot")
    assert "chlo.ragged_dot" in text
    assert "tpu_custom_call" not in text
    with pytest.raises(ConfigError, match="a kernel for TPUs, but the program is for cuda"):
        lowered_text("cuda", backend="grouped", grouped_matmul="megablox")


def test_only_the_platform_at_hand_is_traced():
    traced = []

    def double(platform, x, factor):
        traced.append(platform)
        return {"y": factor * x}

    def call(x):
        return by_platform(double, {"y": x}, (x,), 2.0)["y"]

    x = jnp.arange(3.0)
    assert call(x).tolist() == [0, 2, 4]
    assert jax.jit(call)(x).tolist() == [0, 2, 4]
    assert set(traced) == {"cpu"}
    assert jax.vmap(call, in_axes=1, out_axes=1)(jnp.ones((3, 2))).tolist() == [[2, 2]] * 3
    jax.jit(call).trace(x).lower(lowering_platforms=("tpu", "cuda"))
    assert set(traced) == {"cpu", "tpu", "cuda"}


def test_auto_under_scan_remat_and_vmap():
    spec = SPECS["explicit"]
    x_TD = jax.random.normal(jax.random.key(0), (T, D))
    routing = routing_of("mixed", "float32")
    layers = jax.vmap(lambda key: init_weights(key, spec, D, jnp.float32))(
        jax.random.split(jax.random.key(1), 2)
    )

    def scanned(backend):
        named = dataclasses.replace(spec, backend=backend)

        def loss(x_TD, layers):
            def layer(x_TD, weights):
                return x_TD + expert_ffn(x_TD, routing, weights, named)[0], None

            return (jax.lax.scan(jax.checkpoint(layer), x_TD, layers)[0] ** 2).sum()

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(x_TD, layers)

    def batched(backend):
        named = dataclasses.replace(spec, backend=backend)
        one = jax.grad(lambda x, w: (expert_ffn(x, routing, w, named)[0] ** 2).sum(), (0, 1))
        return jax.jit(jax.vmap(one))(jnp.stack([x_TD, -x_TD]), layers)

    jax.tree.map(lambda a, b: agree("scan", a, b, 1e-5), scanned("auto"), scanned("loop"))
    jax.tree.map(lambda a, b: agree("vmap", a, b, 1e-5), batched("auto"), batched("loop"))


# --- eight devices --------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["auto", "grouped"])
@pytest.mark.parametrize("how", ["jit", "shard_map"])
def test_tokens_sharded_over_eight_devices_equal_one(devices, how, backend):
    spec = dataclasses.replace(SPECS["explicit"], backend=backend)
    weights = init_weights(jax.random.key(1), spec, D, jnp.float32)
    routing = routing_of("mixed", "float32")
    # T = 21 is no multiple of 8: three tokens of nobody.
    expert_TK = jnp.pad(routing.expert_TK, ((0, 3), (0, 0)), constant_values=E)
    weight_TK = jnp.pad(routing.weight_TK, ((0, 3), (0, 0)))
    x_TD = jax.random.normal(jax.random.key(0), (24, D))

    def loss(x_TD, weight_TK, weights, expert_TK):
        local = dataclasses.replace(
            routing,
            expert_TK=expert_TK,
            weight_TK=weight_TK,
            requested_T=jnp.zeros(len(x_TD), jnp.int32),
            max_rows=expert_TK.size,
        )
        return (expert_ffn(x_TD, local, weights, spec)[0] ** 2).sum()

    args = (x_TD, weight_TK, weights, expert_TK)
    want = jax.jit(jax.grad(loss, (0, 1, 2)))(*args)
    mesh = jax.make_mesh((8,), ("data",), devices=devices, axis_types=(AxisType.Auto,))
    tokens, everywhere = PartitionSpec("data"), PartitionSpec()
    specs = (tokens, tokens, everywhere, tokens)
    if how == "shard_map":
        one_shard = loss

        @functools.partial(
            jax.shard_map, mesh=mesh, in_specs=specs, out_specs=everywhere, check_vma=False
        )
        def loss(*args):
            return jax.lax.psum(one_shard(*args), "data")

    place = [NamedSharding(mesh, spec) for spec in specs]
    with jax.set_mesh(mesh):
        got = jax.jit(jax.grad(loss, (0, 1, 2)))(*map(jax.device_put, args, place))
    jax.tree.map(lambda a, b: agree(how, a, b, 1e-5), got, want)
