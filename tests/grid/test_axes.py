"""Combinators: what they give, and every mistake in one line with the nearest valid thing."""

from __future__ import annotations

import dataclasses
import time

import pytest

from moejax.config import ConfigError
from moejax.grid import axis, cases, chain, conditional, exclude, product, subsample, variants, zip
from moejax.routing.routers import TopK


def labels(axes):
    return [tuple(point.labels.values()) for point in axes]


def values(axes):
    return [point.values for point in axes]


A = axis("a.x", [1, 2])
B = axis("b.y", ["u", "v", "w"])


def test_an_axis_is_named_by_the_last_part_of_its_key_and_labels_its_values():
    made = axis("config.a.long", [1, 0.5, 1e-4, True, None, (2, 3), "t", TopK(k=3)])
    assert made.names == ("long",)
    assert made.labels("long") == ("1", "0.5", "0.0001", "true", "none", "2-3", "t", "top_k")
    assert [list(point.values) for point in made] == [["a.long"]] * 8


def test_many_values_take_linear_time():
    began = time.process_time()
    assert len(axis("a", list(range(100_000)))) == 100_000
    assert time.process_time() - began < 20  # pairwise comparison takes minutes


def test_a_hole_of_the_argument_is_a_key_too():
    assert values(axis("{moe}", ["top_k"])) == [{"{moe}": "top_k"}]
    assert axis("{moe}", ["top_k"]).names == ("moe",)


def test_labels_of_ones_own():
    made = axis("a.router", {"three": {"name": "top_k", "k": 3}, "four": {"name": "top_k", "k": 4}})
    assert labels(made) == [("three",), ("four",)]
    assert values(made)[1] == {"a.router": {"name": "top_k", "k": 4}}


def test_product_varies_the_last_fastest():
    assert labels(product(A, B)) == [
        ("1", "u"), ("1", "v"), ("1", "w"), ("2", "u"), ("2", "v"), ("2", "w"),
    ]  # fmt: skip
    assert values(product(A, B))[3] == {"a.x": 2, "b.y": "u"}


def test_zip_goes_in_step():
    made = zip(A, axis("b", [10, 20]), axis("c", [5, 6]))
    assert values(made) == [{"a.x": 1, "b": 10, "c": 5}, {"a.x": 2, "b": 20, "c": 6}]


def test_chain_keeps_axes_apart():
    made = chain(A, B)
    assert labels(made) == [("1",), ("2",), ("u",), ("v",), ("w",)]
    assert made.names == ("x", "y")


def test_conditional_refines_what_matches():
    made = conditional(product(A, B), {"x": 2, "y": ["u", "w"]}, axis("c", [7, 8]))
    assert [tuple(p.labels) for p in made] == [("x", "y")] * 3 + [("x", "y", "c")] * 2 + [
        ("x", "y")
    ] + [("x", "y", "c")] * 2
    made = conditional(A, lambda own: own["x"] == "1", axis("c", [7]))
    assert values(made) == [{"a.x": 1, "c": 7}, {"a.x": 2}]


def test_exclude_leaves_the_rest_in_order():
    assert labels(exclude(product(A, B), {"x": 1, "y": ["u", "v"]}, {"x": 2, "y": "w"})) == [
        ("1", "w"), ("2", "u"), ("2", "v"),
    ]  # fmt: skip
    assert labels(exclude(B, lambda own: own["y"] < "w")) == [("w",)]


def test_cases_hold_axes_that_belong_together():
    made = cases(("m", "s"), {(1, 0): {"k": 2}, (2, 1): {"k": 3, "w": 4}})
    assert made.names == ("m", "s")
    assert labels(made) == [("1", "0"), ("2", "1")]
    assert values(made) == [{"k": 2}, {"k": 3, "w": 4}]


def test_subsample_is_seeded_nested_and_in_order():
    whole = product(axis("a", list(range(20))), axis("b", list(range(20))))
    order = {label: i for i, label in enumerate(labels(whole))}
    drawn = labels(subsample(whole, 30, seed=3))
    assert drawn == labels(subsample(whole, 30, seed=3)) and len(set(drawn)) == 30
    assert [order[label] for label in drawn] == sorted(order[label] for label in drawn)
    assert set(drawn) < set(labels(subsample(whole, 31, seed=3)))
    assert drawn != labels(subsample(whole, 30, seed=4))
    # Drawn by hash, so the same on every machine and Python.
    first = [("3", "8"), ("5", "3"), ("13", "9")]
    assert labels(subsample(whole, 3)) == first
    # One more point in the grid moves at most one other.
    more = chain(whole, product(axis("a", [99]), axis("b", [99])))
    assert len(set(labels(subsample(more, 30, seed=3))) - set(drawn)) <= 1


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: axis("a", []), "axis 'a': is empty; give at least one value"),
        (lambda: variants("v", {}), "axis 'v': is empty"),
        (lambda: product(), "product: is empty; give at least one axis"),
        (lambda: chain(), "chain: is empty"),
        (lambda: zip(), "zip: is empty"),
        (lambda: axis("a", "xy"), "axis 'a': needs a list of values, got 'xy'"),
        (lambda: axis("a", [1, 1]), "axis 'a': two values are labelled '1'"),
        (lambda: axis("a", [1, "1"]), "axis 'a': two values are labelled '1'"),
        (lambda: axis("a", [object()]), "axis 'a': a value of type object has no label"),
        (lambda: axis("a", [{"k": 3}]), "axis 'a': a value of type dict has no label"),
        (lambda: product(A, [1]), "product: [1] is no axis"),
        (lambda: product(A, axis("other", [3], name="x")), "product: the axis 'x' is set on both"),
        (lambda: product(A, axis("a.x", [3], name="z")), "product: the key 'a.x' is set on both"),
        (lambda: zip(A, axis("a.x", [3, 4], name="z")), "zip: the key 'a.x' is set on both sides"),
        (lambda: zip(A, B), "zip: x has 2 values and y has 3; nearest valid: 2 of each"),
        (lambda: conditional(A, {"x": 3}, B), "conditional: axis 'x' has no '3'"),
        (lambda: conditional(A, {"X": 1}, B), "conditional: unknown axis 'X'; did you mean 'x'?"),
        (lambda: conditional(A, {"x": 1}, A), "conditional: the axis 'x' is set on both sides"),
        (lambda: conditional(A, lambda own: False, B), "conditional: the function matches none"),
        (lambda: exclude(B, {"y": "vv"}), "exclude: axis 'y' has no 'vv'; did you mean 'v'?"),
        (lambda: exclude(B, {"y": ["u", "v", "w"]}), "exclude: nothing is left of 3 points"),
        (
            lambda: exclude(chain(A, B), {"x": 1, "y": "u"}),
            "exclude: {'x': 1, 'y': 'u'} matches none of 5 points",
        ),
        (lambda: subsample(A, 3), "subsample: count=3 of 2 points; nearest valid value: 2"),
        (lambda: subsample(A, 0), "subsample: count=0 of 2 points; nearest valid value: 1"),
        (lambda: cases(("a", "b"), {(1,): {}}), "axis 'axb': (1,) needs 2 labels"),
        (lambda: variants("v", {"x": 3}), "axis 'v': ('x',) needs {key: value}, got 3"),
    ],
)
def test_mistakes_are_one_line(make, message):
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_points_are_values():
    assert dataclasses.is_dataclass(A) and axis("a.x", [1, 2]) == A
