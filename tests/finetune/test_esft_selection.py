"""Selections: files of the official repository, what fits which model, one-line refusals."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import esft_runs
import numpy as np
import pytest

from moejax.config import ConfigError
from moejax.experts import MoeConfig
from moejax.finetune.esft import choose, read_summaries, selected_line
from moejax.finetune.formats import (
    read_expert_weights,
    read_selection,
    read_summary,
    scores_of_weights,
    write_expert_weights,
    write_selection,
    write_summary,
)
from moejax.finetune.scores import Origin, Scores
from moejax.finetune.selection import Selection, check_selection, method_of, smallest_prefix
from moejax.models import ModelConfig, Transformer
from moejax.models.attention import AttentionConfig

TOKEN = {1: {0: 0.1, 1: 0.2, 2: 0.7}, 10: {0: 0.4, 1: 0.3, 2: 0.3}, 2: {0: 1.0, 1: 0.0, 2: 0.0}}
GATE = {layer: {e: round(v / 2, 4) for e, v in row.items()} for layer, row in TOKEN.items()}
ORIGIN = Origin("abc123", "runs/base", 40, "law", 640, 20, 32, 3, {1: 3, 2: 3, 10: 3})
SCORES = Scores(TOKEN, GATE, ORIGIN)


def refused(action: Callable[[], Any], *words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        action()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)


# ---- files


def test_a_summary_comes_back_and_reads_like_theirs(tmp_path: Path) -> None:
    write_summary(tmp_path / "summary.json", SCORES)
    assert read_summary(tmp_path / "summary.json") == SCORES
    record = json.loads((tmp_path / "summary.json").read_text())
    assert list(record) == ["token_scores", "gate_scores", "moejax"]
    assert list(record["token_scores"]) == ["1", "2", "10"]  # ties go by the order of a file
    assert record["gate_scores"]["10"] == {"0": 0.2, "1": 0.15, "2": 0.15}
    del record["moejax"]
    (tmp_path / "theirs.json").write_text(json.dumps(record))
    theirs = read_summary(tmp_path / "theirs.json")
    assert theirs.gate == SCORES.gate and theirs.origin == Origin()


def test_an_expert_config_comes_back_with_its_order(tmp_path: Path) -> None:
    chosen = Selection({1: (2, 0), 10: (1,)}, True, False, ORIGIN, "gate", 0.3, 5)
    write_selection(tmp_path / "expert_config.json", chosen)
    assert read_selection(tmp_path / "expert_config.json") == chosen
    record = json.loads((tmp_path / "expert_config.json").read_text())
    assert record["experts"] == {"1": [2, 0], "10": [1]} and record["shared_experts"] is True
    theirs = {"experts": {"1": [8, 26, 55]}, "shared_experts": False, "non_expert_modules": False}
    (tmp_path / "theirs.json").write_text(json.dumps(theirs))
    assert read_selection(tmp_path / "theirs.json") == Selection({1: (8, 26, 55)})


def test_expert_weights_give_means_over_tokens_not_over_lines(tmp_path: Path) -> None:
    path = tmp_path / "expert_weights_1.txt"
    rows = [
        (np.array([0, 1, 0, 2, 0, 1]), np.array([0.5, 0.25, 0.5, 0.5, 0.5, 0.25])),
        (np.array([2, 1]), np.array([0.75, 0.12345])),
    ]
    write_expert_weights(path, rows)
    assert path.read_text().splitlines()[1] == "2\t1\t\t0.75\t0.1235"
    gate_E, ratio_E = scores_of_weights(read_expert_weights(path), 2, 3)
    np.testing.assert_allclose(gate_E, [1.5 / 4, 0.62350 / 4, 1.25 / 4], atol=1e-12)
    np.testing.assert_allclose(ratio_E, [3 / 8, 3 / 8, 2 / 8])
    refused(lambda: scores_of_weights(rows, 2, 2), "line 1", "expert 2 is out of range")
    refused(lambda: scores_of_weights(rows, 4, 3), "line 1", "no multiple of K=4")
    path.write_text("1\t2\t\t0.5\n")
    refused(lambda: read_expert_weights(path), "line 1: 2 ids, 1 weights")
    path.write_text("1 2 0.5\n")
    refused(lambda: read_expert_weights(path), "line 1: is not ids")


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda r: r.pop("gate_scores"), "has no 'gate_scores'"),
        (lambda r: r["token_scores"].update({"x": {}}), "token_scores: 'x' is no number"),
        (lambda r: r["gate_scores"]["1"].update({"0": -1}), "gate_scores.1.0=-1: must be a finite"),
        (lambda r: r["gate_scores"]["1"].update({"0": None}), "gate_scores.1.0=None: must be a"),
        (lambda r: r["gate_scores"]["1"].update({"7": 0.1}), "layer 1: the two scores are of"),
        (lambda r: r["gate_scores"].pop("2"), "the two scores are of different"),
        (lambda r: r["gate_scores"].update({"5": {"0": 1.0}}), "the two scores are of different"),
        (lambda r: r["token_scores"].clear(), "token_scores is empty"),
        (lambda r: r["moejax"].update(step="four"), "moejax.step='four': must be int"),
        (lambda r: r["moejax"].update(format_version=9), "this version reads 1"),
    ],
)
def test_summaries_that_are_none(change: Callable, words: str, tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_summary(path, SCORES)
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    refused(lambda: read_summary(path), str(path), words)


@pytest.mark.parametrize(
    "record, words",
    [
        ({"expert": {}}, "has no 'experts'; did you mean 'expert'"),
        ({"experts": {"1": 3}}, "experts.1 is not a list"),
        ({"experts": {"1": [-1]}}, "experts.1: -1 is no number"),
        ({"experts": {"1": [True]}}, "experts.1: True is no number"),
        ({"experts": {"1": [1]}, "shared_experts": 1}, "shared_experts=1: must be true or false"),
        ([1], "holds no JSON object"),
    ],
)
def test_expert_configs_that_are_none(record: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "expert_config.json"
    path.write_text(json.dumps(record))
    refused(lambda: read_selection(path), str(path), words)


# ---- what is chosen


def test_thresholds_and_scores_that_are_none() -> None:
    for p in (0.0, -0.1, 1.1, float("nan")):
        refused(lambda p=p: smallest_prefix({0: 1.0}, p), f"--p={p}", "nearest valid value")
    refused(lambda: smallest_prefix({0: 0.5, 3: float("nan")}, 0.9), "expert 3 is nan")
    refused(lambda: choose([SCORES], "gates", 0.1), "--score='gates'", "did you mean 'gate'")


def test_several_tasks_are_a_union_of_selections() -> None:
    other_row = {layer: dict(zip(row, reversed(row.values()), strict=True)) for layer, row in
                 TOKEN.items()}  # fmt: skip
    other = Scores(other_row, other_row, dataclasses.replace(ORIGIN, task="code"))
    both = choose([SCORES, other], "token", 0.35)
    assert both.experts == {1: (2, 0), 2: (0, 2), 10: (0, 2)}
    assert both.origin.task == "law+code" and both.origin.tokens == 1280 and both.p == 0.35
    drawn = choose([SCORES, other], "token", 0.35, seed=1)
    assert {layer: len(one) for layer, one in drawn.experts.items()} == {1: 2, 2: 2, 10: 2}
    assert drawn.seed == 1
    assert choose([SCORES], "gate").p == 0.1 and choose([SCORES], "token").p == 0.2
    stranger = dataclasses.replace(other, origin=dataclasses.replace(ORIGIN, base_hash="ffff"))
    refused(lambda: choose([SCORES, stranger]), "scores of different models (bases abc123, ffff)")
    smaller = Scores({1: {0: 1.0}}, {1: {0: 1.0}})
    refused(lambda: choose([SCORES, smaller]), "--summary: scores of different models")


def test_a_threshold_that_scores_do_not_reach_takes_all_and_says_so() -> None:
    chosen = choose([SCORES], "gate", 0.6)
    assert chosen.count == 9
    line = selected_line(Path("x.json"), chosen, [SCORES.gate])
    assert "9 of 9 experts by gate p=0.6" in line and "all of layers 1, 2, 10" in line
    assert "all of" not in selected_line(Path("x"), choose([SCORES], "gate", 0.1), [SCORES.gate])


def test_summaries_by_folder(tmp_path: Path) -> None:
    for task in ("law", "code"):
        write_summary(tmp_path / task / "summary.json", SCORES)
    names = [str(tmp_path / "law"), str(tmp_path / "code" / "summary.json")]
    assert list(read_summaries(names)) == ["law", "code"]
    refused(lambda: read_summaries([]), "--summary: is required")
    refused(lambda: read_summaries([names[0], names[0]]), "a summary of 'law' was given before")


# ---- which model it fits


def model_of(*layers: MoeConfig | None) -> Transformer:
    kinds = {f"k{n}": one for n, one in enumerate(layers) if one is not None}
    return Transformer(
        ModelConfig(
            vocab_size=16,
            d_model=16,
            num_layers=len(layers),
            ffn_width=8,
            attention=AttentionConfig(heads=2),
            layers=tuple("dense" if one is None else f"k{n}" for n, one in enumerate(layers)),
            moe_variants=kinds,
        )
    )


MODEL = model_of(None, esft_runs.MOES[esft_runs.TOP_K], esft_runs.MOES[esft_runs.ZERO])


@pytest.mark.parametrize(
    "experts, words",
    [
        ({1: (0, 6)}, ("expert 6 is out of range", "nearest valid value 5")),
        ({0: (1,)}, ("layer 0 of the model is dense", "nearest MoE layer 1")),
        ({26: (1,)}, ("26: the model has 3 layers", "nearest valid value 2")),
        ({2: (5,)}, ("expert 5 computes nothing",)),
        ({1: (2, 2)}, ("expert 2 is named twice",)),
        ({1: ()}, ("no expert is chosen",)),
    ],
    ids=["out of range", "dense", "absent", "zero computation", "twice", "nothing"],
)
def test_selections_that_do_not_fit(experts: dict, words: tuple[str, ...]) -> None:
    check_selection(Selection({1: (0, 5), 2: (3,)}), MODEL)
    refused(
        lambda: check_selection(Selection(experts), MODEL, "", "mine.json"), "mine.json", *words
    )


def test_a_selection_of_another_model_is_refused() -> None:
    own = dataclasses.replace(ORIGIN, experts={1: 6, 2: 4})
    check_selection(Selection({1: (0,)}, origin=own), MODEL, "abc123")
    check_selection(Selection({1: (0,)}), MODEL, "abc123")  # theirs: it does not say
    refused(
        lambda: check_selection(Selection({1: (0,)}, origin=own), MODEL, "def456"),
        "--selection: was chosen for another model: for base abc123 (runs/base), this one is def4",
    )
    others = Selection({1: (0,)}, origin=ORIGIN)
    refused(lambda: check_selection(others, MODEL), "another model", "3 x 3", "6, 4")
    refused(lambda: check_selection(Selection({1: (0,)}), model_of(None)), "the model is dense")


def test_the_method_of_a_selection() -> None:
    plain = method_of(Selection({1: (5, 0)}))
    assert plain.experts == {"1": (5, 0)} and plain.roles == ()
    every = method_of(Selection({1: (5,)}, True, True))
    assert set(every.roles) == {"shared", "router", "attention", "norms", "dense", "embeddings"}
