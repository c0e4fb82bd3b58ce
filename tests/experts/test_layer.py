"""The MoE layer as an ordinary `nnx.Module`, on one device and on eight."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ffn_battery import agree
from flax import nnx
from hand_routing import hand_routing
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from moejax.config import ConfigError
from moejax.config.counts import LayerShape, ModelShape, parameters
from moejax.config.widths import WidthPlan
from moejax.experts import DenseFFN, MoeConfig, MoELayer, RouterState, ZeroCompute
from moejax.experts.spec import ACTIVATIONS, GATED, projections
from moejax.routing import CapacityConfig, LossesConfig, RouterInputs
from moejax.routing.losses import LoadBalance
from moejax.routing.routers import ExpertChoice, MoEPlusPlus, ReMoE, SigmoidBias, TopK, TopP

D = 16
HETERO = WidthPlan("arithmetic", mean=16, unit=1)
ATTENTION = LayerShape(heads=0, kv_heads=0, head_dim=8)


def make(**kwargs):
    config = MoeConfig(**({"widths": WidthPlan(mean=16), "tile": 8} | kwargs))
    return MoELayer(D, config, rngs=nnx.Rngs(0))


@jax.jit
def call(layer, x):
    """One compiled program is made sooner than an eager call's hundred small ones."""
    return layer(x)


@jax.jit
def forward(layer, x, inputs):
    return layer.forward(x, inputs)


@functools.partial(jax.jit, static_argnames="num_sequences")
def measured(layer, x, inputs, num_sequences=1):
    out = layer.forward(x, inputs)
    return out, layer.stats(out, inputs, num_sequences)


@pytest.mark.parametrize("backend", ["loop", "tiles", "auto"])
def test_call_returns_output_routing_and_ledger(backend):
    layer = make(router=TopP(p=0.3), widths=HETERO, backend=backend)
    x = jax.random.normal(jax.random.key(0), (2, 5, D))
    y, routing, ledger = call(layer, x)
    assert y.shape == x.shape and y.dtype == x.dtype
    assert routing.expert_TK.shape == (10, 8)
    assert bool(ledger.balanced) and int(ledger.kept) == int(routing.filled_TK.sum())


@pytest.mark.parametrize("activation", ["swiglu", "relu2"])
def test_one_expert_is_a_dense_ffn(activation):
    layer = make(experts=1, router=TopK(k=1), activation=activation)
    dense = DenseFFN(D, 16, rngs=nnx.Rngs(1), activation=activation)
    names = projections(activation)
    assert set(layer.experts) == {f"{name}_NUD" for name in names}
    assert set(nnx.to_pure_dict(nnx.state(dense))) == {f"{name}_FD" for name in names}
    for name in names:
        layer.experts[f"{name}_NUD"][...] = getattr(dense, f"{name}_FD")[...][None]
    x = jax.random.normal(jax.random.key(0), (7, D))
    agree("dense", call(layer, x)[0], call(dense, x), 1e-5)


def test_H3_copies_of_a_dense_ffn_are_the_dense_ffn_when_weights_sum_to_one():
    """Sparse upcycling at step 0; with raw probabilities the output is scaled by their sum."""
    dense = DenseFFN(D, 16, rngs=nnx.Rngs(1))
    x = jax.random.normal(jax.random.key(0), (7, D))
    want = call(dense, x)
    for renormalise in (True, False):
        layer = make(router=TopK(k=2, renormalise=renormalise, init_std=0.5))
        for name in projections("swiglu"):
            copies = jnp.stack([getattr(dense, f"{name}_FD")[...]] * 8)
            layer.experts[f"{name}_NUD"][...] = copies.reshape(layer.experts[f"{name}_NUD"].shape)
        y, routing, _ = call(layer, x)
        gates_T = np.asarray(routing.weight_TK).sum(-1)
        assert np.allclose(gates_T, 1) == renormalise
        agree("upcycled", y, np.asarray(want) * gates_T[:, None], 1e-5)


@pytest.mark.parametrize("activation", ["swiglu", "relu2"])
def test_C9_a_shared_expert_is_added_and_two_are_one_wide(activation):
    plain = make(activation=activation)
    shared = make(activation=activation, shared_width=24)
    x = jax.random.normal(jax.random.key(0), (7, D))
    wide = shared.shared
    agree("shared", call(shared, x)[0], call(plain, x)[0] + call(wide, x), 1e-5)
    halves = []
    for rows in (slice(0, 10), slice(10, 24)):
        half = DenseFFN(D, 1, rngs=nnx.Rngs(2), activation=activation)
        for name in projections(activation):
            setattr(half, f"{name}_FD", nnx.Param(getattr(wide, f"{name}_FD")[...][rows]))
        halves.append(call(half, x))
    agree("two of them", sum(halves), call(wide, x), 1e-5)


