"""Labelled tokens as batches: what a model reads, and beside it what a trace says of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moejax.analysis.traces import NO_TAG
from moejax.config import ConfigError
from moejax.data import Dataset, EvalStream
from moejax.data.classes import SPECIAL, WHITESPACE, byte_classes, token_classes
from moejax.data.evaluation import EvaluationDocument
from moejax.probe.sample import Window, choose_windows

MAX_LABELS = 256
MAX_READ_BYTES = 256 << 20
"""Text that is read at most to choose a sample from."""
MAX_DOCUMENT_CHARACTERS = 1 << 20
"""A longer document is looked at up to here."""

Batch = dict[str, NDArray[Any]]
_COLUMNS: dict[str, tuple[str, Any]] = {
    "tokens": ("int32", None),  # padding: the tokenizer's
    "targets": ("int32", None),
    "segment_ids": ("int32", 0),
    "positions": ("int32", 0),
    "loss_mask": ("float32", 0.0),
    "token_class": ("uint8", SPECIAL),
    "frequency_rank": ("int32", 0),
    "domain": ("uint8", 0),
    "language": ("uint8", 0),
    "pos": ("uint8", NO_TAG),
    "difficulty": ("float32", math.nan),
    "parallel": ("int32", -1),
}


@dataclasses.dataclass(frozen=True)
class LabelledRows:
    """A text ready for the model.

    Attributes:
      batches: `[B, S]` arrays, all of one shape: those of `TrainStream.batch`, and of the input
        tokens token_class, frequency_rank, domain, language, pos, difficulty, parallel.
      domains, languages, parts_of_speech: names by id.
      difficulties: the levels that occur among the tokens, ascending.
    """

    batches: list[Batch]
    domains: tuple[str, ...]
    languages: tuple[str, ...]
    parts_of_speech: tuple[str, ...] = ()
    difficulties: tuple[float, ...] = ()


def validation_rows(dataset: Dataset, batch_size: int, seq_len: int, tokens: int) -> LabelledRows:
    """The windows that the trainer evaluates with `evaluation.max_tokens = tokens`."""
    stream = EvalStream(dataset, batch_size=batch_size, seq_len=seq_len, max_tokens=tokens)
    batches = []
    for batch in stream.batches():
        shape = batch["tokens"].shape
        beside = {}
        for name in ("pos", "difficulty", "parallel"):
            dtype, fill = _COLUMNS[name]
            beside[name] = np.full(shape, fill, dtype)
        batches.append(batch | beside)
    return LabelledRows(batches, dataset.domains, dataset.languages)


def document_rows(
    documents: Sequence[EvaluationDocument],
    dataset: Dataset,
    batch_size: int,
    seq_len: int,
    tokens: int,
) -> LabelledRows:
    """A balanced sample of documents, at most `tokens` of their tokens, packed into rows.

    A window is a sequence: it stands in one row, attends to nothing else there, and its positions
    start at 0. Every token of it is scored, the last of a document against EOS.

    Raises:
      ConfigError: no document, no token, too many labels, or a tokenizer that loses some of them.
    """
    if not documents:
        raise ConfigError("the text holds no document")
    encoder = _Encoder(documents, dataset)
    windows = choose_windows(documents, encoder.ids, tokens, seq_len)
    if not windows:
        raise ConfigError("the text holds no token")
    names = _Names(documents)
    rows: list[list[Batch]] = []
    room = 0
    for window in windows:
        piece = encoder.piece(window, names)
        length = len(piece["tokens"])
        if length > room:
            rows.append([])
            room = seq_len
        piece["segment_ids"] = np.full(length, len(rows[-1]) + 1, np.int32)
        rows[-1].append(piece)
        room -= length
    pad_id = dataset.tokenizer.pad_id
    batches = []
    for first in range(0, len(rows), batch_size):
        batch = {
            name: np.full((batch_size, seq_len), pad_id if fill is None else fill, dtype)
            for name, (dtype, fill) in _COLUMNS.items()
        }
        for row, pieces in enumerate(rows[first : first + batch_size]):
            for name, table in batch.items():
                joined = np.concatenate([piece[name] for piece in pieces])
                table[row, : len(joined)] = joined
        batches.append(batch)
    levels = {documents[w.document].difficulty for w in windows}
    return LabelledRows(
        batches,
        names.domains,
        names.languages,
        names.tags,
        tuple(sorted(level for level in levels if level is not None)),
    )


class _Names:
    """Ids of the labels of documents: domains and languages as they first occur, tags by name."""

    def __init__(self, documents: Sequence[EvaluationDocument]) -> None:
        self.domains = tuple(dict.fromkeys(d.domain for d in documents))
        self.languages = tuple(dict.fromkeys(d.language for d in documents))
        self.tags = tuple(sorted({tag for d in documents for _, _, tag in d.tags}))
        for kind, names, most in (
            ("domains", self.domains, MAX_LABELS),
            ("languages", self.languages, MAX_LABELS),
            ("parts of speech", self.tags, NO_TAG),
        ):
            if len(names) > most:
                raise ConfigError(f"the text has {len(names)} {kind}; a trace holds {most}")
        self.id = {
            kind: {name: number for number, name in enumerate(names)}
            for kind, names in (
                ("domain", self.domains),
                ("language", self.languages),
                ("pos", self.tags),
            )
        }


class _Encoder:
    """Documents as tokens of the run's tokenizer, with what is known of each token."""

    def __init__(self, documents: Sequence[EvaluationDocument], dataset: Dataset) -> None:
        self._documents, self._dataset = documents, dataset
        self._lengths = dataset.tokenizer.token_lengths()
        self._ids: dict[int, NDArray[np.int32]] = {}
        self._kinds: dict[int, tuple[NDArray[np.uint8], NDArray[np.uint8]]] = {}

    def ids(self, number: int) -> NDArray[np.int32]:
        """Ids of a document, without EOS."""
        if number not in self._ids:
            text = self._text(number)
            tokenizer = self._dataset.tokenizer
            ids = tokenizer.encode(text)
            covered = int(self._lengths[ids].sum())
            if covered != len(text.encode()):
                raise ConfigError(
                    f"document {number}: the run's tokenizer {tokenizer.name!r} is not lossless: "
                    f"its tokens stand for {covered} of {len(text.encode())} bytes"
                )
            self._ids[number] = ids
        return self._ids[number]

    def piece(self, window: Window, names: _Names) -> Batch:
        """A window with everything but its `segment_ids`; arrays `[n]`."""
        document = self._documents[window.document]
        ids = self.ids(window.document)
        place = slice(window.start, window.stop)
        length = window.stop - window.start
        class_T, pos_T = self._kinds_of(window.document, names)
        following = np.append(ids[1:], self._dataset.tokenizer.eos_id)
        parallel = -1 if document.parallel is None else document.parallel
        level = math.nan if document.difficulty is None else document.difficulty
        constant = {
            "domain": names.id["domain"][document.domain],
            "language": names.id["language"][document.language],
            "difficulty": level,
            "parallel": parallel,
            "loss_mask": 1.0,
        }
        piece = {
            "tokens": ids[place],
            "targets": following[place],
            "positions": np.arange(length),
            "token_class": class_T[place],
            "frequency_rank": self._dataset.frequency_rank_V[ids[place]],
            "pos": pos_T[place],
        } | {name: np.full(length, value) for name, value in constant.items()}
        return {name: array.astype(_COLUMNS[name][0]) for name, array in piece.items()}

    def _text(self, number: int) -> str:
        return self._documents[number].text[:MAX_DOCUMENT_CHARACTERS]

    def _kinds_of(self, number: int, names: _Names) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Class and part of speech of each token of a document."""
        if number not in self._kinds:
            classes = byte_classes(self._text(number))
            class_T = token_classes(classes, self._lengths[self.ids(number)])
            self._kinds[number] = class_T, self._tags(number, classes, names)
        return self._kinds[number]

    def _tags(self, number: int, classes: NDArray[np.uint8], names: _Names) -> NDArray[np.uint8]:
        """The part of speech of each token: that of the word its first byte but blanks is in."""
        lengths = self._lengths[self.ids(number)]
        tags = self._documents[number].tags
        if not tags:
            return np.full(len(lengths), NO_TAG, np.uint8)
        text = self._text(number)
        widths = [len(character.encode()) for character in text]
        byte_of = np.concatenate([[0], np.cumsum(widths)]).astype(np.int64)
        tag_of_byte = np.full(len(classes) + 1, NO_TAG, np.uint8)
        for first, last, tag in tags:
            begin, end = byte_of[min(first, len(text))], byte_of[min(last, len(text))]
            tag_of_byte[begin:end] = names.id["pos"][tag]
        solid = np.where(classes != WHITESPACE, np.arange(len(classes)), len(classes))
        next_solid = np.minimum.accumulate(solid[::-1])[::-1]
        end_of = np.cumsum(lengths)
        found = next_solid[end_of - lengths]
        return np.where(found < end_of, tag_of_byte[found], NO_TAG).astype(np.uint8)
