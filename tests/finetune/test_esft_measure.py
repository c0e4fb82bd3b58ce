"""Scores of a checkpoint: those of every token's gates, whatever the layer, batch and window."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import esft_runs
import jax
import numpy as np
import pytest
from esft_runs import SCALED, SEQ_LEN, TOP_K, TOP_P, ZERO

from moejax.config import ConfigError, read_json
from moejax.finetune.esft import router_columns, score_run
from moejax.finetune.formats import read_expert_weights, read_summary, scores_of_weights
from moejax.finetune.measure import Measured, measure
from moejax.finetune.sampling import Documents, Sampling, of_texts, open_corpus_documents, windows
from moejax.finetune.scores import average_gate, selection_ratio
from moejax.models import Transformer
from moejax.models.block import Tokens
from moejax.probe import OpenedRun, open_run

SAMPLES = 6  # of a batch of four rows: the second is padded


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> OpenedRun:
    return esft_runs.opened(tmp_path_factory.mktemp("esft") / "base")


@pytest.fixture(scope="module")
def text(run: OpenedRun) -> Documents:
    return open_corpus_documents(run, "validation")


@pytest.fixture(scope="module")
def measured(run: OpenedRun, text: Documents) -> Measured:
    return measure(run, run.restore(), text, Sampling(SAMPLES, SEQ_LEN), each=True)


def every_gate(run: OpenedRun, text: Documents) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """By layer `gate_JTE` and `slots_JT`, each sample run alone, without the code under test."""
    restored, model = run.restore(), run.model

    @jax.jit
    def routings(tokens_S: jax.Array, position_S: jax.Array, segment_S: jax.Array) -> tuple:
        place = Tokens(tokens_S[None], position_S[None], segment_S[None])
        _, outs = model.hidden(
            restored.params, restored.router_state, place, jax.random.key(0),
            observe=lambda out, inputs: (out.routing.expert_TK, out.routing.weight_TK),
        )  # fmt: skip
        return model.by_group(outs, "observed")

    found: dict[int, list] = {layer: [] for layer in esft_runs.MOES}
    for pieces in windows(text, Sampling(SAMPLES, SEQ_LEN)):
        position_S = np.concatenate([np.arange(len(piece)) for piece in pieces])
        segment_S = np.concatenate([np.full(len(p), n) for n, p in enumerate(pieces, 1)])
        seen = routings(np.concatenate(pieces), position_S, segment_S)
        for group, own in zip(model.groups, seen, strict=True):
            for row, layer in enumerate(group.layers):
                expert_TK, weight_TK = (np.asarray(one[row]) for one in own)
                gate_TE = np.zeros((SEQ_LEN, group.config.num_experts + 1))
                np.put_along_axis(gate_TE, expert_TK, weight_TK, 1)
                slots_T = (expert_TK < group.config.num_experts).sum(1)
                found[layer].append((gate_TE[:, :-1], slots_T))
    return {
        layer: tuple(np.stack(one) for one in zip(*rows, strict=True))  # type: ignore[misc]
        for layer, rows in found.items()
    }


def test_scores_are_those_of_all_gates(run: OpenedRun, text: Documents, measured: Measured) -> None:
    wanted = every_gate(run, text)
    assert sorted(measured.scores.gate) == sorted(wanted) == [1, 2, 3, 4]
    for layer, (gate_JTE, slots_JT) in wanted.items():
        assert gate_JTE.shape[:2] == (SAMPLES, SEQ_LEN)
        own = measured.layers[layer]
        gate_E, ratio_E = average_gate(gate_JTE), selection_ratio(gate_JTE, slots_JT)
        np.testing.assert_allclose(own.gate_JE.mean(0), gate_E, atol=1e-5)
        np.testing.assert_allclose(own.ratio_JE.mean(0), ratio_E, atol=1e-5)
        assert np.ptp(gate_E) > 0.01
        used_TE = gate_JTE.reshape(-1, gate_JTE.shape[-1]) > 0
        pairs_NN = (used_TE.T.astype(int) @ used_TE)[np.ix_(own.experts, own.experts)]
        np.testing.assert_array_equal(own.pairs_NN, pairs_NN)
        assert own.slots == pytest.approx(slots_JT.mean())
        for expert, score in measured.scores.gate[layer].items():
            assert score == round(score, 4) == pytest.approx(gate_E[expert], abs=6e-5)


def test_what_scores_sum_to(measured: Measured) -> None:
    """r to 1, g to the mean total weight: below 1 for raw weights, 1 renormalised, else the scale;
    where some experts compute nothing they keep their share of both."""
    gate = {layer: sum(row.values()) for layer, row in measured.scores.gate.items()}
    token = {layer: sum(row.values()) for layer, row in measured.scores.token.items()}
    for layer in (TOP_K, TOP_P, SCALED):
        assert token[layer] == pytest.approx(1, abs=5e-4)
    assert 1 / 3 < gate[TOP_K] < 0.99
    assert gate[TOP_P] == pytest.approx(1, abs=5e-4)
    assert gate[SCALED] == pytest.approx(2.5, abs=5e-4)
    assert list(measured.scores.gate[ZERO]) == [0, 1, 2, 3]
    assert 0.05 < token[ZERO] < 0.95 and gate[ZERO] < 0.95
    assert measured.layers[TOP_P].slots < 3 and measured.layers[ZERO].slots == 2


def test_gates_of_every_token_give_the_same_scores(measured: Measured, tmp_path: Path) -> None:
    gate_E, ratio_E = scores_of_weights(measured.layers[TOP_K].chosen, 2, 6)
    np.testing.assert_allclose(gate_E, measured.layers[TOP_K].gate_JE.mean(0), atol=1e-5)
    np.testing.assert_allclose(ratio_E, measured.layers[TOP_K].ratio_JE.mean(0), atol=1e-5)
    assert len(measured.layers[ZERO].chosen) == SAMPLES


def test_a_sample_longer_than_the_window_becomes_as_many_tokens_in_more_windows(
    run: OpenedRun, text: Documents, measured: Measured
) -> None:
    found = measure(run, run.restore(), text, Sampling(SAMPLES // 2, 2 * SEQ_LEN))
    assert found.scores == dataclasses.replace(measured.scores, origin=found.scores.origin)
    origin = found.scores.origin
    assert (origin.samples, origin.length, origin.tokens) == (6, SEQ_LEN, 6 * SEQ_LEN)
    assert origin.experts == {TOP_K: 6, TOP_P: 5, ZERO: 4, SCALED: 6}


def test_another_seed_is_another_sample(
    run: OpenedRun, text: Documents, measured: Measured
) -> None:
    again = measure(run, run.restore(), text, Sampling(SAMPLES, SEQ_LEN, seed=1))
    assert again.scores.gate != measured.scores.gate


@pytest.mark.slow
def test_scores_on_two_devices(run: OpenedRun, text: Documents, measured: Measured) -> None:
    other = open_run(run.root, devices=2)
    found = measure(other, other.restore(), text, Sampling(SAMPLES, SEQ_LEN))
    for layer, row in found.scores.gate.items():
        for expert, score in row.items():
            assert score == pytest.approx(measured.scores.gate[layer][expert], abs=2e-3)


# ---- samples


def texts(run: OpenedRun, *words: str) -> Documents:
    return of_texts(run.dataset, "mine", "mine", "its split train", words)


def test_windows_are_the_documents_one_after_another(run: OpenedRun) -> None:
    documents = texts(run, "a" * 50, "b" * 30, "c", "d" * 70)
    found = windows(documents, Sampling(100, SEQ_LEN), lambda line: None)
    assert [sum(map(len, window)) for window in found] == [SEQ_LEN] * 4  # 155 tokens: 27 are left
    joined = np.concatenate([piece for window in found for piece in window])
    order = np.random.default_rng(0).permutation(4)
    whole = np.concatenate([documents.ids(int(number)) for number in order])
    np.testing.assert_array_equal(joined, whole[: len(joined)])
    ends = np.flatnonzero(joined == run.dataset.tokenizer.eos_id)
    starts = np.cumsum([len(piece) for window in found for piece in window])
    assert set(ends + 1) <= set(starts)


def test_a_short_text_is_one_short_sample_and_says_so(run: OpenedRun) -> None:
    said: list[str] = []
    found = measure(run, run.restore(), texts(run, "abc"), Sampling(2, SEQ_LEN), say=said.append)
    assert (found.scores.origin.samples, found.scores.origin.tokens) == (1, 4)
    assert sum(found.scores.token[TOP_K].values()) == pytest.approx(1, abs=5e-4)
    assert said == ["note: mine: 1 of 2 samples of 32 tokens: the text has no more"]


def test_an_empty_task_is_refused(run: OpenedRun) -> None:
    with pytest.raises(ConfigError, match=r"^mine: its split train is empty"):
        windows(texts(run), Sampling())


@pytest.mark.parametrize(
    "sampling, words",
    [(Sampling(samples=0), "--samples=0"), (Sampling(length=0), "--length=0"),
     (Sampling(seed=-1), "--seed=-1")],
)  # fmt: skip
def test_samples_that_are_none(sampling: Sampling, words: str) -> None:
    with pytest.raises(ConfigError, match=f"^{words}: nearest valid value"):
        sampling.within(32)


# ---- what cannot be scored


def test_gates_that_are_no_numbers(run: OpenedRun) -> None:
    restored = run.restore()
    broken = jax.tree.map(np.array, restored.params)
    broken["embed"]["table_VD"][:] = np.nan
    with pytest.raises(ConfigError, match="layer 1: the score of expert 0 is nan"):
        measure(run, dataclasses.replace(restored, params=broken), texts(run, "abc"))


def test_a_dense_model_has_nothing_to_score(run: OpenedRun) -> None:
    config = dataclasses.replace(
        run.experiment.model, num_layers=1, layers=("dense",), moe_variants={}
    )
    other = dataclasses.replace(run, model=Transformer(config))
    with pytest.raises(ConfigError, match="is dense: it has no experts"):
        measure(other, run.restore(), texts(run, "abc"))


# ---- on disk


def test_a_scored_run_has_a_summary_and_an_analysis(
    run: OpenedRun, text: Documents, measured: Measured, tmp_path: Path
) -> None:
    restored, said = run.restore(), []
    path = score_run(
        run, restored, text, Sampling(SAMPLES, SEQ_LEN), tmp_path / "summary.json", said.append,
        each=True,
    )  # fmt: skip
    scores = read_summary(path)
    assert scores.gate == measured.scores.gate and scores.token == measured.scores.token
    assert scores.origin.base_hash == run.params_hash(restored.step)
    assert scores.origin.run == str(run.root) and scores.origin.task == "validation"
    assert len(said) == 1 and "192 tokens (6 x 32) of validation" in said[0]
    rows = read_expert_weights(tmp_path / f"expert_weights_{TOP_K}.txt")
    gate_E, _ = scores_of_weights(rows, 2, 6)
    np.testing.assert_allclose(gate_E, list(scores.gate[TOP_K].values()), atol=1.1e-4)
    found = read_json(tmp_path / "analysis.json")
    assert found["layers"]["3"]["experts"] == 4 and found["layers"]["3"]["token_sum"] < 0.95
    assert found["selected"]["gate"]["experts"].keys() == {"1", "2", "3", "4"}
    assert 0 <= found["selected"]["token"]["stability"] <= 1
    names = {(row["score"], row["affinity"], row["size"]) for row in found["grouping"]}
    assert len(names) == len(found["grouping"]) == 12
    for row in found["grouping"]:
        assert row["grouped"] >= row["single"] * 0.99 and row["ratio"] >= 0.99


def test_columns_of_routers_are_those_of_experts_with_weights(run: OpenedRun) -> None:
    restored = run.restore()
    columns = router_columns(run.model, restored.params)
    assert {layer: one.shape for layer, one in columns.items()} == {
        1: (16, 6), 2: (16, 5), 3: (16, 4), 4: (16, 6),
    }  # fmt: skip
