"""From text to the token files of a split, streaming: no corpus is ever whole in memory.

Files of a split, all little-endian: `SPLIT.tokens.bin` (uint16, or uint32 from 65,537 ids on) and
`SPLIT.class.bin` (uint8), one entry per token; `SPLIT.doc_ends.npy` (int64, one past the EOS of
each document), `SPLIT.doc_domain.npy`, `SPLIT.doc_language.npy` (uint8), `SPLIT.doc_bytes.npy`
(int64, UTF-8 bytes of the text).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from moejax.config import ConfigError
from moejax.data.cache import Progress
from moejax.data.classes import SPECIAL, byte_classes, token_classes
from moejax.data.tokenizer import Tokenizer

# Text encoded at a time: enough to keep a tokenizer's threads busy, little enough to hold.
_BATCH_CHARACTERS = 1 << 21


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Returns the type of the token file."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def encode_split(
    directory: Path,
    split: str,
    documents: Iterable[tuple[str, int, int]],
    total: int,
    tokenizer: Tokenizer,
    progress: Progress,
) -> dict[str, Any]:
    """Writes the files of a split; returns its JSON row: tokens, documents, bytes.

    Args:
      directory: where to write.
      split: its name.
      documents: (text, domain id, language id) in order.
      total: how many there are, for the progress.
      tokenizer: gives the ids; each document gets an EOS.
      progress: told ("tokenising SPLIT", documents done, total).

    Raises:
      ConfigError: the tokenizer is not lossless or leaves its vocabulary.
    """
    lengths = tokenizer.token_lengths()
    dtype = token_dtype(tokenizer.vocab_size)
    ends: list[int] = []
    domains: list[int] = []
    languages: list[int] = []
    sizes: list[int] = []
    position = 0
    with (
        open(directory / f"{split}.tokens.bin", "wb") as token_file,
        open(directory / f"{split}.class.bin", "wb") as class_file,
    ):
        for batch in _batches(documents):
            encoded = tokenizer.encode_many([text for text, _, _ in batch])
            for (text, domain, language), ids in zip(batch, encoded, strict=True):
                classes = byte_classes(text)
                _check_ids(ids, lengths, len(classes), tokenizer, f"{split} document {len(ends)}")
                kinds = token_classes(classes, lengths[ids])
                token_file.write(np.append(ids, tokenizer.eos_id).astype(dtype).tobytes())
                class_file.write(np.append(kinds, np.uint8(SPECIAL)).tobytes())
                position += len(ids) + 1
                ends.append(position)
                domains.append(domain)
                languages.append(language)
                sizes.append(len(classes))
            progress(f"tokenising {split}", len(ends), total)
    np.save(directory / f"{split}.doc_ends.npy", np.array(ends, "<i8"))
    np.save(directory / f"{split}.doc_domain.npy", np.array(domains, np.uint8))
    np.save(directory / f"{split}.doc_language.npy", np.array(languages, np.uint8))
    np.save(directory / f"{split}.doc_bytes.npy", np.array(sizes, "<i8"))
    return {"tokens": position, "documents": len(ends), "bytes": sum(sizes)}


def _check_ids(
    ids: np.ndarray, lengths: np.ndarray, size: int, tokenizer: Tokenizer, where: str
) -> None:
    if len(ids) and not 0 <= ids.min() <= ids.max() < tokenizer.vocab_size:
        raise ConfigError(
            f"{where}: tokenizer {tokenizer.name!r} made an id outside its vocabulary of "
            f"{tokenizer.vocab_size} ({ids.min()}..{ids.max()})"
        )
    covered = int(lengths[ids].sum())
    if covered != size or (len(ids) and lengths[ids].min() < 1):
        raise ConfigError(
            f"{where}: tokenizer {tokenizer.name!r} is not lossless: its tokens stand for "
            f"{covered} of {size} bytes"
        )


def _batches(
    documents: Iterable[tuple[str, int, int]],
) -> Iterator[list[tuple[str, int, int]]]:
    batch: list[tuple[str, int, int]] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document[0])
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
