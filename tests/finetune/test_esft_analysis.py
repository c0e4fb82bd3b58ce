"""Concentration, overlap and grouping, on small numbers that can be done by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moejax.config import ConfigError
from moejax.finetune.concentration import (
    chance_jaccard,
    concentration,
    curve,
    fewest,
    jaccard,
    mass,
    overlap,
)
from moejax.finetune.esft import overlap_of
from moejax.finetune.grouping import (
    cooccurrence,
    cosine,
    greedy_groups,
    grouping,
    groups_in,
    random_groups,
    select_by_group,
)
from moejax.finetune.scores import Origin, Scores
from moejax.finetune.tables import groups_table, overlap_table

TABLE = {1: {0: 0.4, 1: 0.1, 2: 0.3, 3: 0.2}, 2: {0: 0.25, 1: 0.25, 2: 0.25, 3: 0.25}}


def test_how_few_carry_half() -> None:
    assert fewest(np.array([0.4, 0.1, 0.3, 0.2])) == 2
    assert fewest(np.array([0.25, 0.05, 0.05, 0.05]) / 4) == 1  # of the layer's own total
    assert fewest(np.array([0.1, 0.1, 0.1]), 1.0) == 3
    assert fewest(np.zeros(3)) == 0
    found = concentration({1: {0: 0.9, 1: 0.05, 2: 0.05, 3: 0.0}, 2: TABLE[2]})
    assert found["layers"]["1"] == {"experts": 1, "share": 0.25, "uniform": 0.5}
    assert found["layers"]["2"]["experts"] == 2
    assert found["mean_experts"] == 1.5 and found["mean_share"] == 0.375


def test_the_curve_over_p() -> None:
    rows = {row["p"]: row for row in curve(TABLE)}
    assert rows[0.02]["experts"] == 2 and rows[0.02]["mass"] == pytest.approx((0.4 + 0.25) / 2)
    assert rows[0.5]["experts"] == 4 and rows[0.5]["share"] == 0.5
    assert rows[1.0]["experts"] == 8 and rows[1.0]["mass"] == pytest.approx(1)
    assert mass({1: {0: 0.2, 1: 0.1}}, {1: (0,)}) == pytest.approx(2 / 3)


def test_overlap_of_tasks() -> None:
    assert jaccard((0, 1), (1, 2, 3)) == 0.25 and jaccard((), ()) == 1
    assert chance_jaccard(2, 2, 8) == pytest.approx(0.5 / 3.5)
    chosen = {"law": {1: (0, 1), 2: (3,)}, "code": {1: (1, 2), 2: (3,)}}
    found = overlap(chosen, {1: 4, 2: 4})
    assert found["tasks"] == ["law", "code"]
    np.testing.assert_allclose(found["jaccard"], [[1, 2 / 3], [2 / 3, 1]])
    assert found["layers"]["1"]["shared"] == [[2, 1], [1, 2]]
    chance = (chance_jaccard(2, 2, 4) + chance_jaccard(1, 1, 4)) / 2
    assert found["chance"][0][1] == pytest.approx(chance)
    with pytest.raises(ConfigError, match="code: its selection is of other layers"):
        overlap(chosen | {"code": {1: (0,)}}, {1: 4, 2: 4})


def test_an_overlap_of_summaries_and_its_table() -> None:
    other = {1: {0: 0.1, 1: 0.4, 2: 0.3, 3: 0.2}, 2: TABLE[2]}
    several = {name: Scores(t, t, Origin("ab")) for name, t in (("law", TABLE), ("code", other))}
    found = overlap_of(several, "gate", 0.5)
    assert found["selected"] == {"law": 4, "code": 4} and found["base_hash"] == "ab"
    assert found["jaccard"][0][1] == pytest.approx((1 / 3 + 1) / 2)
    assert "0.667 (0.333)" in overlap_table(found)
    with pytest.raises(ConfigError, match="of two tasks or more"):
        overlap_of({"law": several["law"]})
    stranger = several | {"x": Scores(TABLE, TABLE, Origin("cd"))}
    with pytest.raises(ConfigError, match="scores of different models"):
        overlap_of(stranger)


# ---- groups


def test_affinities() -> None:
    pairs_EE = np.array([[4.0, 2, 0], [2, 6, 0], [0, 0, 0]])
    np.testing.assert_allclose(cooccurrence(pairs_EE), [[1, 0.25, 0], [0.25, 1, 0], [0, 0, 0]])
    router_DE = np.array([[1.0, 2, 0, 0], [0, 0, 3, 0]])
    found = cosine(router_DE)
    np.testing.assert_allclose(found[:3, :3], [[1, 1, 0], [1, 1, 0], [0, 0, 1]])
    assert found[3, 3] == 0


def test_greedy_groups_join_what_is_alike() -> None:
    near = np.zeros((6, 6))
    for first, second, value in ((0, 3, 0.9), (1, 4, 0.8), (3, 1, 0.5), (2, 5, 0.1), (0, 4, 0.2)):
        near[first, second] = near[second, first] = value
    assert greedy_groups(near, 2) == ((0, 3), (1, 4), (2, 5))
    assert greedy_groups(near, 4) == ((0, 3, 1, 4), (2, 5))
    assert greedy_groups(near, 1) == tuple((e,) for e in range(6))
    assert greedy_groups(near, 8) == (tuple(range(6)),)
    with pytest.raises(ConfigError, match="size=0"):
        greedy_groups(near, 0)
    drawn = random_groups(5, 2, 1)
    assert sorted(e for group in drawn for e in group) == list(range(5))
    assert [len(group) for group in drawn] == [2, 2, 1]


def test_whole_groups_need_more_unless_they_are_the_right_ones() -> None:
    table = {1: dict(enumerate([0.4, 0.0, 0.0, 0.4, 0.1, 0.1]))}
    assert select_by_group(table, {1: ((0, 3), (1, 2), (4, 5))}, 0.8) == {1: (0, 3)}
    (found,) = select_by_group(table, {1: ((0, 1), (2, 3), (4, 5))}, 0.8).values()
    assert set(found) == {0, 1, 2, 3}
    good = np.zeros((6, 6))
    good[0, 3] = good[3, 0] = 1.0
    rows = grouping(table, {"cooccurrence": {1: good}}, 0.8)
    assert [(row["affinity"], row["size"]) for row in rows] == [
        ("cooccurrence", 2), ("cooccurrence", 4), ("random", 2), ("random", 4),
    ]  # fmt: skip
    pair, four, random_pair, _ = rows
    assert pair["single"] == pair["grouped"] == 2 and pair["ratio"] == 1
    assert pair["mass"] == pytest.approx(0.8) and pair["groups"] == {"1": ((0, 3), (1, 2), (4, 5))}
    assert four["grouped"] == 4 and four["share"] == pytest.approx(4 / 6)
    assert random_pair["grouped"] > 2 and "groups" not in random_pair
    text = groups_table(Path("analysis.json"), {"grouping": rows})
    assert len(text.splitlines()) == 5 and "cooccurrence" in text
    for broken in ({}, {"grouping": [{"score": "gate"}]}):
        with pytest.raises(ConfigError, match=r"^analysis.json: "):
            groups_table(Path("analysis.json"), broken)


def test_groups_of_an_analysis_are_of_the_experts_that_were_scored() -> None:
    """Experts 2 and 5 have no weights: groups are numbered past them."""
    path, table = Path("analysis.json"), {3: {0: 0.4, 1: 0.1, 3: 0.4, 4: 0.1}}
    row = {"affinity": "cosine", "size": 2, "groups": {"3": [[0, 2], [1, 3]]}}
    found = groups_in(path, {"grouping": [row]}, table, "cosine", 2)
    assert found == {3: ((0, 3), (1, 4))}
    assert select_by_group(table, found, 0.5) == {3: (0, 3)}
    with pytest.raises(ConfigError, match=r"no groups by cosine of 4; there are: cosine of 2$"):
        groups_in(path, {"grouping": [row]}, table, "cosine", 4)
    for broken in ({"3": [[0, 2], [1]]}, {"3": [[0, 2], [1, 1]]}, {}, {"3": [["x"]]}):
        with pytest.raises(ConfigError, match=r"^analysis.json: its groups of layer 3 are "):
            groups_in(path, {"grouping": [row | {"groups": broken}]}, table, "cosine", 2)
    with pytest.raises(ConfigError, match="there are: none"):
        groups_in(path, [], table, "cosine", 2)
