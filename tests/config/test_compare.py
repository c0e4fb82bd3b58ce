import pytest
from config_samples import Experiment, Model, Moe, TopK

from moejax.config import config_hash, diff, format_diff, to_plain


def test_the_hash_is_12_hex_digits_and_ignores_order():
    assert config_hash({"a": 1, "b": [1, 2]}) == config_hash({"b": [1, 2], "a": 1})
    assert len(config_hash({})) == 12
    assert int(config_hash({}), 16) >= 0


def test_the_hash_is_the_same_on_every_machine():
    assert config_hash({"a": 1, "b": [0.1, None, "ü"]}) == "dd062a2860ab"


def test_the_hash_sees_every_value():
    base = config_hash(to_plain(Experiment()))
    assert base == config_hash(to_plain(Experiment()))
    assert base != config_hash(to_plain(Experiment(quick=True)))
    assert base != config_hash(to_plain(Experiment(model=Model(moe=Moe(router=TopK())))))


def test_an_int_given_for_a_float_changes_no_hash():
    assert config_hash(to_plain(Moe(losses={"a": 1}))) == config_hash(
        to_plain(Moe(losses={"a": 1.0}))
    )


def test_nan_has_no_hash():
    with pytest.raises(ValueError, match="Out of range"):
        config_hash({"a": float("nan")})


def test_a_difference_names_dotted_keys():
    rows = diff(
        {"a": {"b": 1, "gone": 2}, "t": [1, {"x": 1}], "same": 3, "short": [1]},
        {"a": {"b": 2, "new": None}, "t": [1, {"x": 2}], "same": 3, "short": [1, 2]},
    )
    assert format_diff(rows).splitlines() == [
        "a.b: 1 -> 2",
        "a.gone: 2 -> (absent)",
        "a.new: (absent) -> None",
        "t[1].x: 1 -> 2",
        "short: [1] -> [1, 2]",
    ]


def test_equal_configs_have_no_difference():
    plain = to_plain(Experiment())
    assert diff(plain, to_plain(Experiment())) == []
    assert format_diff([]) == ""
    assert diff({"a": 1}, {"a": 1.0}) == []
    assert diff({"a": 1}, {"a": True}) == [("a", 1, True)]
