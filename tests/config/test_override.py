"""`override`: the same answers as a build of the changed config, without building the rest."""

from __future__ import annotations

import dataclasses

import pytest
from config_samples import Experiment, TopK

from moejax.config import ConfigError, build, override, to_plain
from moejax.config.override import plain_variant

BASE = build(Experiment, {})
CHANGES = [
    {},
    {"steps": "10%", "label": "x", "learning_rate": 0.5},
    {"model.moe.router.p": 0.3, "model.moe.widths": [1, 2]},
    {"model.moe.router": {"name": "top_k", "k": 3}},
    {"model.moe.router": TopK(k=2), "model.moe.router.k": 4},
    {"model.moe.router.k_max": 3, "betas": (0.5, 0.75)},
    {"model.moe.losses.balance": 1},
    {"extra": [{"name": "top_k", "k": 2}, {"name": "top_p"}]},
]


def changed_by_hand(changes):
    """What `build` makes of the plain form with the keys set."""
    plain = to_plain(BASE)
    for key in sorted(changes, key=lambda key: key.count(".")):
        *parents, last = key.split(".")
        node = plain
        for part in parents:
            node = node[part]
        value = changes[key]
        node[last] = {"name": "top_k", "k": value.k} if isinstance(value, TopK) else value
    return build(Experiment, plain)


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_it_is_what_build_makes_of_the_changed_config(changes):
    expected = changed_by_hand(changes)
    made = override(BASE, changes)
    assert made == expected
    assert plain_variant(made, BASE, to_plain(BASE)) == to_plain(expected)


def test_what_is_not_changed_is_not_made_again():
    made = override(BASE, {"steps": 7})
    assert made.model is BASE.model
    assert to_plain(BASE) == to_plain(build(Experiment, {}))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"modle.moe": 1}, "config.modle: unknown key; did you mean 'model'?"),
        ({"model.moe.router.pp": 1}, "config.model.moe.router.pp: unknown key of 'top_p'"),
        ({"model.moe.router.p": 1.5}, "config.model.moe.router.p=1.5: must be in (0, 1]; nearest"),
        ({"model.moe.router.p": "x"}, "config.model.moe.router.p='x': expected float"),
        (
            {"model.moe.router.name": "top_k"},
            "config.model.moe.router.name: is 'top_p' here, and another one has other keys",
        ),
        ({"model.moe.router": "top_k"}, "config.model.moe.router='top_k': expected a router with"),
        ({"model.moe.router": {"name": "top_q"}}, "config.model.moe.router.name='top_q': unknown"),
        ({"model.dense.x": 1}, "config.model.dense.x: cannot be set, because config.model"),
        ({"model.moe.losses.z": 1}, "config.model.moe.losses.z: unknown key; valid keys: balance"),
        ({"model.moe.losses.balance": -1}, "config.model.moe.losses.balance=-1.0: must be >= 0"),
        ({"quick.x": 1}, "config.quick.x: unknown key; config.quick is a value, not a group"),
    ],
)
def test_mistakes_are_those_of_build(changes, message):
    with pytest.raises(ConfigError) as caught:
        override(BASE, changes)
    assert str(caught.value).startswith(message)


def test_parents_validate_again():
    """A knob that is fine by itself may not fit its neighbours."""
    experts = BASE.model.moe.experts
    with pytest.raises(ConfigError, match=f"exceeds experts={experts}; nearest valid value"):
        override(BASE, {"model.moe.router": {"name": "top_k", "k": experts + 1}})


def test_a_dataclass_that_fails_to_build_names_its_path():
    @dataclasses.dataclass(frozen=True)
    class Odd:
        x: int = 1

        def __post_init__(self) -> None:
            if self.x > 1:
                raise ValueError("too odd")

    with pytest.raises(ConfigError, match="config: too odd"):
        override(Odd(), {"x": 2})
