"""Scores of tasks against texts scored one at a time, and against the trainer's own evaluation."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from array_hash import hash_of_arrays

from moejax.config import ConfigError, read_json
from moejax.data.tasks import open_task
from moejax.data.tasks.encoding import encode_examples
from moejax.finetune.methods import Full
from moejax.probe import task_scores
from moejax.probe.generation import Completion
from moejax.probe.opened import Restored
from moejax.probe.scoring import Scorer, Span
from moejax.probe.task_scores import ScoreOptions, score_task, write_score
from moejax.train.tuning import FineTune

LENGTH = 64


def question(n):
    return {
        "prompt": f"where was the cat on day {n}?",
        "answer": ("on a mat" if n % 3 else "past the dogs; then at noon it slept") + f" {n}",
        "document": f"d{n // 3}",
    }


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    file = tmp_path_factory.mktemp("asked") / "t.jsonl"
    file.write_text("".join(json.dumps(question(n)) + "\n" for n in range(150)))
    return open_task(f"task:files:{file}")


@pytest.fixture(scope="module")
def restored(trained):
    return trained.restore()


@pytest.fixture(scope="module")
def record(trained, restored, asked):
    return score_task(trained, restored, asked, ScoreOptions(length=LENGTH, general_tokens=0))


def test_losses_are_those_of_each_example_alone(trained, restored, asked, record):
    tokenizer = trained.dataset.tokenizer
    examples = asked.examples("test")
    encoded = encode_examples(tokenizer, examples)
    scorer = Scorer(trained.model, restored.params, restored.router_state, max_length=LENGTH)
    scores = scorer.score([Span(tuple(e.before), tuple(e.answer)) for e in encoded])
    by_document = {}
    for example, one, score in zip(examples, encoded, scores, strict=True):
        sums = by_document.setdefault(example.document, [0, 0.0])
        sums[0] += len(one.answer)
        sums[1] -= score.total
    assert len(by_document) > 3
    told = {row["id"]: (row["tokens"], row["loss"]) for row in record["answer_documents"]}
    assert told.keys() == by_document.keys()
    for name, (tokens, nats) in by_document.items():
        assert told[name][0] == tokens
        assert told[name][1] == pytest.approx(nats / tokens, abs=1e-4)
    total = sum(nats for _, nats in by_document.values())
    count = sum(tokens for tokens, _ in by_document.values())
    assert record["answer_loss"]["mean"] == pytest.approx(total / count, abs=1e-4)
    assert record["answer_tokens"] == count and record["examples"] == len(examples)
    assert record["documents"] == len(by_document)
    size = sum(len(e.answer.encode()) for e in examples)
    assert record["answer_bits_per_byte"] == pytest.approx(total / np.log(2) / size, abs=1e-4)


def test_the_interval_is_over_documents(record):
    loss = record["answer_loss"]
    sums = np.array([r["loss"] * r["tokens"] for r in record["answer_documents"]])
    count = np.array([r["tokens"] for r in record["answer_documents"]])
    mean, documents = sums.sum() / count.sum(), len(sums)
    error = np.sqrt(documents / (documents - 1) * ((sums - mean * count) ** 2).sum()) / count.sum()
    assert loss["mean"] == pytest.approx(mean)
    assert loss["high"] - loss["mean"] == pytest.approx(loss["mean"] - loss["low"])
    assert 1.9 < (loss["high"] - loss["mean"]) / error < 13


def test_general_loss_is_the_trainer_s_and_long_answers_are_cut(trained, restored, tmp_path):
    lines = [json.loads(line) for line in (trained.root / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "eval/loss" in line][-1]
    file = tmp_path / "t.jsonl"
    long = [{"prompt": f"{n}", "answer": question(n)["answer"] * (1 + n % 2)} for n in range(99)]
    file.write_text("".join(json.dumps(one) + "\n" for one in long))
    task = open_task(f"task:files:{file}")
    options = ScoreOptions(template="{prompt}{answer}", general_tokens=0)
    found = score_task(trained, restored, task, options)
    assert found["length"] == trained.experiment.data.seq_len
    assert found["general_loss"]["mean"] == pytest.approx(last["eval/loss"], abs=1e-5)
    assert found["general_tokens"] == last["eval/tokens"]
    assert found["cut"] > 0 and found["answer_tokens"] < 16 * found["examples"]
    assert found["left_out"] == 0 and found["answer_bits_per_byte"] is None


def test_general_documents_are_those_held_out(trained, record):
    held = trained.dataset.validation
    rows = record["general_documents"]
    assert len(rows) == held.num_documents
    assert {row["id"].split("/")[0] for row in rows} == {"tale", "song"}
    # Windows overlap in no target: all but the first tokens of documents, and of windows.
    assert record["general_tokens"] == sum(row["tokens"] for row in rows)
    assert record["general_tokens"] <= held.num_tokens - held.num_documents
    assert record["general_loss"]["low"] < record["general_loss"]["mean"]


def test_batches_change_nothing(trained, restored, asked, record):
    other = score_task(
        trained, restored, asked, ScoreOptions(length=LENGTH, general_tokens=0, batch_size=3)
    )
    for key in ("answer_documents", "general_documents"):
        for one, two in zip(record[key], other[key], strict=True):
            assert one["loss"] == pytest.approx(two["loss"], abs=1e-5)
            assert (one["id"], one["tokens"]) == (two["id"], two["tokens"])
    for key in ("task_hash", "general_text_hash", "base_hash"):
        assert record[key] == other[key] and len(record[key]) >= 16


def test_hashes_tell_other_questions_windows_and_texts(trained, restored, asked, record):
    other = score_task(
        trained,
        restored,
        asked,
        ScoreOptions(length=LENGTH, split="validation", general_tokens=32),
    )
    assert other["task_hash"] != record["task_hash"]
    assert other["general_text_hash"] != record["general_text_hash"]
    assert other["general_tokens"] < record["general_tokens"]
    examples = asked.examples("test")
    assert record["task_hash"] == task_scores.task_hash(examples, record["template"], LENGTH)
    assert record["task_hash"] != task_scores.task_hash(examples, record["template"], LENGTH + 1)
    assert record["base_hash"] == record["params_hash"] == hash_of_arrays(restored.params)
    assert record["method"] == "none"


def test_a_tuned_run_tells_what_it_started_from_and_what_was_scored(trained, restored, asked):
    finetune = FineTune(base_hash="of its base", method=Full())
    tuned = dataclasses.replace(
        trained, experiment=dataclasses.replace(trained.experiment, finetune=finetune)
    )
    options = ScoreOptions(length=LENGTH, general_tokens=16)
    found = score_task(tuned, restored, asked, options)
    assert (found["base_hash"], found["method"]) == ("of its base", "full")
    assert found["params_hash"] == tuned.params_hash(restored.step)
    assert found["params_hash"] != trained.params_hash(restored.step)


def test_generation_is_compared_to_the_letter(trained, restored, asked, monkeypatch):
    examples = asked.examples("test")
    wanted = {}

    class Fake:
        def __init__(self, model, params, router_state, *, token_bytes, pad_id, batch_size):
            del model, params, router_state, token_bytes, pad_id, batch_size

        def generate(self, requests):
            assert all(r.sampling.temperature == 0.0 for r in requests)
            texts = [wanted[r.prompt] for r in requests]
            return [Completion(text, (), (), finish) for text, finish in texts]

    encoded = encode_examples(trained.dataset.tokenizer, examples)
    for number, (example, one) in enumerate(zip(examples, encoded, strict=True)):
        finish = "length" if number == 1 else "stop_token"
        text = example.answer + ("!" if number == 2 else "")
        wanted[tuple(map(int, one.before))] = (" " + text, finish)
    monkeypatch.setattr(task_scores, "Generator", Fake)
    options = ScoreOptions(length=LENGTH, generate=5, general_tokens=16)
    found = score_task(trained, restored, asked, options)
    assert (found["exact_match"], found["generated"]) == (0.6, 5)


@pytest.mark.slow
def test_generation_with_the_model_itself(trained, restored, asked):
    tokenizer = trained.dataset.tokenizer
    encoded = encode_examples(tokenizer, asked.examples("test"))[:3]
    options = ScoreOptions(length=LENGTH, generate=3)
    exact, count = task_scores._generated(
        trained.model, restored, tokenizer, encoded, options, LENGTH
    )
    scorer = Scorer(trained.model, restored.params, restored.router_state, max_length=LENGTH)
    scores = scorer.score([Span(tuple(e.before), tuple(e.answer)) for e in encoded])
    assert count == 3 and exact == np.mean([score.greedy for score in scores])


def test_a_score_is_written_and_read_by_the_report(trained, record, asked, tmp_path):
    from moejax.analysis.finetuning.scores import read_score

    root = dataclasses.replace(trained, root=tmp_path)
    (tmp_path / "final.json").write_text("{}")
    object.__setattr__(root, "steps", lambda: [2, record["step"]])
    path = write_score(root, record, asked)
    assert path == tmp_path / "tasks" / f"{asked.name}.json"
    assert read_json(path) == record
    score = read_score(path)
    assert score.answers_id == (record["task_hash"], "test")
    assert score.answer_loss.mean == record["answer_loss"]["mean"]
    assert len(score.answer.names) == record["documents"]
    assert np.isnan(score.exact_match)
    older = write_score(root, record | {"step": 2, "split": "validation"}, asked)
    assert older.name == f"{asked.name}-validation-2.json"


def test_step_0_may_be_the_result(trained, record, asked, tmp_path):
    """Nothing that was trained was better than the base."""
    root = dataclasses.replace(trained, root=tmp_path)
    object.__setattr__(root, "steps", lambda: [0, 4])
    object.__setattr__(root, "result", lambda: 0)
    names = [write_score(root, record | {"step": step}, asked).name for step in (0, 4)]
    assert names == [f"{asked.name}.json", f"{asked.name}-4.json"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"length": 10**6}, "--length=1000000: the model's longest is"),
        ({"length": 8}, "no prompt of the scored split fits a window of seq_len=8"),
        ({"batch_size": 0}, "--batch_size=0: nearest valid value 1"),
        ({"generate": -1}, "--generate=-1: must be at least 0"),
        ({"split": "tset"}, "split='tset': no split of a task"),
        ({"template": "{prompt}"}, "--template='{prompt}': needs"),
    ],
)
def test_what_cannot_be_scored_is_refused(trained, restored, asked, change, message):
    options = ScoreOptions(**({"length": LENGTH} | change))
    with pytest.raises(ConfigError, match=message.replace("{", r"\{")):
        score_task(trained, Restored(0, {}, {}), asked, options)
