import random

import pytest
from model_samples import EQUAL as A
from model_samples import UNEQUAL as B
from model_samples import config

from moejax.models.segments import Segment, segments

DENSE = None


@pytest.mark.parametrize(
    "plan, found",
    [
        ((), []),
        ((A,), [((A,), 1)]),
        ((DENSE,) * 5, [((DENSE,), 5)]),
        ((DENSE, A, A, A), [((DENSE,), 1), ((A,), 3)]),
        ((DENSE, A, DENSE, A, DENSE, A), [((DENSE, A), 3)]),
        ((DENSE, A, DENSE, A, DENSE), [((DENSE, A), 2), ((DENSE,), 1)]),
        ((A, A, B, B), [((A,), 2), ((B,), 2)]),
        ((DENSE, A, B, A), [((DENSE,), 1), ((A,), 1), ((B,), 1), ((A,), 1)]),
        ((A, A, A, B, A, A, A, B), [((A, A, A, B), 2)]),
        ((A, B, A, DENSE, A), [((A,), 1), ((B,), 1), ((A,), 1), ((DENSE,), 1), ((A,), 1)]),
        ((A, B, B, B, B), [((A,), 1), ((B,), 4)]),
    ],
)  # fmt: skip
def test_segments_of_a_plan(plan, found):
    assert [(s.pattern, s.repeat) for s in segments(plan)] == found


@pytest.mark.parametrize("seed", range(40))
def test_segments_partition_the_plan_in_order(seed):
    rng = random.Random(seed)
    plan = tuple(rng.choice((DENSE, A, B)) for _ in range(rng.randint(1, 14)))
    layers = []
    for segment in segments(plan):
        period = len(segment.pattern)
        assert segment.start == len(layers)
        places = {}
        for position, moe in enumerate(segment.pattern):
            assert len(segment.layers(position)) == segment.repeat
            places |= dict.fromkeys(segment.layers(position), moe)
        assert sorted(places) == list(range(len(layers), len(layers) + segment.repeat * period))
        layers.extend(places[layer] for layer in sorted(places))
    assert tuple(layers) == plan


def test_layers_of_a_position():
    segment = Segment((DENSE, A), repeat=3, start=2)
    assert segment.layers(0) == (2, 4, 6)
    assert segment.layers(1) == (3, 5, 7)


@pytest.mark.parametrize(
    "changes, kinds",
    [
        ({}, "mmmmmm"),
        ({"first_dense": 2}, "ddmmmm"),
        ({"moe_every": 2}, "dmdmdm"),
        ({"moe_every": 3}, "ddmddm"),
        ({"first_dense": 1, "moe_every": 2}, "ddmdmd"),
        ({"first_dense": 6}, "dddddd"),
        ({"layers": ("moe", "dense", "other", "moe", "moe", "dense")}, "mdommd"),
    ],
)
def test_which_layers_are_moe(changes, kinds):
    plan = config(A, num_layers=6, moe_variants={"other": B}, **changes).plan()
    assert plan == tuple({"m": A, "d": None, "o": B}[kind] for kind in kinds)