def test_a_gated_shared_expert_is_scaled_by_a_sigmoid_of_the_token():
    """Qwen2-MoE: `sigmoid(w x) shared(x)`; half of it at w = 0, all of it at large w x."""
    plain, gated = make(), make(shared_width=24, shared_gate=True)
    assert gated.gates["shared_D"].shape == (D,) and 0 < np.std(gated.gates["shared_D"]) < 0.05
    x = jnp.abs(jax.random.normal(jax.random.key(0), (7, D)))
    routed, shared = call(plain, x)[0], call(gated.shared, x)
    for fill, share in ((0.0, 0.5), (100.0, 1.0), (-100.0, 0.0)):
        gated.gates["shared_D"][...] = jnp.full(D, fill)
        agree("gated", call(gated, x)[0], routed + share * shared, 1e-5)


def test_gates_are_float32_whatever_the_model_is():
    config = MoeConfig(shared_width=8, shared_gate=True, zero_compute=ZeroCompute(constant=1))
    layer = nnx.eval_shape(
        lambda: MoELayer(D, config, rngs=nnx.Rngs(0), param_dtype=jnp.dtype("bfloat16"))
    )
    dtypes = {name: value.dtype.name for name, value in layer.gates.items()}
    assert dtypes == {"mix_C2D": "float32", "shared_D": "float32", "bias_CD": "bfloat16"}


def test_capacity_drops_are_counted_and_contribute_nothing():
    layer = make(capacity=CapacityConfig(factor=0.5), router=TopK(k=2))
    x = jax.random.normal(jax.random.key(0), (32, D))
    out, stats = measured(layer, x, RouterInputs.of(32))
    assert int(out.ledger.capacity) > 0 and bool(out.ledger.balanced)
    dropped = np.asarray(out.kept.active_T) == 0
    assert dropped.any()
    assert not np.asarray(out.y_TD)[dropped].any()
    assert int(stats.count_E.sum()) == 64
    assert int(stats.kept_E.sum()) == int(out.ledger.kept)
    assert stats.count_BE is None


