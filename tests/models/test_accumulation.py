"""Losses of scope `global`: micro-batches give the loss and the gradient of the one batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from model_samples import UNEQUAL, assert_trees_close, make, packed, random_params

from moejax.config import ConfigError, check
from moejax.experts import WidthPlan
from moejax.models import ModelConfig
from moejax.routing import CapacityConfig, LossesConfig
from moejax.routing.losses import (
    Communication,
    DeviceBalance,
    Entropy,
    LoadBalance,
    ParameterPenalty,
    ZLoss,
)
from moejax.routing.routers import ExpertChoice, MoEPlusPlus, ReMoE
from moejax.train.state import TrainState
from moejax.train.step import make_train_step


def losses(scope):
    return LossesConfig(
        LoadBalance(0.5, "switch", scope=scope),
        Entropy(0.1),
        ParameterPenalty(0.5, scope=scope),
        ZLoss(0.01),
        DeviceBalance(0.5, groups=3, scope=scope),
        Communication(0.5, groups=3, kept=2, scope=scope),
    )


def stepped(scope, accumulate, **changes):
    """Metrics and gradients (one step of SGD at rate 1) of four unequal rows."""
    moe = changes.pop("moe", None) or dataclasses.replace(UNEQUAL, losses=losses(scope))
    model = make(moe, **changes)
    params, router_state = random_params(model)
    sgd = optax.sgd(1.0)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=params,
        frozen={},
        router_state=router_state,
        opt_state=sgd.init(params),
        rng=jax.random.key_data(jax.random.key(0)),
    )
    batch = packed([(4, 5), (9,), (4,), (2, 5)], 9)
    step = jax.jit(make_train_step(model, sgd, lambda step: jnp.ones(()), accumulate))
    new, metrics = step(state, batch)
    gradient = jax.tree.map(lambda old, new: np.asarray(old - new), params, new.trainable)
    return {name: value for name, value in metrics.items() if name != "_routing"}, gradient


@pytest.fixture(scope="module")
def whole():
    return stepped("global", 1)


@pytest.mark.parametrize("accumulate", [2, 4])
def test_global_losses_do_not_depend_on_the_micro_batches(whole, accumulate):
    assert_trees_close(stepped("global", accumulate), whole)


def test_nor_does_a_routers_own_loss_of_scope_global():
    def remoe(scope, accumulate):
        router = ReMoE(k=2, init_lambda=0.5, scope=scope)
        off = LossesConfig(LoadBalance(0.0))
        moe = dataclasses.replace(UNEQUAL, router=router, losses=off)
        return stepped("micro", accumulate, moe=moe)

    whole, parts = remoe("global", 1), remoe("global", 4)
    assert_trees_close(parts, whole)
    micro, _ = remoe("micro", 4)
    assert float(micro["aux/remoe"]) != pytest.approx(float(whole[0]["aux/remoe"]), rel=1e-3)


def test_losses_of_scope_micro_do(whole):
    """Else the test above would show nothing; means over tokens are the same at any scope."""
    metrics, _ = stepped("micro", 4)
    for name in ("load_balance", "parameter_penalty", "device_balance"):
        value = float(whole[0][f"aux_raw/{name}"])
        assert float(metrics[f"aux_raw/{name}"]) != pytest.approx(value, rel=1e-3)
    for name in ("entropy", "z_loss"):
        value = float(whole[0][f"aux_raw/{name}"])
        assert float(metrics[f"aux_raw/{name}"]) == pytest.approx(value, rel=1e-5)


def test_layers_may_have_one_loss_at_two_scopes():
    layers = {
        "moe_variants": {"other": dataclasses.replace(UNEQUAL, losses=losses("micro"), experts=6)},
        "layers": ("moe", "other"),
    }
    one, two = (stepped("global", accumulate, **layers)[0] for accumulate in (1, 2))
    for name in ("entropy", "z_loss"):
        assert float(two[f"aux/{name}"]) == pytest.approx(float(one[f"aux/{name}"]), rel=1e-5)
    for metrics in (one, two):
        aux = sum(float(value) for name, value in metrics.items() if name.startswith("aux/"))
        total = float(metrics["total_loss"])
        assert total == pytest.approx(float(metrics["loss"]) + aux, rel=1e-5)


def test_routers_that_pass_logits_on_must_agree_on_the_experts():
    first = dataclasses.replace(UNEQUAL, router=MoEPlusPlus())
    other = dataclasses.replace(first, widths=WidthPlan(mean=8), experts=4)
    config = ModelConfig(moe=first, moe_variants={"b": other}, layers=("moe", "b") * 2, d_model=16)
    with pytest.raises(ConfigError, match=r"same number of experts in all layers, got \[4, 6\]"):
        check(config, "model")


@pytest.mark.parametrize(
    "changes, what",
    [
        ({"router": ExpertChoice()}, "the router lets"),
        ({"capacity": CapacityConfig(factor=1.0)}, "the expert capacity lets"),
    ],
)
def test_routing_that_sees_later_tokens_must_be_allowed(changes, what):
    moe = dataclasses.replace(UNEQUAL, **changes)
    config = ModelConfig(moe=moe, d_model=16)
    with pytest.raises(ConfigError, match=f"model.allow_noncausal=False: {what}.*value True"):
        check(config, "model")
    check(dataclasses.replace(config, allow_noncausal=True), "model")
