"""Fine-grained segmentation (DeepSeekMoE, methods C.1 and C.9)."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ffn_battery import agree
from flax import nnx
from hand_routing import hand_routing

from moejax.config import ConfigError
from moejax.config.counts import LayerShape, ModelShape, parameters
from moejax.experts import ExpertsSpec, MoeConfig, MoELayer, WidthPlan, ZeroCompute, fine_grained
from moejax.experts.backends.loop import loop
from moejax.experts.spec import expert_rows, init_weights
from moejax.routing.routers import TopK, TopP

GSHARD = MoeConfig(experts=16, widths=WidthPlan(mean=24), router=TopK(k=2, renormalise=False))


def model(moe, layers=9, d_model=1280, heads=10, vocab=8192):
    attention = LayerShape(heads, heads, d_model // heads)
    return ModelShape(vocab, d_model, (moe.layer_shape(attention, d_model),) * layers)


def experts(moe):
    """Expert parameters of a model, shared ones included: total and active."""
    counts = parameters(model(moe))
    return counts.experts + counts.shared_experts, counts.active_experts + counts.shared_experts


@pytest.mark.parametrize("m,shared", [(1, 0), (1, 1), (2, 0), (2, 1), (4, 2), (8, 0), (8, 3)])
@pytest.mark.parametrize("activation", ["swiglu", "relu"])
def test_total_and_active_parameters_stay(m, shared, activation):
    base = dataclasses.replace(GSHARD, activation=activation)
    cut = fine_grained(base, m, shared)
    assert (cut.experts, cut.router.k) == (16 * m - shared, 2 * m - shared)
    assert set(cut.spec.widths) == {24 // m} and cut.shared_width == shared * 24 // m
    assert experts(cut) == experts(base)


def test_C9_one_piece_and_nothing_shared_is_top_k_as_it_was():
    for config in (GSHARD, MoeConfig(2, WidthPlan("explicit", explicit=(6, 6)), TopK(k=1))):
        assert fine_grained(config, 1, 0) == config


def test_C9_deepseek_moe_2b():
    """1 + 63 experts of a quarter, 1 + 7 active: 1.887B expert parameters, 0.236B active."""
    quarter = round(1280 * 8 / 3 / 4)
    cut = fine_grained(dataclasses.replace(GSHARD, widths=WidthPlan(mean=4 * quarter)), 4, 1)
    assert (cut.experts, cut.router.k, cut.shared_width) == (63, 7, quarter)
    total, active = experts(cut)
    assert (round(total / 1e9, 3), round(active / 1e9, 3)) == (1.887, 0.236)


def test_C9_deepseek_moe_16b():
    """2 + 64 experts of 1408, 2 + 6 active, first layer dense: 16.376B, 2.825B active."""
    cut = fine_grained(MoeConfig(66, WidthPlan(mean=1408), TopK(k=8, renormalise=False)), 1, 2)
    assert (cut.experts, cut.router.k, cut.shared_width) == (64, 6, 2 * 1408)
    moe_layers = model(cut, 27, 2048, 16, 102400)
    dense = LayerShape(16, 16, 128, dense_width=10944)
    counts = parameters(dataclasses.replace(moe_layers, layers=(dense, *moe_layers.layers)))
    assert round((counts.total + counts.router) / 1e9, 3) == 16.376
    assert round(counts.active / 1e9, 3) == 2.825


def test_combinations_grow_as_the_paper_says():
    def choices(config):
        return math.comb(config.experts, config.router.k)

    assert choices(GSHARD) == 120
    assert choices(fine_grained(GSHARD, 4)) == 4_426_165_368


def test_a_storage_unit_stays_where_it_still_divides():
    base = dataclasses.replace(GSHARD, widths=WidthPlan(mean=24, unit=4))
    assert fine_grained(base, 3).widths == WidthPlan(mean=8, unit=4)
    assert fine_grained(base, 4).widths == WidthPlan(mean=6, unit=0)


def test_all_pieces_of_an_expert_together_are_the_expert():
    whole, cut = ExpertsSpec((8, 8), unit=4), ExpertsSpec((4,) * 4, unit=4)
    weights = init_weights(jax.random.key(0), whole, 6, jnp.float32)
    x_TD = jax.random.normal(jax.random.key(1), (3, 6))
    one = hand_routing([[0], [1], [0]], np.full((3, 2), 0.5), 2)
    two = hand_routing([[0, 1], [2, 3], [0, 1]], np.full((3, 4), 0.25), 4)
    run = jax.jit(loop, static_argnums=3)
    agree("pieces", run(x_TD, two, weights, cut), run(x_TD, one, weights, whole), 1e-5)


def test_C9_all_experts_active_is_a_dense_softmax_mixture():
    cut = fine_grained(MoeConfig(2, WidthPlan(mean=8), TopK(2, False), tile=4), 2)
    cut = dataclasses.replace(cut, router=TopK(k=4, renormalise=False, init_std=1.0))
    layer = MoELayer(6, cut, rngs=nnx.Rngs(0))
    x_TD = jax.random.normal(jax.random.key(1), (5, 6))

    @jax.jit
    def mixture(x_TD):
        probs_TE = jax.nn.softmax(x_TD @ layer.router["w_DE"][...])
        outputs = []
        for e in range(4):
            gate, up, down = (
                expert_rows(layer.experts[name][...], layer.spec, e)
                for name in layer.spec.weight_names
            )
            outputs.append(
                probs_TE[:, e : e + 1] * ((jax.nn.silu(x_TD @ gate.T) * (x_TD @ up.T)) @ down)
            )
        return sum(outputs)

    agree("mixture", jax.jit(lambda layer, x: layer(x)[0])(layer, x_TD), mixture(x_TD), 1e-5)


@pytest.mark.parametrize(
    "config,m,shared,message",
    [
        (GSHARD, 5, 0, "fine_grained: m=5 does not divide width 24; nearest valid value 4"),
        (GSHARD, 0, 0, "fine_grained: m=0 does not divide width 24; nearest valid value 1"),
        (GSHARD, 4, 8, "fine_grained: shared=8 of 8 active experts; nearest valid value 7"),
        (GSHARD, 4, -1, "fine_grained: shared=-1 of 8 active experts; nearest valid value 0"),
        (
            dataclasses.replace(GSHARD, router=TopP()),
            2,
            0,
            "fine_grained: router TopP does not say how many experts a token uses; nearest valid "
            "value a router with a knob k, such as top_k",
        ),
        (
            dataclasses.replace(GSHARD, widths=WidthPlan("hybrid", mean=24, unit=1)),
            2,
            0,
            "fine_grained: experts of different widths have no common piece; nearest valid value "
            "widths.strategy='uniform', got 'hybrid'",
        ),
        (
            dataclasses.replace(GSHARD, zero_compute=ZeroCompute(copy=1)),
            2,
            0,
            "fine_grained: 1 experts compute nothing and cannot be cut; nearest valid value "
            "zero_compute=ZeroCompute()",
        ),
    ],
)
def test_what_cannot_be_cut_is_refused(config, m, shared, message):
    with pytest.raises(ConfigError) as error:
        fine_grained(config, m, shared)
    assert str(error.value) == message
