import dataclasses

import pytest

from moejax.config import ConfigError, knob, nearest
from moejax.config.knobs import check_value, knob_of, show


def meta(**kwargs):
    return knob_of(
        dataclasses.fields(dataclasses.make_dataclass("D", [("x", int, knob(**kwargs))]))[0]
    )


def test_a_knob_keeps_what_it_was_told():
    found = meta(default=3, unit="steps", doc="How long.", choices=[1, 3], low=0, high=5)
    assert (found.unit, found.doc, found.choices, found.low, found.high) == (
        "steps",
        "How long.",
        (1, 3),
        0,
        5,
    )


def test_an_ordinary_field_is_unconstrained():
    field = dataclasses.fields(dataclasses.make_dataclass("D", [("x", int)]))[0]
    check_value(10**9, knob_of(field), "x")


def test_mutable_defaults_and_empty_bounds_are_refused():
    with pytest.raises(ConfigError, match=r"is mutable; nearest valid: a tuple"):
        knob([1])
    with pytest.raises(ConfigError, match="low=2 is above high=1"):
        knob(1, low=2, high=1)


def test_nearest_ignores_case_and_distant_words():
    assert nearest("topk", ["top_k", "hash"]) == "; did you mean 'top_k'?"
    assert nearest("TOP_K", ["top_k", "hash"]) == "; did you mean 'top_k'?"
    assert nearest("zzz", ["top_k", "hash"]) == ""
    assert nearest("x", []) == ""


@pytest.mark.parametrize(
    "value, bounds, end",
    [
        (0, {"low": 0, "low_open": True}, "must be > 0; nearest valid value: 1"),
        (-1, {"low": 0.5}, "must be >= 0.5; nearest valid value: 1"),
        (9, {"high": 9, "high_open": True}, "must be < 9; nearest valid value: 8"),
        (9, {"high": 7.5}, "must be <= 7.5; nearest valid value: 7"),
        (9.5, {"high": 9}, "must be <= 9; nearest valid value: 9.0"),
        (-0.5, {"low": 0, "high": 1}, "must be in [0, 1]; nearest valid value: 0.0"),
        (
            2.0,
            {"low": 0, "high": 1, "high_open": True},
            "in [0, 1); nearest valid value: just below 1",
        ),
    ],
)
def test_bounds_name_the_nearest_valid_value(value, bounds, end):
    with pytest.raises(ConfigError) as caught:
        check_value(value, meta(default=0, **bounds), "k")
    assert str(caught.value).startswith(f"k={value!r}: ")
    assert str(caught.value).endswith(end)


@pytest.mark.parametrize("value", [0, 1, 0.5])
def test_closed_bounds_hold_their_ends(value):
    check_value(value, meta(default=0, low=0, high=1), "k")


def test_a_bool_is_not_the_choice_1():
    with pytest.raises(ConfigError, match="k=True: must be one of 0, 1"):
        check_value(True, meta(default=0, choices=(0, 1)), "k")
    check_value(1.0, meta(default=0, choices=(0, 1)), "k")


def test_an_error_that_ml_collections_wrapped_is_one_line_again():
    inner = "moe='top_q': must be one of top_k, top_p"
    wrapped = (
        "Error whilst parsing config file:\n\nTraceback (most recent call last):\n"
        f'  File "lm.py", line 3\nmoejax.config.knobs.ConfigError: {inner}\n'
    )
    assert str(ConfigError(wrapped)) == inner
    assert str(ConfigError("")) == ""


def test_show_is_short_and_one_line():
    assert show({"a": 1, "b": 2}) == "{a, b}"
    assert len(show("x" * 500)) == 80
    assert "\n" not in show("a\nb")
