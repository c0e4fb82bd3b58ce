"""Rows of a batch, cut from the token file: windows, segments, positions, masks."""

from __future__ import annotations

import numpy as np

from moejax.data.dataset import Split

Batch = dict[str, np.ndarray]


def build_rows(split: Split, window: np.ndarray, seq_len: int, pad_id: int) -> Batch:
    """Returns rows of a batch. Window `w` of a text has the inputs `[w S, w S + S)` of the token
    file; that of a task whole examples, from the start of the first (`tasks.packing`).

    Args:
      split: read only at these windows.
      window: indices below `split.num_windows(seq_len)`, int `[b]`; -1 = a row of padding.
      seq_len: S.
      pad_id: fills what lies beyond the end of the file.

    Returns:
      `[b, S]` each: tokens, targets int32; segment_ids int32 (documents numbered from 1 within
      the row, 0 = padding); positions int32 (from 0 at each document's start, and at the row's);
      loss_mask float32 (1 where the target is in the same document as its input, and is of an
      answer if the split is a task's); index int64
      (of the input in the file; its last index for padding); document int64 (of the input).

    Raises:
      ConfigError: a token id outside the vocabulary.
    """
    first, stop = split.bounds(window, seq_len)
    start = first[:, None]
    place = start + np.arange(seq_len + 1)
    real = place < stop[:, None]
    index = np.where(real, place, split.num_tokens - 1)
    ids = split.tokens[index].astype(np.int64)
    split.check_ids(ids, index)
    document = np.searchsorted(split.doc_ends, index, side="right")
    begin = np.where(document > 0, split.doc_ends[document - 1], 0)
    ids = np.where(real, ids, pad_id).astype(np.int32)
    valid, inner = real[:, :-1], document[:, :-1]
    learned = real[:, 1:] & (inner == document[:, 1:])
    if split.answer_begins is not None:
        learned &= index[:, 1:] >= split.answer_begins[document[:, 1:]]
    return {
        "tokens": ids[:, :-1],
        "targets": ids[:, 1:],
        "segment_ids": np.where(valid, inner - inner[:, :1] + 1, 0).astype(np.int32),
        "positions": np.where(valid, index[:, :-1] - np.maximum(begin[:, :-1], start), 0).astype(
            np.int32
        ),
        "loss_mask": learned.astype(np.float32),
        "index": index[:, :-1],
        "document": inner,
    }
