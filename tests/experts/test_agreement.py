"""What a loss and another part of the layer both speak of has one value (MoE++, DeepSeek-V2)."""

import dataclasses

import pytest

from moejax.config import ConfigError
from moejax.experts import MoeConfig, ZeroCompute
from moejax.routing import CapacityConfig, LossesConfig
from moejax.routing.losses import Communication, DeviceBalance, LoadBalance
from moejax.routing.routers import SigmoidBias, TopK

PLUS_PLUS = MoeConfig(
    zero_compute=ZeroCompute(copy=1),
    losses=LossesConfig(LoadBalance(0.01, "moe_plus_plus", tau=0.75)),
    capacity=CapacityConfig(1.1, convention="moe_plus_plus", tau=0.75),
)
DEVICES = MoeConfig(
    router=TopK(k=2, groups=4, groups_kept=2),
    losses=LossesConfig(
        device_balance=DeviceBalance(0.05, groups=4),
        communication=Communication(0.02, groups=4, kept=2),
    ),
)


def change(config, part, **values):
    """The config with other values of one of its parts, or of one of its losses."""
    if part in ("router", "capacity"):
        return dataclasses.replace(
            config, **{part: dataclasses.replace(getattr(config, part), **values)}
        )
    loss = dataclasses.replace(getattr(config.losses, part), **values)
    return dataclasses.replace(config, losses=dataclasses.replace(config.losses, **{part: loss}))


@pytest.mark.parametrize(
    "config, message",
    [
        (
            change(PLUS_PLUS, "load_balance", tau=1.0),
            "m.losses.load_balance.tau=1.0: m.capacity.tau gives 0.75 for experts that compute "
            "nothing; nearest valid value 0.75",
        ),
        (
            change(change(PLUS_PLUS, "capacity", factor=0.0, eval_factor=2.0), "capacity", tau=0.5),
            "m.losses.load_balance.tau=0.75: m.capacity.tau gives 0.5 for experts that compute "
            "nothing; nearest valid value 0.5",
        ),
        (
            change(DEVICES, "device_balance", groups=2),
            "m.losses.device_balance.groups=2: m.router.groups gives 4 for the same devices; "
            "nearest valid value 4",
        ),
        (
            change(DEVICES, "communication", groups=8),
            "m.losses.communication.groups=8: m.router.groups gives 4 for the same devices; "
            "nearest valid value 4",
        ),
        (
            change(DEVICES, "communication", kept=3),
            "m.losses.communication.kept=3: m.router.groups_kept gives 2 for the devices of a "
            "token; nearest valid value 2",
        ),
        (
            dataclasses.replace(
                change(DEVICES, "device_balance", groups=2),
                router=SigmoidBias(k=2, groups=4, groups_kept=2),
            ),
            "m.losses.device_balance.groups=2: m.router.groups gives 4 for the same devices; "
            "nearest valid value 4",
        ),
    ],
)
def test_two_values_of_one_quantity_are_refused(config, message):
    with pytest.raises(ConfigError) as error:
        config.validate("m")
    assert str(error.value) == message


@pytest.mark.parametrize(
    "config",
    [
        PLUS_PLUS,
        change(change(PLUS_PLUS, "load_balance", tau=1.0), "load_balance", coefficient=0.0),
        change(change(PLUS_PLUS, "load_balance", tau=1.0), "load_balance", convention="deepseek"),
        change(change(PLUS_PLUS, "load_balance", tau=1.0), "capacity", convention="with_k"),
        change(change(PLUS_PLUS, "load_balance", tau=1.0), "capacity", factor=0.0),
        DEVICES,
        change(change(DEVICES, "device_balance", groups=2), "device_balance", coefficient=0.0),
        change(change(DEVICES, "communication", kept=3), "communication", coefficient=0.0),
        # Routing without groups leaves the devices of the losses to them (DeepSeekMoE 145B).
        change(change(DEVICES, "router", groups=1, groups_kept=1), "device_balance", groups=2),
    ],
)
def test_what_is_not_in_use_may_differ(config):
    config.validate("m")
