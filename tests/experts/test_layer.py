"""The MoE layer as an ordinary `nnx.Module`, on one device and on eight."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ffn_battery import agree
from flax import nnx
from hand_routing import hand_routing
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from sketch_routers import ExpertChoice, GatingResidual, ReLU, SigmoidBias

from moejax.config import ConfigError
from moejax.config.widths import WidthPlan
from moejax.experts import GatedFFN, MoeConfig, MoELayer, RouterState
from moejax.routing import CapacityConfig, LossesConfig, RouterInputs
from moejax.routing.losses import LoadBalance
from moejax.routing.routers import TopK, TopP

D = 16
HETERO = WidthPlan("arithmetic", mean=16, unit=1)


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


@pytest.mark.parametrize("backend", ["loop", "tiles", "auto"])
def test_call_returns_output_routing_and_ledger(backend):
    layer = make(router=TopP(p=0.3), widths=HETERO, backend=backend)
    x = jax.random.normal(jax.random.key(0), (2, 5, D))
    y, routing, ledger = call(layer, x)
    assert y.shape == x.shape and y.dtype == x.dtype
    assert routing.expert_TK.shape == (10, 8)
    assert bool(ledger.balanced) and int(ledger.kept) == int(routing.filled_TK.sum())


def test_one_expert_is_a_dense_ffn():
    layer = make(experts=1, router=TopK(k=1))
    dense = GatedFFN(D, 16, rngs=nnx.Rngs(1))
    for mine, theirs in (("gate", "gate_FD"), ("up", "up_FD"), ("down", "down_FD")):
        layer.experts[f"{mine}_NUD"][...] = getattr(dense, theirs)[...][None]
    x = jax.random.normal(jax.random.key(0), (7, D))
    agree("dense", call(layer, x)[0], dense(x), 1e-5)


def test_a_shared_expert_is_added_and_two_are_one_wide():
    plain, shared = make(), make(shared_width=24)
    x = jax.random.normal(jax.random.key(0), (7, D))
    agree("shared", call(shared, x)[0], call(plain, x)[0] + shared.shared(x), 1e-5)
    wide = shared.shared
    halves = []
    for rows in (slice(0, 10), slice(10, 24)):
        half = GatedFFN(D, 1, rngs=nnx.Rngs(2))
        for name in ("gate_FD", "up_FD", "down_FD"):
            setattr(half, name, nnx.Param(getattr(wide, name)[...][rows]))
        halves.append(half(x))
    agree("two of them", sum(halves), wide(x), 1e-5)


def test_capacity_drops_are_counted_and_contribute_nothing():
    layer = make(capacity=CapacityConfig(factor=0.5), router=TopK(k=2))
    x = jax.random.normal(jax.random.key(0), (32, D))
    out = forward(layer, x, RouterInputs.of(32))
    assert int(out.ledger.capacity) > 0 and bool(out.ledger.balanced)
    dropped = np.asarray(out.kept.active_T) == 0
    assert dropped.any()
    assert not np.asarray(out.y_TD)[dropped].any()
    stats = layer.stats(out, RouterInputs.of(32), num_sequences=1)
    assert int(stats.count_E.sum()) == 64
    assert int(stats.kept_E.sum()) == int(out.ledger.kept)
    assert stats.count_BE is None


def test_statistics_per_sequence_only_when_a_loss_needs_them():
    losses = LossesConfig(load_balance=LoadBalance(0.1, "deepseek_v3"))
    layer = make(losses=losses)
    x = jax.random.normal(jax.random.key(0), (8, D))
    inputs = RouterInputs.of(8, sequence_T=jnp.arange(8) // 4)
    stats = layer.stats(forward(layer, x, inputs), inputs, num_sequences=2)
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
    layer = make(router=GatingResidual())
    x = jax.random.normal(jax.random.key(0), (9, D))
    first = forward(layer, x, RouterInputs.of(9))
    second = forward(layer, x, RouterInputs.of(9, carry_TE=first.carry_TE))
    assert first.carry_TE.shape == (9, 8)
    assert not np.allclose(first.routing.logits_TE, second.routing.logits_TE)


@pytest.mark.parametrize("router", [ExpertChoice(), ReLU()])
def test_routers_that_fill_by_rows(router):
    layer = make(router=router)
    x = jax.random.normal(jax.random.key(0), (16, D))
    y, routing, ledger = call(layer, x)
    assert np.isfinite(y).all() and bool(ledger.balanced)
    if isinstance(router, ExpertChoice):  # methods H.2: exactly C tokens per expert
        assert routing.count_E.tolist() == [2] * 8 and routing.max_rows == 16


def test_all_zero_relu_router_gives_zero_output():
    layer = make(router=ReLU())
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
            "moe.router: asks for 9 experts per token but there are 8; nearest valid value 8",
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
    layer = make(widths=plan, router=TopP(p=0.4))
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
    from moejax.config.counts import LayerShape

    config = MoeConfig(widths=HETERO, router=TopP(p=0.4), shared_width=8)
    shape = config.layer_shape(LayerShape(heads=2, kv_heads=2, head_dim=8), D)
    assert shape.widths == config.spec.widths and sum(shape.widths) == 128
    assert (shape.router, shape.router_parameters, shape.shared_width) == ("top_p", D * 8, 8)
    assert shape.nominal_active == 4 and shape.nominal_active_width == 64
    assert dataclasses.replace(shape, widths=()).nominal_active_width == 0


def test_hand_routing_round_trips_through_combine():
    routing = hand_routing([[1, 0], [2]], np.full((2, 3), 1 / 3), 3)
    assert routing.combine_TE().tolist() == [[1, 1, 0], [0, 0, 1]]