def test_statistics_per_sequence_only_when_a_loss_needs_them():
    losses = LossesConfig(load_balance=LoadBalance(0.1, scope="sequence"))
    layer = make(losses=losses)
    x = jax.random.normal(jax.random.key(0), (8, D))
    inputs = RouterInputs.of(8, sequence_T=jnp.arange(8) // 4)
    _, stats = measured(layer, x, inputs, num_sequences=2)
    assert stats.count_BE.shape == (2, 8)
    np.testing.assert_array_equal(stats.count_BE.sum(0), stats.count_E)
    np.testing.assert_allclose(stats.prob_BE.sum(0), stats.prob_E, rtol=1e-5)
    assert stats.tokens_B.tolist() == [4, 4]


def test_router_state_is_a_variable_that_no_gradient_reaches():
    layer = make(router=SigmoidBias())
    _, params, state = nnx.split(layer, nnx.Param, RouterState)
    assert set(nnx.to_pure_dict(state)) == {"router_state"}
    assert "router_state" not in nnx.to_pure_dict(params)
    x = jax.random.normal(jax.random.key(0), (9, D))
    before = call(layer, x)[1].expert_TK
    layer.router_state["bias_E"][...] = jnp.arange(8.0)
    assert call(layer, x)[1].expert_TK.tolist() == [[7, 6]] * 9 != before.tolist()


def test_the_carry_reaches_the_next_router():
    layer = make(router=MoEPlusPlus())
    x = jax.random.normal(jax.random.key(0), (9, D))
    first = forward(layer, x, RouterInputs.of(9))
    second = forward(layer, x, RouterInputs.of(9, carry_TE=first.carry_TE))
    assert first.carry_TE.shape == (9, 8)
    assert not np.allclose(first.routing.logits_TE, second.routing.logits_TE)


@pytest.mark.parametrize("router", [ExpertChoice(), ReMoE()])
def test_routers_that_fill_by_rows(router):
    layer = make(router=router)
    x = jax.random.normal(jax.random.key(0), (16, D))
    y, routing, ledger = call(layer, x)
    assert np.isfinite(y).all() and bool(ledger.balanced)
    if isinstance(router, ExpertChoice):  # methods H.2: exactly C tokens per expert
        assert routing.count_E.tolist() == [2] * 8 and routing.max_rows == 16


def test_all_zero_relu_router_gives_zero_output():
    layer = make(router=ReMoE())
    layer.router["w_DE"][...] = -jnp.ones((D, 8))
    y, routing, _ = call(layer, jnp.ones((5, D)))
    assert not np.asarray(y).any() and not routing.filled_TK.any()


def test_fan_in_is_the_experts_own():
    plan = WidthPlan(strategy="explicit", mean=64, unit=64, explicit=(64, 1024))
    layer = MoELayer(256, MoeConfig(2, plan, TopK(k=1)), rngs=nnx.Rngs(0), out_scale=0.5)
    down = np.asarray(layer.experts["down_NUD"][...])
    np.testing.assert_allclose(down[:1].std(), 0.5 * 64**-0.5, rtol=0.05)
    np.testing.assert_allclose(down[1:].std(), 0.5 * 1024**-0.5, rtol=0.05)
    np.testing.assert_allclose(layer.experts["gate_NUD"][...].std(), 256**-0.5, rtol=0.05)


@pytest.mark.parametrize(
    "config,message",
    [
        (
            MoeConfig(router=TopK(k=9)),
            "moe.router.k: asks for 9 experts per token but there are 8; nearest valid value 8",
        ),
        (
            MoeConfig(
                widths=WidthPlan("explicit", mean=4, unit=4, explicit=(4, 8, 6, 4)), experts=4
            ),
            "moe.widths.explicit[2]: width 6 is not a multiple of unit 4; nearest valid value 8",
        ),
        (
            MoeConfig(
                widths=WidthPlan("explicit", mean=4, explicit=(0,)), experts=1, router=TopK(k=1)
            ),
            "moe.widths: every expert has width 0",
        ),
        (
            MoeConfig(shared_gate=True),
            "moe.shared_gate: there is no shared expert to gate (moe.shared_width=0); "
            "nearest valid value False",
        ),
        (
            MoeConfig(experts=2, zero_compute=ZeroCompute(zero=1), router=TopK(k=4)),
            "moe.router.k: asks for 4 experts per token but there are 3; nearest valid value 3",
        ),
        (
            MoeConfig(zero_compute=ZeroCompute(copy=1, zero=1), router=MoEPlusPlus(zero_experts=2)),
            "moe.router.zero_experts=2: the layer has 1 zero experts (moe.zero_compute.zero); "
            "nearest valid value 1",
        ),
    ],
)
def test_impossible_layers_are_refused(config, message):
    with pytest.raises(ConfigError) as error:
        MoELayer(D, config, rngs=nnx.Rngs(0))
    assert str(error.value) == message


@pytest.mark.slow
@pytest.mark.parametrize("axes", [("data", None), (None, "data")])
def test_sharded_over_eight_devices_equals_one(devices, axes):
    """Tokens, or storage units of the experts, over 8 devices: only time may change."""
    plan = WidthPlan("arithmetic", mean=16, unit=1)
    layer = make(
        widths=plan,
        router=TopP(p=0.4),
        shared_width=8,
        shared_gate=True,
        zero_compute=ZeroCompute(constant=1, copy=1, zero=1),
    )
    graph, params, state = nnx.split(layer, nnx.Param, RouterState)
    x = jax.random.normal(jax.random.key(0), (16, 4, D))
    mesh = jax.make_mesh((8,), ("data",), devices=devices, axis_types=(AxisType.Auto,))
    batch_axis, unit_axis = axes

    def loss(params, x):
        y, _, ledger = nnx.merge(graph, params, state)(x)
        return (y**2).mean(), (y, ledger)

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    want = step(params, x)

    def place(path, leaf):
        is_expert = any(getattr(key, "key", None) == "experts" for key in path)
        spec = PartitionSpec(unit_axis if is_expert else None)
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    sharded_params = jax.tree_util.tree_map_with_path(place, params)
    sharded_x = jax.device_put(x, NamedSharding(mesh, PartitionSpec(batch_axis)))
    got = step(sharded_params, sharded_x)
    if unit_axis:
        assert len(sharded_params["experts"]["gate_NUD"][...].sharding.device_set) == 8
    jax.tree.map(lambda a, b: agree("sharded", a, b, 1e-5), got, want)


def test_layer_shape_feeds_the_counts():
    config = MoeConfig(widths=HETERO, router=TopP(p=0.4), shared_width=8)
    shape = config.layer_shape(ATTENTION, D)
    assert shape.widths == config.spec.widths and sum(shape.widths) == 128
    assert (shape.router, shape.router_parameters, shape.shared_width) == ("top_p", D * 8, 8)
    assert shape.nominal_active == 4 and shape.nominal_active_width == 64
    assert dataclasses.replace(shape, widths=()).nominal_active_width == 0


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_counts_are_those_of_the_parameters(activation):
    config = MoeConfig(
        widths=HETERO, router=TopK(k=2), activation=activation, shared_width=8, shared_gate=True,
        zero_compute=ZeroCompute(constant=2, copy=1, zero=1),
    )  # fmt: skip
    layer = nnx.eval_shape(lambda: MoELayer(D, config, rngs=nnx.Rngs(0)))
    real = {"matrices": 0, "gates": 0}
    for path, leaf in jax.tree.leaves_with_path(nnx.to_pure_dict(nnx.state(layer, nnx.Param))):
        role = "matrices" if path[0].key in ("experts", "shared") else "gates"
        real[role] += leaf.size
    shape = config.layer_shape(ATTENTION, D)
    counted = parameters(ModelShape(vocab_size=0, d_model=D, layers=(shape,)))
    assert shape.ffn_matrices == (3 if activation in GATED else 2)
    assert real["matrices"] == counted.experts + counted.shared_experts
    assert real["gates"] == counted.router == D * 12 + D + 2 * 3 * D
    assert counted.active_experts == shape.ffn_matrices * D * 2 * 128 / 12


def test_hand_routing_round_trips_through_combine():
    routing = hand_routing([[1, 0], [2]], np.full((2, 3), 1 / 3), 3)
    assert routing.combine_TE().tolist() == [[1, 1, 0], [0, 0, 1]]
