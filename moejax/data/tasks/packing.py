"""Windows of examples: whole ones, one after another, from the start of the first."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Packing:
    """Which tokens each window takes.

    Attributes:
      first_W: number of its first token, int64.
      stop_W: one past its last, int64; at most `seq_len` + 1 after the first.
      learned_W: tokens of answers that it predicts, int64.
      cut: examples whose answer is longer than its window, and loses its end there.
      left_out: examples whose prompt alone fills a window, in none of them.
    """

    first_W: np.ndarray
    stop_W: np.ndarray
    learned_W: np.ndarray
    cut: int
    left_out: int


def pack(doc_ends: np.ndarray, answer_begins: np.ndarray, seq_len: int) -> Packing:
    """Fills windows with consecutive examples, each as long as the next one fits whole.

    Args:
      doc_ends: one past the last token of each example, int64 `[examples]`.
      answer_begins: the first token of its answer, int64 `[examples]`.
      seq_len: inputs of a window, S; it predicts its tokens but the first, of S + 1 at most.
    """
    room = seq_len + 1
    first: list[int] = []
    stop: list[int] = []
    learned: list[int] = []
    cut = left_out = begin = 0
    opened = False
    for end, answer in zip(doc_ends.tolist(), answer_begins.tolist(), strict=True):
        if answer - begin >= room:
            left_out += 1
            opened = False
        elif opened and end - first[-1] <= room:
            stop[-1] = end
            learned[-1] += end - answer
        else:
            last = min(end, begin + room)
            cut += last < end
            first.append(begin)
            stop.append(last)
            learned.append(last - answer)
            opened = last == end
        begin = end
    first_W, stop_W, learned_W = (np.array(values, np.int64) for values in (first, stop, learned))
    return Packing(first_W, stop_W, learned_W, cut, left_out)
