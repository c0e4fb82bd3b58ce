"""A prepared dataset: memory-mapped tokens, what is known about them, and checks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from moejax.config import ConfigError, read_json
from moejax.data.baselines import CONVENTION, PairCounts
from moejax.data.cache import check_files, read_manifest
from moejax.data.classes import TOKEN_CLASSES
from moejax.data.encode import token_dtype
from moejax.data.plan import SPLITS
from moejax.data.tasks.packing import Packing, pack
from moejax.data.tokenizer import TOKENIZERS, Recipe, Tokenizer, state_hash


@dataclasses.dataclass(frozen=True)
class Split:
    """One split. Every document is its tokens and an EOS; documents follow one another.

    Attributes:
      name: "train" or "validation".
      file: of the tokens, for messages.
      tokens: ids, uint16 or uint32 memory map `[N]`.
      token_class: index into TOKEN_CLASSES, uint8 memory map `[N]`.
      doc_ends: one past each document's EOS, int64 `[documents]`.
      doc_domain: index into the dataset's domains, uint8 `[documents]`.
      doc_language: index into its languages, uint8 `[documents]`.
      doc_bytes: UTF-8 bytes of the text (of an example: of its answer), int64 `[documents]`.
      vocab_size: all ids are below it.
      answer_begins: of the examples of a task, which are its documents here: the first token of
        the answer, int64 `[documents]`; only answers are learned. None: all text is.
    """

    name: str
    file: Path
    tokens: np.ndarray
    token_class: np.ndarray
    doc_ends: np.ndarray
    doc_domain: np.ndarray
    doc_language: np.ndarray
    doc_bytes: np.ndarray
    vocab_size: int
    answer_begins: np.ndarray | None = None
    _packed: dict[int, Packing] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def num_documents(self) -> int:
        return len(self.doc_ends)

    @property
    def num_bytes(self) -> int:
        return int(self.doc_bytes.sum())

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text per predicted token (a document predicts as many as it has, less EOS; an
        example its answer and EOS)."""
        if self.answer_begins is not None:
            return self.num_bytes / int((self.doc_ends - self.answer_begins).sum())
        return self.num_bytes / (self.num_tokens - self.num_documents)

    def packing(self, seq_len: int) -> Packing:
        """Returns the windows of a task's split; computed once for each length."""
        if self.answer_begins is None:
            raise ValueError(f"the split {self.name} has no answers")
        if seq_len not in self._packed:
            self._packed[seq_len] = pack(self.doc_ends, self.answer_begins, seq_len)
        return self._packed[seq_len]

    def bounds(self, window: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the first token of each window and one past its last (at most S + 1 later).

        Args:
          window: numbers below `num_windows(seq_len)`, int; -1 = no tokens at all.
          seq_len: S.
        """
        window = window.astype(np.int64)
        if self.answer_begins is None:
            first = np.maximum(window * seq_len, 0)
            stop = np.minimum(first + seq_len + 1, self.num_tokens)
        else:
            packing = self.packing(seq_len)
            first, stop = packing.first_W[window], packing.stop_W[window]
        return first, np.where(window < 0, first, stop)

    def num_windows(self, seq_len: int) -> int:
        """Returns the number of windows of `seq_len` inputs; the last may be padded.

        Raises:
          ConfigError: the whole split is shorter than one window; or, of a task, no prompt fits.
        """
        if self.answer_begins is not None:
            if not len(self.packing(seq_len).first_W):
                raise ConfigError(
                    f"{self.file}: no prompt of the {self.name} split fits a window of seq_len="
                    f"{seq_len}; nearest valid: a longer one, or shorter examples"
                )
            return len(self.packing(seq_len).first_W)
        if self.num_tokens < seq_len + 1:
            raise ConfigError(
                f"{self.file}: the {self.name} split has {self.num_tokens} tokens, fewer than one "
                f"window of seq_len + 1 = {seq_len + 1}; nearest valid seq_len: "
                f"{self.num_tokens - 1}, or add text"
            )
        return -(-(self.num_tokens - 1) // seq_len)

    def check_ids(self, ids: np.ndarray, index: np.ndarray) -> None:
        """Raises ConfigError if an id is outside the vocabulary, naming its place.

        Args:
          ids: token ids.
          index: where in the file each of them lies; same shape.
        """
        if ids.size and int(ids.max()) >= self.vocab_size:
            at = int(index.flat[int(ids.argmax())])
            document = int(np.searchsorted(self.doc_ends, at, side="right"))
            raise ConfigError(
                f"{self.file}: token {at} (document {document}) has the id {int(ids.max())}, "
                f"outside the vocabulary of {self.vocab_size}; delete {self.file.parent} to "
                "prepare it again"
            )


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Prepared text.

    Attributes:
      directory: where it lies.
      manifest: all that is known about it (docs/data.md).
      tokenizer: encodes and decodes.
      train: the train split.
      validation: the validation split.
      token_count_V: occurrences in the train split, int64 `[V]`.
      frequency_rank_V: rank by that count, 0 = most frequent, ties by id, int32 `[V]`.
      pairs: neighbours in the train split.
    """

    directory: Path
    manifest: dict[str, Any]
    tokenizer: Tokenizer
    train: Split
    validation: Split
    token_count_V: np.ndarray
    frequency_rank_V: np.ndarray
    pairs: PairCounts

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(self.manifest["domains"])

    @property
    def languages(self) -> tuple[str, ...]:
        return tuple(self.manifest["languages"])

    @property
    def manifest_hash(self) -> str:
        """Equal wherever text, split, tokenizer and tokens are."""
        return str(self.manifest["manifest_hash"])

    @property
    def tokenizer_hash(self) -> str:
        return str(self.manifest["tokenizer"]["sha256"])

    def info(self, baselines: dict[str, Any] | None = None) -> dict[str, Any]:
        """Returns the content of a run's data.json.

        Args:
          baselines: of the positions that the run evaluates (`EvalStream.baselines()`); by
            default those of the whole validation split.
        """
        chosen = baselines or self.manifest["baselines"]
        splits = (self.train, self.validation)
        return {
            "format_version": 1,
            "corpus": self.manifest["corpus"],
            "tokenizer": self.tokenizer.name,
            "manifest_hash": self.manifest_hash,
            "tokenizer_hash": self.tokenizer_hash,
            "vocab_size": self.vocab_size,
            "bytes_per_token": {split.name: split.bytes_per_token for split in splits},
            "splits": self.manifest["splits"],
            "baselines": {**chosen, "convention": CONVENTION},
            "token_classes": list(TOKEN_CLASSES),
            "domains": list(self.domains),
            "languages": list(self.languages),
            "documents": self.manifest["documents"],
        }

    def verify(self) -> None:
        """Checks every byte: hashes of all files, range of all ids, order of the documents.

        Raises:
          ConfigError: names the first file (and token) that is wrong.
        """
        check_files(self.directory, self.manifest, full=True)
        for split in (self.train, self.validation):
            split.check_ids(split.tokens, np.arange(split.num_tokens))


def open_dataset(directory: Path, recipe: Recipe | None = None) -> Dataset:
    """Opens what `prepare` built, after the cheap checks of `cache.read_manifest`.

    Args:
      directory: of the tokens.
      recipe: loads the tokenizer; by default that registered under the tokenizer's name.

    Raises:
      ConfigError: a file is missing, cut short or changed, or the tokenizer is another one.
    """
    manifest = read_manifest(directory)
    recipe = recipe or TOKENIZERS.get(manifest["tokenizer"]["name"])()
    path = directory / "tokenizer.json"
    state = read_json(path)
    if state_hash(state) != manifest["tokenizer"]["sha256"]:
        raise ConfigError(f"{path}: is not the tokenizer that made these tokens")
    tokenizer = recipe.load(state)
    train, validation = (
        _open_split(directory, name, tokenizer.vocab_size, manifest) for name in SPLITS
    )
    counts = np.load(directory / "token_count.npy", allow_pickle=False)
    pairs = PairCounts(*np.load(directory / "pairs.npy", allow_pickle=False))
    rank = np.empty(len(counts), np.int32)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(counts), dtype=np.int32)
    return Dataset(directory, manifest, tokenizer, train, validation, counts, rank, pairs)


def _open_split(directory: Path, name: str, vocab_size: int, manifest: dict[str, Any]) -> Split:
    file = directory / f"{name}.tokens.bin"
    tokens = np.memmap(file, token_dtype(vocab_size), "r")
    classes = np.memmap(directory / f"{name}.class.bin", np.uint8, "r")
    ends, domain, language, size = (
        np.load(directory / f"{name}.{part}.npy", allow_pickle=False)
        for part in ("doc_ends", "doc_domain", "doc_language", "doc_bytes")
    )
    wanted = manifest["splits"][name]["tokens"]
    if not len(tokens) == len(classes) == int(ends[-1]) == wanted:
        raise ConfigError(
            f"{file}: {len(tokens)} tokens, {len(classes)} classes, documents up to "
            f"{int(ends[-1])}, manifest {wanted}: they disagree; delete {directory} to prepare "
            "it again"
        )
    begins = None
    if "task" in manifest:
        begins = np.load(directory / f"{name}.answer_begins.npy", allow_pickle=False)
    return Split(name, file, tokens, classes, ends, domain, language, size, vocab_size, begins)
