import dataclasses
import importlib.util
import sys

import pytest

from moejax.config import ConfigError, Registry, build, knob, to_plain


def component(name="C", **members):
    return dataclasses.make_dataclass(name, [("x", int, knob(1))], namespace=members, frozen=True)


def test_a_component_is_found_by_name():
    registry = Registry("router")
    cls = registry.register("mine")(component())
    assert registry.get("mine") is cls
    assert cls.registered_name == "mine"
    assert registry.names() == ("mine",) and "mine" in registry and "other" not in registry
    assert repr(registry) == "Registry('router': mine)"


def test_an_unknown_name_is_answered_with_the_known_ones():
    registry = Registry("router")
    with pytest.raises(ConfigError) as caught:
        registry.get("x")
    assert str(caught.value) == (
        "'x': unknown router; known: none (is the file that registers it imported?)"
    )
    registry.register("top_k")(component())
    with pytest.raises(ConfigError) as caught:
        registry.get("topk", "config.router.name")
    assert str(caught.value) == (
        "config.router.name='topk': unknown router; did you mean 'top_k'?; known: top_k"
    )


def test_a_name_is_taken_once():
    registry = Registry("router")
    registry.register("a")(component("First"))
    with pytest.raises(ConfigError, match=r"the name is taken by .*First; nearest valid: a_2"):
        registry.register("a")(component("Second"))


def test_the_same_definition_may_run_again():
    registry = Registry("router")
    registry.register("a")(component("Same"))
    newer = registry.register("a")(component("Same"))
    assert registry.get("a") is newer


def test_what_is_not_a_frozen_dataclass_is_refused():
    registry = Registry("router")
    thawed = dataclasses.make_dataclass("D", [("x", int, knob(1))])
    for cls in (thawed, int, type("Child", (component(),), {})):
        with pytest.raises(ConfigError, match="is not a frozen dataclass"):
            registry.register("a")(cls)
    with pytest.raises(ConfigError, match="has a knob `name`, which is reserved"):
        registry.register("a")(
            dataclasses.make_dataclass("D", [("name", str, knob(""))], frozen=True)
        )
    for name in ("", "a,b", "a b", "a=b"):
        with pytest.raises(ConfigError, match="a name is made of letters"):
            registry.register(name)(component())


def test_a_users_own_file_adds_a_component(tmp_path, monkeypatch):
    file = tmp_path / "their_router.py"
    file.write_text(
        "from __future__ import annotations\n"
        "import dataclasses\n"
        "from config_samples import ROUTERS\n"
        "from moejax.config import knob\n"
        "@ROUTERS.register('theirs')\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Theirs:\n"
        "    heat: float = knob(1.0, low=0)\n"
        "    parts: tuple[int, ...] = knob((1, 2))\n"
    )
    from config_samples import ROUTERS, Moe

    monkeypatch.setattr(ROUTERS, "_classes", dict(ROUTERS._classes))
    spec = importlib.util.spec_from_file_location("their_router", file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "their_router", module)
    spec.loader.exec_module(module)
    made = build(Moe, {"router": {"name": "theirs", "heat": 2}})
    assert made.router == module.Theirs(heat=2.0)
    assert build(Moe, to_plain(made)) == made
    with pytest.raises(ConfigError, match=r"config\.router\.heat=-1\.0: must be >= 0"):
        build(Moe, {"router": {"name": "theirs", "heat": -1}})
