"""Which text experts are scored on: samples of concatenated documents, all of one length.

As in ESFT (32 samples of 4096 tokens) examples of the *training* split follow one another, each
ended by EOS, and the row of tokens is cut into windows. A document does not see the one before it,
and positions start at 0 in it, as in training.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moejax.config import ConfigError
from moejax.data import Dataset
from moejax.data.tasks import open_task
from moejax.data.tasks.encoding import encode_examples
from moejax.data.tasks.example import CHAT, check_template
from moejax.probe.corpus import open_text
from moejax.probe.opened import OpenedRun, Say
from moejax.probe.rows import MAX_READ_BYTES

Batch = dict[str, NDArray[Any]]
Ids = NDArray[np.int32]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How much of a text is scored.

    Attributes:
      samples, length: windows, and tokens of each (published: 32 and 4096). A model is not run
        beyond the length it was trained with: there are then as many more windows.
      seed: of the order of the documents; another one is another sample.
    """

    samples: int = 32
    length: int = 4096
    seed: int = 0

    def within(self, window: int) -> Sampling:
        """The same number of tokens in windows of at most `window`.

        Raises:
          ConfigError: less than one window, or one without a token, or a negative seed.
        """
        for name, least in (("samples", 1), ("length", 1), ("seed", 0)):
            value = getattr(self, name)
            if value < least:
                raise ConfigError(f"--{name}={value}: nearest valid value {least}")
        if self.length <= window:
            return self
        samples = -(-self.samples * self.length // window)
        return dataclasses.replace(self, samples=samples, length=window)


@dataclasses.dataclass(frozen=True)
class Documents:
    """A text to score on.

    Attributes:
      name: fit for a folder.
      spec: what it was asked for by.
      part: which part of it, in words.
      count: of the documents.
      ids: tokens of the document of a number, EOS included.
    """

    name: str
    spec: str
    part: str
    count: int
    ids: Callable[[int], Ids]


def open_corpus_documents(run: OpenedRun, spec: str) -> Documents:
    """The documents of any text that `tools.trace` takes.

    Raises:
      ConfigError: no such text, or it is empty.
    """
    text = open_text(run, spec)
    if text.documents is None:
        return _of_split(run.dataset, text.name, spec, text.part)
    found, size = [], 0
    for document in text.documents():
        found.append(document.text)
        size += len(document.text.encode())
        if size >= MAX_READ_BYTES:
            break
    return of_texts(run.dataset, text.name, spec, text.part, found)


def open_task_documents(
    run: OpenedRun, spec: str, split: str = "train", template: str = CHAT
) -> Documents:
    """The examples of a task's training split as they are trained on: prompt and answer in the chat
    template, and EOS.

    Raises:
      ConfigError: no such task, or it is empty.
    """
    check_template(template, "--template")
    task = open_task(spec)
    examples = task.examples(split)
    tokenizer = run.dataset.tokenizer

    def ids(number: int) -> Ids:
        (one,) = encode_examples(tokenizer, [examples[number]], template)
        return np.concatenate([one.before, one.answer])

    return Documents(task.name, spec, f"its split {split}", len(examples), ids)


def of_texts(dataset: Dataset, name: str, spec: str, part: str, texts: Sequence[str]) -> Documents:
    """Texts as documents of a run's tokenizer."""
    tokenizer = dataset.tokenizer

    def ids(number: int) -> Ids:
        return np.append(tokenizer.encode(texts[number]), tokenizer.eos_id).astype(np.int32)

    return Documents(name, spec, part, len(texts), ids)


def windows(documents: Documents, sampling: Sampling, say: Say = print) -> list[list[Ids]]:
    """Windows of exactly `sampling.length` tokens, each a list of the pieces of documents in it.

    Where the text is too short, all of its whole windows; where it is shorter than one window, that
    one. So that all samples weigh the same, the rest of a longer text is left out.

    Raises:
      ConfigError: there is no document, or no token.
    """
    if not documents.count:
        raise ConfigError(f"{documents.spec}: {documents.part} is empty: there is nothing to score")
    order = np.random.default_rng(sampling.seed).permutation(documents.count)
    found = list(
        itertools.islice(
            _cut((documents.ids(int(number)) for number in order), sampling.length),
            sampling.samples,
        )
    )
    sizes = [sum(map(len, window)) for window in found]
    if not sum(sizes):
        raise ConfigError(f"{documents.spec}: {documents.part} holds no token")
    if sizes[-1] < sampling.length and len(found) > 1:
        del found[-1]
    if len(found) < sampling.samples:
        say(
            f"note: {documents.spec}: {len(found)} of {sampling.samples} samples of "
            f"{sampling.length} tokens: the text has no more"
        )
    return found


def text_hash(found: Sequence[Sequence[Ids]]) -> str:
    """16 hexadecimal digits for windows: their tokens, and where a document begins."""
    digest = hashlib.sha256()
    for window in found:
        digest.update(np.asarray([len(window), *map(len, window)], "<i8").tobytes())
        for piece in window:
            digest.update(np.asarray(piece, "<i4").tobytes())
    return digest.hexdigest()[:16]


def batches(found: Sequence[Sequence[Ids]], rows: int, length: int, pad_id: int) -> Iterator[Batch]:
    """Yields windows as batches `[rows, length]` of what the model reads; the last are padded."""
    for first in range(0, len(found), rows):
        batch = {
            "tokens": np.full((rows, length), pad_id, np.int32),
            "segment_ids": np.zeros((rows, length), np.int32),
            "positions": np.zeros((rows, length), np.int32),
        }
        for row, pieces in enumerate(found[first : first + rows]):
            size = sum(map(len, pieces))
            lengths = [len(piece) for piece in pieces]
            batch["tokens"][row, :size] = np.concatenate(pieces)
            batch["segment_ids"][row, :size] = np.repeat(np.arange(len(pieces)) + 1, lengths)
            batch["positions"][row, :size] = np.concatenate([np.arange(one) for one in lengths])
        yield batch


def _cut(documents: Iterator[Ids], length: int) -> Iterator[list[Ids]]:
    """Windows of the concatenated documents; the last may be shorter."""
    window: list[Ids] = []
    room = length
    for document in documents:
        rest = document
        while len(rest):
            window.append(rest[:room])
            rest = rest[room:]
            room = length - sum(map(len, window))
            if not room:
                yield window
                window, room = [], length
    if window:
        yield window


def _of_split(dataset: Dataset, name: str, spec: str, part: str) -> Documents:
    """The run's own validation split: tokens as they lie there."""
    split = dataset.validation
    begins = [0, *split.doc_ends[:-1].tolist()]

    def ids(number: int) -> Ids:
        return np.asarray(split.tokens[begins[number] : split.doc_ends[number]], np.int32)

    return Documents(name, spec, part, split.num_documents, ids)
