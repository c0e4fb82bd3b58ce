import dataclasses
import json
import random

import pytest
from config_samples import ROUTERS, Experiment, Model, Moe, TopK, TopP
from ml_collections import config_dict

from moejax.config import ConfigError, Registry, build, check, knob, to_config_dict, to_plain


def refusal(cls, values, path="config"):
    with pytest.raises(ConfigError) as caught:
        build(cls, values, path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def random_experiment(rng):
    def router():
        if rng.random() < 0.5:
            return TopK(k=rng.randint(1, 3))
        return TopP(
            p=rng.uniform(0.01, 1),
            k_max=rng.choice([None, 1, 7]),
            rule=rng.choice(["strict", "inclusive"]),
        )

    def moe():
        return Moe(
            experts=rng.randint(3, 64),
            router=router(),
            widths=tuple(rng.randint(1, 9) for _ in range(rng.randint(0, 4))),
            losses={name: rng.random() for name in rng.sample("abcdef", rng.randint(0, 3))},
        )

    return Experiment(
        name=rng.choice(["", "a b", "ünïcode", "none"]),
        model=Model(
            heads=rng.choice([1, 2, 4, 8]),
            dtype=rng.choice(["float32", "bfloat16"]),
            moe=rng.choice([None, moe()]),
            dense=rng.choice([None, moe()]),
        ),
        steps=rng.choice([0, 7, "10%", "1e6 tokens"]),
        learning_rate=rng.uniform(1e-9, 0.999),
        quick=rng.random() < 0.5,
        label=rng.choice([None, "", "x"]),
        betas=(rng.random(), rng.random()),
        extra=tuple(router() for _ in range(rng.randint(0, 3))),
    )


@pytest.mark.parametrize("seed", range(100))
def test_round_trips_through_config_dict_and_json_change_nothing(seed):
    experiment = random_experiment(random.Random(seed))
    check(experiment)
    assert build(Experiment, to_config_dict(experiment)) == experiment
    plain = to_plain(experiment)
    assert build(Experiment, json.loads(json.dumps(plain))) == experiment
    assert to_plain(build(Experiment, plain)) == plain
    locked = to_config_dict(experiment).lock()
    assert build(Experiment, locked.copy_and_resolve_references()) == experiment


def test_an_empty_tuple_and_none_survive():
    cfg = to_config_dict(Experiment(extra=()))
    assert cfg.extra == () and cfg.model.moe.widths == ()
    assert cfg.label is None and cfg.model.dense is None and cfg.model.moe.router.k_max is None
    assert build(Experiment, cfg) == Experiment(extra=())


def test_components_carry_their_name():
    assert to_config_dict(Experiment()).model.moe.router.name == "top_p"
    plain = to_plain(Experiment())
    assert plain["model"]["moe"]["router"] == {
        "name": "top_p",
        "p": 0.4,
        "k_max": None,
        "rule": "inclusive",
    }
    assert plain["extra"] == [{"name": "top_k", "k": 2}]
    assert build(TopP, plain["model"]["moe"]["router"]) == TopP()


def test_defaults_fill_what_is_absent():
    assert build(Experiment, {}) == Experiment()
    made = build(Experiment, {"model": {"moe": {"router": {"name": "top_k"}}}})
    assert made.model.moe.router == TopK()


def test_an_int_becomes_a_float_where_a_float_is_due():
    made = build(Experiment, {"model": {"moe": {"router": {"name": "top_p", "p": 1}}}})
    assert type(made.model.moe.router.p) is float
    assert to_plain(Moe(losses={"a": 1}))["losses"] == {"a": 1.0}
    assert type(to_plain(Moe(losses={"a": 1}))["losses"]["a"]) is float


def test_a_config_dict_keeps_types_and_takes_an_int_for_a_float():
    cfg = to_config_dict(Experiment())
    cfg.learning_rate = 0
    assert type(cfg.learning_rate) is float
    with pytest.raises(TypeError):
        cfg.model.heads = "four"
    cfg.steps = "10%"
    cfg.model.moe.router.k_max = 3
    cfg.learning_rate = 0.5
    made = build(Experiment, cfg)
    assert (made.steps, made.model.moe.router.k_max) == ("10%", 3)


def test_defaults_of_a_dict_are_not_shared():
    first, second = Moe(), Moe()
    first.losses["z"] = 1.0
    assert "z" not in second.losses


TOP_P = {"name": "top_p"}


@pytest.mark.parametrize(
    "values, message",
    [
        ({"nam": "x"}, "config.nam: unknown key; did you mean 'name'?"),
        (
            {"model": {"moe": {"router": TOP_P | {"zzz": 1}}}},
            "config.model.moe.router.zzz: unknown key of 'top_p'; valid keys: p, k_max, rule",
        ),
        (
            {"model": {"moe": {"experts": 0}}},
            "config.model.moe.experts=0: must be in [1, 64]; nearest valid value: 1",
        ),
        (
            {"model": {"moe": {"experts": 65}}},
            "config.model.moe.experts=65: must be in [1, 64]; nearest valid value: 64",
        ),
        (
            {"model": {"moe": {"router": TOP_P | {"p": 1.5}}}},
            "config.model.moe.router.p=1.5: must be in (0, 1]; nearest valid value: 1.0",
        ),
        (
            {"model": {"moe": {"router": TOP_P | {"p": 0}}}},
            "config.model.moe.router.p=0.0: must be in (0, 1]; nearest valid value: just above 0",
        ),
        (
            {"learning_rate": 1.0},
            "config.learning_rate=1.0: must be in (0, 1); nearest valid value: just below 1",
        ),
        ({"learning_rate": float("nan")}, "config.learning_rate=nan: must be finite"),
        (
            {"learning_rate": float("inf")},
            "config.learning_rate=inf: must be finite; nearest valid value: just below 1",
        ),
        (
            {"model": {"moe": {"router": TOP_P | {"k_max": 0}}}},
            "config.model.moe.router.k_max=0: must be >= 1; nearest valid value: 1",
        ),
        (
            {"model": {"moe": {"losses": {"z": -1}}}},
            "config.model.moe.losses.z=-1.0: must be >= 0; nearest valid value: 0.0",
        ),
        (
            {"model": {"moe": {"widths": [3, 0]}}},
            "config.model.moe.widths[1]=0: must be >= 1; nearest valid value: 1",
        ),
        (
            {"model": {"moe": {"widths": [1, 2.0]}}},
            "config.model.moe.widths[1]=2.0: expected int in units, got float; "
            "nearest valid value: 2",
        ),
        (
            {"model": {"moe": {"widths": 3}}},
            "config.model.moe.widths=3: expected tuple[int, ...] in units, got int; "
            "nearest valid value: (3,)",
        ),
        (
            {"betas": [0.9]},
            "config.betas=[0.9]: has 1 elements, must have 2",
        ),
        (
            {"model": {"heads": 3}},
            "config.model.heads=3: must be one of 1, 2, 4, 8; nearest valid value: 2",
        ),
        (
            {"model": {"dtype": "bfloat"}},
            "config.model.dtype='bfloat': must be one of float32, bfloat16; "
            "did you mean 'bfloat16'?",
        ),
        (
            {"model": {"moe": {"router": TOP_P | {"rule": "strikt"}}}},
            "config.model.moe.router.rule='strikt': must be one of strict, inclusive; "
            "did you mean 'strict'?",
        ),
        (
            {"model": {"heads": True}},
            "config.model.heads=True: expected int, got bool; nearest valid value: 1",
        ),
        ({"quick": 1}, "config.quick=1: expected bool, got int; nearest valid value: True"),
        (
            {"quick": "maybe"},
            "config.quick='maybe': expected bool, got str",
        ),
        (
            {"learning_rate": "1e-3"},
            "config.learning_rate='1e-3': expected float, got str; nearest valid value: 0.001",
        ),
        (
            {"learning_rate": None},
            "config.learning_rate=None: expected float, got NoneType",
        ),
        ({"name": 3}, "config.name=3: expected str, got int; nearest valid value: '3'"),
        (
            {"steps": 1.6},
            "config.steps=1.6: expected int | str, got float; nearest valid value: 2",
        ),
        (
            {"model": {"moe": {"router": TOP_P | {"k_max": "none"}}}},
            "config.model.moe.router.k_max='none': expected int | None, got str; "
            "nearest valid value: None",
        ),
        (
            {"model": 3},
            "config.model=3: expected the keys of Model (heads, dtype, moe, dense), got int",
        ),
        (
            {"model": {"moe": {"losses": 0.1}}},
            "config.model.moe.losses=0.1: expected dict[str, float], got float",
        ),
        (
            {"model": {"moe": {"router": {"name": "top_q"}}}},
            "config.model.moe.router.name='top_q': unknown router; did you mean 'top_p'?; "
            "known: top_k, top_p",
        ),
        (
            {"model": {"moe": {"router": {"p": 0.3}}}},
            "config.model.moe.router.name: is required; one of top_k, top_p",
        ),
        (
            {"model": {"moe": {"router": "top-k"}}},
            "config.model.moe.router='top-k': expected a router with a key `name`; "
            "did you mean 'top_k'?; known: top_k, top_p",
        ),
        (
            {"extra": [{"name": "top_k", "k": 0}]},
            "config.extra[0].k=0: must be >= 1; nearest valid value: 1",
        ),
        (
            {"model": {"moe": {"experts": 2, "router": {"name": "top_k", "k": 3}}}},
            "config.model.moe.router.k=3: exceeds experts=2; nearest valid value: 2",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_refusal_names_path_value_and_what_is_nearest(values, message):
    assert refusal(Experiment, values) == message
    # The same mistake made in a ConfigDict is told in the same words.
    assert refusal(Experiment, config_dict.ConfigDict(values)) == message


def test_the_keys_of_a_dict_are_strings():
    message = refusal(Moe, {"losses": {3: 1.0}})
    assert message == "config.losses: the key 3 is not a name; keys are strings"


def test_the_path_can_be_named():
    assert refusal(TopK, {"k": 0}, "router").startswith("router.k=0: ")
    assert refusal(TopK, [], "router") == "router=[]: expected the keys of TopK (k), got list"


def test_check_is_as_strict_as_build():
    for bad, start in [
        (Experiment(quick=1), "config.quick=1: expected bool"),
        (Experiment(model=Model(heads=3)), "config.model.heads=3: "),
        (Moe(router=TopK(k=9)), "config.router.k=9: exceeds experts=8"),
        (Moe(router=Model()), "config.router: Model is not a registered router"),
        (Moe(widths=(True,)), "config.widths[0]=True: expected int"),
    ]:
        with pytest.raises(ConfigError) as caught:
            check(bad)
        assert str(caught.value).startswith(start)
    with pytest.raises(ConfigError, match="is not a dataclass instance"):
        check({"a": 1})
    with pytest.raises(ConfigError, match="is not a dataclass"):
        build(dict, {})


def test_dumping_an_impossible_value_is_refused():
    for dump in (to_plain, to_config_dict):
        with pytest.raises(ConfigError, match=r"config\.steps=None: expected int | str"):
            dump(Experiment(steps=None))


def test_children_are_validated_before_their_parent():
    seen = []

    @dataclasses.dataclass(frozen=True)
    class Child:
        value: int = knob(1)

        def validate(self, path):
            seen.append(path)

    @dataclasses.dataclass(frozen=True)
    class Parent:
        by_name: dict[str, Child] = knob({"a": Child()})
        alone: Child = knob(Child())

        def validate(self, path):
            seen.append(path)

    # get_type_hints cannot see classes local to a function; annotations here are real classes.
    build(Parent, {}, "root")
    assert seen == ["root.by_name.a", "root.alone", "root"]


def test_a_required_key_and_a_foreign_error_name_their_path():
    @dataclasses.dataclass(frozen=True)
    class Needs:
        size: int = knob(unit="tokens")

        def __post_init__(self):
            if self.size == 13:
                raise ValueError("thirteen is unlucky")

    assert refusal(Needs, {}) == "config.size: is required (int)"
    assert refusal(Needs, {"size": 13}) == "config: thirteen is unlucky"


def test_an_annotation_that_no_file_can_hold_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Odd:
        value: set = knob(None)

    assert refusal(Odd, {}) == "config.value: a field of type set cannot be configured"

    @dataclasses.dataclass(frozen=True)
    class Unknown:
        value: "Nowhere" = knob(None)  # noqa: F821

    message = refusal(Unknown, {})
    assert message.startswith("config: the annotations of ") and "Nowhere" in message


def test_int_or_float_keeps_the_kind_it_was_given():
    @dataclasses.dataclass(frozen=True)
    class Both:
        value: int | float = knob(1)

    assert type(build(Both, {"value": 3}).value) is int
    assert type(build(Both, {"value": 3.0}).value) is float


def test_a_subclass_of_a_component_needs_its_own_registration():
    @dataclasses.dataclass(frozen=True)
    class Mine(TopK):
        pass

    with pytest.raises(ConfigError, match=r"config\.router: .*Mine is not a registered router"):
        check(Moe(router=Mine()))


def test_a_direct_field_of_a_component_type_refuses_another_name():
    message = refusal(TopK, {"name": "top_p"})
    assert message == "config.name: must be 'top_k' here; nearest valid value: 'top_k'"
    assert "top_k" in ROUTERS


def test_an_optional_registry_field_may_be_none():
    registry = Registry("loss")

    @registry.register("z")
    @dataclasses.dataclass(frozen=True)
    class Z:
        coefficient: float = knob(0.1)

    @dataclasses.dataclass(frozen=True)
    class Holder:
        loss: object | None = knob(None, registry=registry)

    assert build(Holder, {"loss": None}) == Holder()
    assert build(Holder, {"loss": {"name": "z"}}) == Holder(Z())
    assert build(Holder, to_config_dict(Holder(Z(0.5)))) == Holder(Z(0.5))
    assert refusal(Holder, {"loss": "zz"}).startswith("config.loss='zz': expected a loss")
