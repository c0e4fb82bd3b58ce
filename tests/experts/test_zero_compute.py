"""Zero-computation experts (MoE++, methods H.6): constant, copy, zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ffn_battery import agree
from flax import nnx
from hand_routing import hand_routing

from moejax.experts import MoeConfig, MoELayer, WidthPlan, ZeroCompute, zero_compute
from moejax.models import ModelConfig, Transformer
from moejax.models.attention import AttentionConfig
from moejax.routing import CapacityConfig, RouterInputs, health
from moejax.routing.routers import MoEPlusPlus, TopK

D = 6
KINDS = ZeroCompute(constant=2, copy=1, zero=1)
E = 3 + KINDS.total  # three FFN experts before them: constants 3 and 4, copy 5, zero 6

compute = jax.jit(zero_compute, static_argnames="config")


def params_with(mix):
    """Constant experts `v = 10` and `v = -2` with this `W_c`, `[2, D]`."""
    bias_CD = jnp.stack([jnp.full(D, 10.0), jnp.full(D, -2.0)])
    return {"mix_C2D": jnp.broadcast_to(jnp.asarray(mix), (2, 2, D)), "bias_CD": bias_CD}


def one_each(expert, num_tokens=1):
    """Every token goes to this expert alone, with weight 1."""
    return hand_routing([[expert]] * num_tokens, np.full((num_tokens, E), 1 / E), E)


X = jax.random.normal(jax.random.key(0), (1, D))
HALF = params_with(np.zeros((2, D)))


@pytest.mark.parametrize(
    "expert,want",
    [
        (0, 0 * X),  # an FFN expert is not ours
        (3, (X + 10) / 2),  # methods H.6: W_c = 0 gives (x + v) / 2
        (4, (X - 2) / 2),
        (5, X),
        (6, 0 * X),
    ],
)
def test_H6_known_answers_in_the_published_order(expert, want):
    agree("one expert", compute(X, one_each(expert), HALF, config=KINDS), want, 1e-6)


def test_combine_weights_and_empty_slots():
    routing = hand_routing([[3, 5, 6], [7, 5], [7]], np.full((3, E), 1 / E), E)
    weight = jnp.asarray([[0.5, 0.2, 0.3], [9.0, 0.25, 9.0], [9.0, 9.0, 9.0]])
    routing = routing.__class__(**(vars(routing) | {"weight_TK": weight}))
    x_TD = jnp.concatenate([X, 2 * X, 3 * X])
    want = jnp.concatenate([0.5 * (X + 10) / 2 + 0.2 * X, 0.25 * 2 * X, 0 * X])
    agree("weights", compute(x_TD, routing, HALF, config=KINDS), want, 1e-6)


def test_a_constant_expert_chooses_between_the_token_and_the_constant():
    for sign, want in ((1, X), (-1, jnp.full((1, D), 10.0))):
        mix = jnp.stack([100 * sign * jnp.sign(X[0]), jnp.zeros(D)])
        got = compute(X, one_each(3), params_with(mix), config=KINDS)
        agree("softmax", got, want, 1e-6)


def test_bfloat16_tokens_are_mixed_in_float32():
    mix = jax.random.normal(jax.random.key(1), (2, D))
    low = X.astype(jnp.bfloat16)
    got = compute(low, one_each(3), params_with(mix), config=KINDS)
    want = compute(low.astype(jnp.float32), one_each(3), params_with(mix), config=KINDS)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, want.astype(jnp.bfloat16))


def make(**changes):
    given = {
        "experts": 3,
        "widths": WidthPlan("explicit", explicit=(4, 8, 4)),
        "router": TopK(k=2, init_std=1.0),
        "zero_compute": KINDS,
        "tile": 8,
    }
    return MoELayer(D, MoeConfig(**(given | changes)), rngs=nnx.Rngs(0))


@jax.jit
def measured(layer, x_TD):
    inputs = RouterInputs.of(x_TD.shape[0])
    out = layer.forward(x_TD, inputs)
    return out, health(layer.stats(out, inputs, num_sequences=1), layer.spec.widths)


def test_the_router_chooses_among_all_experts_and_only_ffn_experts_have_width():
    layer = make()
    assert layer.config.experts == 3 and layer.config.num_experts == E == 7
    assert layer.spec.widths == (4, 8, 4, 0, 0, 0, 0)
    assert layer.router["w_DE"].shape == (D, E)
    out, metrics = measured(layer, jax.random.normal(jax.random.key(1), (64, D)))
    count_E = np.asarray(out.kept.count_E)
    assert (count_E > 0).all() and count_E.sum() == 128
    assert metrics["active_experts"] == 2
    assert float(metrics["active_width"]) == pytest.approx(count_E @ layer.spec.widths / 64)


@pytest.mark.parametrize("convention", ["with_k", "moe_plus_plus"])
def test_the_ledger_closes_and_dropped_tokens_get_nothing_of_them(convention):
    capacity = CapacityConfig(factor=0.5, convention=convention)
    layer = make(capacity=capacity)
    x_TD = jax.random.normal(jax.random.key(1), (64, D))
    out, _ = measured(layer, x_TD)
    assert bool(out.ledger.balanced) and int(out.ledger.requested) == 128
    assert int(out.ledger.capacity) == 128 - int(out.ledger.kept) > 0
    bound = capacity.expert_capacity(64, 2.0, layer.spec.widths)
    assert (np.asarray(out.kept.count_E) <= bound).all()
    if convention == "moe_plus_plus":  # 64 g K / (tau 3 + 4) times tau or 1, rounded up
        assert bound == (8, 8, 8, 11, 11, 11, 11)
    dropped = np.asarray(out.kept.active_T) == 0
    assert dropped.any() and not np.asarray(out.y_TD)[dropped].any()


def test_a_layer_without_them_has_no_parameters_for_them():
    copies = nnx.eval_shape(lambda: make(zero_compute=ZeroCompute(copy=2, zero=1)))
    assert not copies.gates and copies.config.num_experts == 6
    constants = nnx.eval_shape(make)
    assert {name: leaf.shape for name, leaf in constants.gates.items()} == {
        "mix_C2D": (2, 2, D),
        "bias_CD": (2, D),
    }
    assert KINDS.num_parameters(D) == 2 * 2 * D + 2 * D


def test_initial_constants_are_as_loud_as_a_normalised_token():
    params = ZeroCompute(constant=8).init(jax.random.key(0), 512, jnp.float32)
    assert np.std(params["bias_CD"]) == pytest.approx(1, rel=0.05)
    assert np.std(params["mix_C2D"]) == pytest.approx((3 * 512) ** -0.5, rel=0.05)


def test_the_carry_of_a_model_is_as_wide_as_the_router():
    moe = MoeConfig(3, WidthPlan(mean=4), MoEPlusPlus(), zero_compute=KINDS)
    model = Transformer(
        ModelConfig(
            vocab_size=11, d_model=D, num_layers=2, moe=moe, attention=AttentionConfig(heads=1)
        )
    )
    params, state = jax.eval_shape(model.init, jax.random.key(0))
    batch = {
        name: jax.ShapeDtypeStruct((2, 5), jnp.int32)
        for name in ("tokens", "targets", "segment_ids", "positions")
    }
    batch["loss_mask"] = jax.ShapeDtypeStruct((2, 5), jnp.float32)

    def loss(params, state, batch):
        return model.loss(
            params, state, batch, None, denominators=model.denominators(batch), train=True
        )

    _, out = jax.eval_shape(loss, params, state, batch)
    assert out["layers"][0].count_E.shape == (2, E)
    assert model.groups[0].widths == (4, 4, 4, 0, 0, 0, 0)
