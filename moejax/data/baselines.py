"""What a model must beat: unigram and bigram cross-entropy of the same validation tokens.

Both are proper distributions over the whole vocabulary V, estimated on the train split:
  unigram  p(w) = (c(w) + 1) / (N + V), add-one (Laplace); c counts every train token, EOS too
  bigram   p(w | v) = (c(v, w) + t(v) p(w)) / (c(v) + t(v)), Witten-Bell interpolated with the
           unigram: t(v) is the number of different successors of v (Witten & Bell 1991, method
           C; Chen & Goodman 1999, section 2.5). A v without successors leaves p(w).
Pairs are counted inside documents only. A position counts exactly where `loss_mask` is 1: its
target is in the document of its input, so the first token of a document is never predicted and
its EOS is. Results are nats per such position.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

CONVENTION = (
    "nats per predicted token (positions with loss_mask 1: first tokens of documents are not "
    "predicted, EOS is) of the validation split; counts from the train split; unigram add-one "
    "over the vocabulary; bigram Witten-Bell interpolated with that unigram"
)
# Up to this many cells pairs are counted in a table; beyond it, by sorting.
_TABLE_CELLS = 1 << 24
_CHUNK = 1 << 22


@dataclasses.dataclass(frozen=True)
class PairCounts:
    """How often w follows v inside a document of the train split; only pairs that occur.

    Attributes:
      key: v * V + w, sorted, int64 `[pairs]`.
      count: int64 `[pairs]`.
    """

    key: np.ndarray
    count: np.ndarray


def count_tokens(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """Returns how often each id occurs, int64 `[V]`."""
    total = np.zeros(vocab_size, np.int64)
    for start in range(0, len(tokens), _CHUNK):
        total += np.bincount(tokens[start : start + _CHUNK], minlength=vocab_size)
    return total


def count_pairs(tokens: np.ndarray, doc_ends: np.ndarray, vocab_size: int) -> PairCounts:
    """Counts neighbours inside documents.

    Args:
      tokens: of a split, integers `[N]`.
      doc_ends: one past the last token of each document, int64 `[documents]`.
      vocab_size: V.
    """
    cells = vocab_size * vocab_size
    table = np.zeros(cells if cells <= _TABLE_CELLS else 0, np.int64)
    keys, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    for previous, token in split_positions(tokens, doc_ends):
        pair = previous * vocab_size + token
        if len(table):
            table += np.bincount(pair, minlength=cells)
        else:
            new, times = np.unique(pair, return_counts=True)
            keys, counts = _merge(keys, counts, new, times)
    if len(table):
        keys = np.flatnonzero(table)
        counts = table[keys]
    return PairCounts(keys, counts)


def unigram(token_count_V: np.ndarray) -> np.ndarray:
    """Returns p(w), float64 `[V]`."""
    return np.asarray((token_count_V + 1.0) / (token_count_V.sum() + len(token_count_V)))


class Bigram:
    """p(token | previous) of the convention above."""

    def __init__(self, pairs: PairCounts, unigram_V: np.ndarray) -> None:
        """Takes the counts of the train split and its unigram."""
        self._pairs, self._unigram_V = pairs, unigram_V
        before = pairs.key // len(unigram_V)
        self._count_V = np.bincount(before, weights=pairs.count, minlength=len(unigram_V))
        self._kinds_V = np.bincount(before, minlength=len(unigram_V))

    def __call__(self, previous: np.ndarray, token: np.ndarray) -> np.ndarray:
        """Returns the probabilities, float64, for two integer arrays of one shape."""
        key, alone = self._pairs.key, self._unigram_V[token]
        wanted = previous.astype(np.int64) * len(self._unigram_V) + token
        count = np.zeros(wanted.shape)
        if len(key):
            at = np.minimum(np.searchsorted(key, wanted), len(key) - 1)
            count = np.where(key[at] == wanted, self._pairs.count[at], 0.0)
        kinds, total = self._kinds_V[previous], self._count_V[previous]
        seen = total > 0
        return np.where(seen, (count + kinds * alone) / np.where(seen, total + kinds, 1.0), alone)


def cross_entropies(
    positions: Iterable[tuple[np.ndarray, np.ndarray]],
    token_count_V: np.ndarray,
    pairs: PairCounts,
) -> dict[str, float]:
    """Returns {"unigram", "bigram"} in nats per position, and "positions", their number.

    Args:
      positions: chunks of (input ids, target ids) of the positions that count.
      token_count_V: of the train split.
      pairs: of the train split.
    """
    unigram_V = unigram(token_count_V)
    bigram = Bigram(pairs, unigram_V)
    one = two = 0.0
    number = 0
    for previous, token in positions:
        one -= float(np.log(unigram_V[token]).sum())
        two -= float(np.log(bigram(previous, token)).sum())
        number += len(token)
    scale = 1.0 / max(number, 1)
    return {"unigram": one * scale, "bigram": two * scale, "positions": number}


def split_positions(
    tokens: np.ndarray, doc_ends: np.ndarray
) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Yields chunks of (input ids, target ids) of all positions of a split that count."""
    for start in range(0, len(tokens) - 1, _CHUNK):
        stop = min(start + _CHUNK, len(tokens) - 1)
        chunk = tokens[start : stop + 1].astype(np.int64)
        inside = np.ones(stop - start, bool)
        last = doc_ends - 1 - start  # the EOS of each document: its successor is elsewhere
        inside[last[(last >= 0) & (last < len(inside))]] = False
        yield chunk[:-1][inside], chunk[1:][inside]


def _merge(
    keys: np.ndarray, counts: np.ndarray, new: np.ndarray, times: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    both = np.concatenate([keys, new])
    merged, index = np.unique(both, return_inverse=True)
    total = np.zeros(len(merged), np.int64)
    np.add.at(total, index, np.concatenate([counts, times]))
    return merged, total
