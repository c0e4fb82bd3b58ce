"""Which tokens are traced: the sample, its windows and labels, and the command."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moejax.analysis.traces import NO_TAG, read_labels, read_trace
from moejax.config import ConfigError
from moejax.data import DataConfig
from moejax.data.evaluation import EvaluationDocument
from moejax.probe import OpenedRun, Text, TraceOptions, open_text, write_traces
from moejax.probe.corpus import with_all_labels
from moejax.probe.opened import run_steps
from moejax.probe.rows import LabelledRows, document_rows
from moejax.probe.sample import Window, choose_windows

Document = EvaluationDocument

REPOSITORY = Path(__file__).resolve().parents[2]


def chosen(documents: list[Document], tokens: int, seq_len: int = 8) -> list[Window]:
    """A character is a token here."""
    return choose_windows(
        documents, lambda i: np.zeros(len(documents[i].text), np.int32), tokens, seq_len
    )


def spent(documents: list[Document], windows: list[Window]) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for window in windows:
        document = documents[window.document]
        key = document.domain, document.language
        found[key] = found.get(key, 0) + window.stop - window.start
    return found


def test_domains_and_languages_get_equal_shares() -> None:
    documents = [Document("x" * 500, "long", "en")] * 3
    documents += [Document("x" * (3 + i % 5), "short", "en") for i in range(200)]
    documents += [Document("x" * 60, "short", "de") for _ in range(9)]
    windows = chosen(documents, 240)
    shares = spent(documents, windows)
    assert len(shares) == 3 and sum(shares.values()) == 240
    assert all(abs(share - 80) <= 8 for share in shares.values())


def test_a_group_that_ends_leaves_its_share_to_the_others() -> None:
    documents = [Document("x" * 10, "few", "en"), *[Document("x" * 90, "many", "en")] * 3]
    assert spent(documents, chosen(documents, 120)) == {("few", "en"): 10, ("many", "en"): 110}
    assert sum(spent(documents, chosen(documents, 9999)).values()) == 280


def test_no_group_is_too_many_for_a_small_trace() -> None:
    documents = [Document("x" * 100, "text", f"l{i}") for i in range(10)]
    shares = spent(documents, chosen(documents, 24))
    assert len(shares) == 10 and sum(shares.values()) <= 24 and min(shares.values()) == 2


def test_every_document_gives_one_window_before_any_gives_two() -> None:
    documents = [Document("x" * (8 * i + 5), "text", "en") for i in range(6)]
    windows = chosen(documents, 9999)
    assert sorted(w.document for w in windows[:6]) == list(range(6))
    assert len({w.start // 8 for w in windows[:6]}) > 2  # not from the beginning only
    places = sorted((w.document, place) for w in windows for place in range(w.start, w.stop))
    everything = [(i, place) for i, d in enumerate(documents) for place in range(len(d.text))]
    assert places == everything
    assert windows == chosen(documents, 9999)


def test_what_is_parallel_stays_together() -> None:
    """Units of one, two or three languages; longer in one language; beside another domain."""
    documents = []
    for unit in range(30):
        documents += [Document("x" * 5, "verse", "en", parallel=unit)]
        documents += [Document("x" * 9, "verse", "de", parallel=unit)] if unit % 5 else []
        documents += [Document("x" * 4, "verse", "fi", parallel=unit)]
    documents += [Document("x" * 100, "prose", "en")] * 5
    windows = chosen(documents, 200)
    by_unit: dict[int | None, list[str]] = {}
    for window in windows:
        document = documents[window.document]
        by_unit.setdefault(document.parallel, []).append(document.language)
    by_unit.pop(None)
    assert len(by_unit) > 3
    for unit, languages in by_unit.items():
        wanted = {d.language for d in documents if d.parallel == unit}
        assert set(languages) == wanted
    prose = spent(documents, windows)["prose", "en"]
    verse = spent(documents, windows)["verse", "en"] + spent(documents, windows)["verse", "de"]
    assert prose + 10 >= 0.25 * 200 and verse > prose  # per language they are equal


# ---- windows as batches --------------------------------------------------------------------------

STORY = "The  cat’s 2 dogs ran.\nIt slept; "
LABELLED = [
    Document(STORY * 2, "tale", "en", 2.5, None, ((0, 3, "DET"), (5, 10, "NOUN"), (11, 12, "NUM"))),
    Document("Straße über 漢字.", "verse", "de", None, 4, ((0, 6, "NOUN"), (7, 11, "ADP"))),
    Document("A street of signs.", "verse", "en", None, 4, ((2, 8, "NOUN"),)),
    Document("1 + 1 = ", "sum", "und", 1.0),
]


def sequences(rows: LabelledRows) -> list[dict[str, np.ndarray]]:
    """Every segment of every row, in order."""
    found = []
    for batch in rows.batches:
        assert {array.shape for array in batch.values()} == {(4, 16)}
        for row in range(4):
            segments = batch["segment_ids"][row]
            filled = segments > 0
            assert not filled[segments.argmin() :].any() or filled.all()
            assert np.isnan(batch["difficulty"][row][~filled]).all()
            assert (batch["loss_mask"][row] == filled).all()
            for segment in range(1, segments.max() + 1):
                place = segments == segment
                found.append({name: array[row][place] for name, array in batch.items()})
    return found


def slow_tag(document: Document, begin: int, end: int) -> str | None:
    """Part of speech of the bytes [begin, end): of their first character that is no blank."""
    at = 0
    for index, character in enumerate(document.text):
        width = len(character.encode())
        if at + width > begin and at < end and not character.isspace():
            return next((tag for a, b, tag in document.tags if a <= index < b), None)
        at += width
    return None


def test_labels_follow_their_tokens(trained: OpenedRun) -> None:
    dataset = trained.dataset
    rows = document_rows(LABELLED, dataset, batch_size=4, seq_len=16, tokens=4096)
    assert rows.domains == ("tale", "verse", "sum") and rows.languages == ("en", "de", "und")
    assert rows.parts_of_speech == ("ADP", "DET", "NOUN", "NUM") and rows.difficulties == (1, 2.5)
    lengths = dataset.tokenizer.token_lengths()
    seen = {number: np.zeros(0, np.int64) for number in range(len(LABELLED))}
    for piece in sequences(rows):
        label = rows.domains[piece["domain"][0]], rows.languages[piece["language"][0]]
        number = [(d.domain, d.language) for d in LABELLED].index(label)
        document = LABELLED[number]
        ids = dataset.tokenizer.encode(document.text)
        windows = [ids[i : i + len(piece["tokens"])].tolist() for i in range(0, len(ids), 16)]
        start = 16 * windows.index(piece["tokens"].tolist())
        place = np.arange(start, start + len(piece["tokens"]))
        seen[number] = np.append(seen[number], place)
        following = np.append(ids[1:], dataset.tokenizer.eos_id)
        assert piece["targets"].tolist() == following[place].tolist()
        assert piece["positions"].tolist() == list(range(len(place)))
        assert (piece["frequency_rank"] == dataset.frequency_rank_V[piece["tokens"]]).all()
        assert set(piece["parallel"]) == {-1 if document.parallel is None else document.parallel}
        level = np.nan if document.difficulty is None else document.difficulty
        np.testing.assert_array_equal(piece["difficulty"], np.full(len(place), level))
        ends = np.cumsum(lengths[ids])
        for token, tag in zip(place, piece["pos"], strict=True):
            wanted = slow_tag(document, ends[token] - lengths[ids[token]], ends[token])
            assert (None if tag == NO_TAG else rows.parts_of_speech[tag]) == wanted
    for number, document in enumerate(LABELLED):
        assert sorted(seen[number]) == list(range(len(dataset.tokenizer.encode(document.text))))


def test_too_many_labels_and_no_text_are_one_line(trained: OpenedRun) -> None:
    many = [Document("x", f"d{i}", "en") for i in range(257)]
    for documents, words in (
        (many, "257 domains; a trace holds 256"),
        ([], "no document"),
        ([Document("", "d", "en")], "no token"),
    ):
        with pytest.raises(ConfigError, match=words):
            document_rows(documents, trained.dataset, 4, 16, 64)


def test_a_labelled_text_becomes_a_trace(trained: OpenedRun, tmp_path: Path) -> None:
    text = Text("mine", "mine?x", "the set", lambda: iter(LABELLED), lambda: [{"licence": "MIT"}])
    (path,) = write_traces(trained, text, [4], TraceOptions(tokens=60), tmp_path, lambda line: None)
    trace, labels = read_trace(path), read_labels(tmp_path / "labels.json")
    assert labels.corpus == "mine" and labels.sources == ({"licence": "MIT"},)
    assert labels.difficulties == (1.0, 2.5) and labels.parts_of_speech[2] == "NOUN"
    assert 40 < trace.num_tokens <= 60 and trace.probs_LTE is None
    assert trace.loss_T is not None and np.isfinite(trace.loss_T).all()  # each token has a target
    assert trace.domain_T is not None and trace.parallel_T is not None
    assert set(trace.domain_T) == {0, 1, 2} and set(trace.parallel_T) == {-1, 4}


# ---- which text ----------------------------------------------------------------------------------


def test_of_its_own_corpus_only_what_it_did_not_train_on(trained: OpenedRun) -> None:
    dataset = trained.dataset
    text = open_text(trained, trained.experiment.data.corpus)
    assert text.documents is not None and "not trained on" in text.part
    documents = list(text.documents())
    assert len(documents) == dataset.validation.num_documents < 10
    train = dataset.tokenizer.decode(dataset.train.tokens)
    folder = Path(trained.experiment.data.corpus.removeprefix("files:")).parents[1]
    for document in documents:
        there = [p.read_text() for p in (folder / document.domain).glob("*.txt")]
        assert document.text in there and document.text not in train


def test_of_a_labelled_corpus_all_labels_are_kept(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"line {i}", "level": i % 3}) for i in range(200)]
    (tmp_path / "levels.jsonl").write_text("\n".join(lines))
    spec = f"labelled:files:{tmp_path}/levels.jsonl?difficulty=level"
    data = DataConfig(corpus=spec, validation_fraction=0.2)
    documents = with_all_labels(data)
    assert documents is not None
    found = {one.text: one.difficulty for one in documents()}
    assert 10 < len(found) < 100
    assert all(level == int(text.split()[1]) % 3 for text, level in found.items())
    assert with_all_labels(dataclasses.replace(data, limit_bytes=100)) is None


def test_another_corpus_is_read_whole_or_by_its_own_split(
    trained: OpenedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"text": f"it slept {i}.", "domain": "d", "language": "en"} for i in range(3)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = open_text(trained, f"files:{tmp_path}/*.jsonl")
    assert text.documents is not None
    assert sorted(d.text for d in text.documents()) == [row["text"] for row in rows]
    assert text.name.startswith("files-") and text.sources()[0]["licence"] == "your own"

    (tmp_path / "a.txt").write_text("Plain text has no labels.")
    text = open_text(trained, f"files:{tmp_path}/*.txt")
    assert text.documents is not None

    from moejax.data.corpora.files import FilesCorpus
    from moejax.data.documents import Document as Plain

    def split(self: Any) -> Any:
        for index, name in enumerate(("train", "validation", "validation")):
            yield Plain(str(index), f"text {index}", "d", "en", "here", name)

    monkeypatch.setattr(FilesCorpus, "documents", split)
    assert [d.text for d in text.documents()] == ["text 1", "text 2"]


# ---- the command ---------------------------------------------------------------------------------


def test_the_command_traces_all_checkpoints(trained: OpenedRun, tmp_path: Path) -> None:
    """In a process with one device; what is printed to stdout are the files."""
    given = {"run": trained.root, "step": "all", "tokens": 64, "out": tmp_path / "out"}
    done = subprocess.run(
        [sys.executable, "-m", "tools.trace", *(f"--{k}={v}" for k, v in given.items())],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"{tmp_path}/out/{s}.npz" for s in (2, 4)]
    assert all("64 tokens in" in line and "1 MoE layers" in line for line in lines)
    trace = read_trace(tmp_path / "out/4.npz")
    own = read_trace(trained.root / "trace/4.npz")
    assert trace.token_T is not None and own.token_T is not None
    assert set(trace.token_T) <= set(own.token_T)


def test_which_steps_are_meant(trained: OpenedRun) -> None:
    assert run_steps(trained, "all") == [2, 4]
    assert run_steps(trained, "") == [None] and run_steps(trained, "2") == [2]
    for wrong in ("last", "-1", "1e3", "9" * 30):
        with pytest.raises(ConfigError, match="a number of steps or 'all'"):
            run_steps(trained, wrong)
