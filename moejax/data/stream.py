"""Batches: for training a pure function of (seed, step), for evaluation a fixed list."""

from __future__ import annotations

from collections.abc import Iterator

import grain
import numpy as np

from moejax.config import ConfigError
from moejax.data.baselines import cross_entropies
from moejax.data.classes import SPECIAL
from moejax.data.dataset import Dataset
from moejax.data.rows import Batch, build_rows

TRAIN_KEYS = ("tokens", "targets", "segment_ids", "positions", "loss_mask")
_PREFETCH = 8
_ENDLESS = 1 << 62
ALL_ROWS = slice(None)


class TrainStream:
    """The endless stream of training batches: `batch(step)` depends on (seed, step) alone.

    The windows of the train split are shuffled, every epoch anew; batches are cut from that
    endless sequence, so one may straddle two epochs. A window is `seq_len` inputs and the token
    after them; windows do not overlap, and the last is padded, so an epoch shows every token.
    """

    def __init__(self, dataset: Dataset, *, seed: int, batch_size: int, seq_len: int) -> None:
        """Makes the stream.

        Args:
          dataset: prepared text.
          seed: of the order, below 2**32.
          batch_size: sequences per step over all processes, B.
          seq_len: tokens per sequence, S.

        Raises:
          ConfigError: batch_size < 1, a seed out of range, or a split shorter than a window.
        """
        if not 0 <= seed < 2**32:
            raise ConfigError(f"seed={seed}: must be in [0, 2**32)")
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}: must be >= 1; nearest valid value: 1")
        self.dataset, self.seed = dataset, seed
        self.batch_size, self.seq_len = batch_size, seq_len
        self.windows_per_epoch = dataset.train.num_windows(seq_len)
        # Only numbers are shuffled and batched; text is read after a process took its share.
        order = grain.MapDataset.range(self.windows_per_epoch).seed(seed).shuffle().repeat()
        # An endless order is sys.maxsize long, and as many batches of one are one too many for len.
        self._windows = order[:_ENDLESS]
        self._order = self._windows.batch(batch_size)

    def batch(self, step: int, rows: np.ndarray | slice = ALL_ROWS) -> Batch:
        """Returns rows of the batch of `step`, in constant time; no other text is read.

        Args:
          rows: numbers of the rows that this process needs, in `[0, batch_size)`.

        Returns:
          `[R, S]` each: tokens, targets, segment_ids, positions int32 and loss_mask float32, as
          `rows.build_rows` defines them.

        Raises:
          ConfigError: a negative step.
        """
        if step < 0:
            raise ConfigError(f"step={step}: must be >= 0; nearest valid value: 0")
        return self._build(self._order[step][rows])

    def window(self, number: int) -> int:
        """Returns the window of a row, counted over all steps."""
        return int(self._windows[number])

    def iterate(
        self, start_step: int = 0, rows: np.ndarray | slice = ALL_ROWS
    ) -> Iterator[tuple[int, Batch]]:
        """Yields (step, batch) from `start_step` on, built ahead of time in a thread."""
        ahead = self._order.map(lambda window: self._build(window[rows])).to_iter_dataset(
            grain.ReadOptions(num_threads=1, prefetch_buffer_size=_PREFETCH)
        )
        iterator = iter(ahead)
        iterator.set_state({"next_index": start_step})
        try:
            yield from enumerate(iterator, start=start_step)
        finally:
            iterator.close()

    def _build(self, window: np.ndarray) -> Batch:
        pad_id = self.dataset.tokenizer.pad_id
        rows = build_rows(self.dataset.train, window, self.seq_len, pad_id)
        return {key: rows[key] for key in TRAIN_KEYS}


class EvalStream:
    """Validation batches: always the same, in the same order, all of one shape.

    With `max_tokens` below the split's size, windows are taken at equal distances over the whole
    split, so that every domain has its share.
    """

    def __init__(
        self, dataset: Dataset, *, batch_size: int, seq_len: int, max_tokens: int = 0
    ) -> None:
        """Makes the stream.

        Args:
          dataset: prepared text.
          batch_size: sequences per batch over all processes.
          seq_len: tokens per sequence, S.
          max_tokens: at most this many input tokens, in whole windows (at least one); 0 = all.

        Raises:
          ConfigError: batch_size < 1, max_tokens < 0, or a split shorter than a window.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}: must be >= 1; nearest valid value: 1")
        if max_tokens < 0:
            raise ConfigError(f"max_tokens={max_tokens}: must be >= 0; nearest valid value: 0")
        self.dataset, self.batch_size, self.seq_len = dataset, batch_size, seq_len
        total = dataset.validation.num_windows(seq_len)
        count = min(total, max(max_tokens // seq_len, 1)) if max_tokens else total
        self.windows = np.arange(count) * total // count

    def __len__(self) -> int:
        """The number of batches."""
        return -(-len(self.windows) // self.batch_size)

    def batches(self, rows: np.ndarray | slice = ALL_ROWS) -> Iterator[Batch]:
        """Yields rows of each batch.

        Yields:
          `[R, S]` each: what `TrainStream.batch` returns, and of the
          input tokens token_class uint8, frequency_rank int32 (in the train split, 0 = most
          frequent), domain uint8, language uint8. Padding has segment_ids 0, loss_mask 0.
        """
        padded = np.full(len(self) * self.batch_size, -1, np.int64)
        padded[: len(self.windows)] = self.windows
        split, pad_id = self.dataset.validation, self.dataset.tokenizer.pad_id
        for window in padded.reshape(-1, self.batch_size):
            built = build_rows(split, window[rows], self.seq_len, pad_id)
            index, document = built.pop("index"), built.pop("document")
            valid = built["segment_ids"] > 0
            yield built | {
                "token_class": np.where(valid, split.token_class[index], np.uint8(SPECIAL)),
                "frequency_rank": self.dataset.frequency_rank_V[built["tokens"]],
                "domain": np.where(valid, split.doc_domain[document], np.uint8(0)),
                "language": np.where(valid, split.doc_language[document], np.uint8(0)),
            }

    def baselines(self) -> dict[str, float]:
        """Returns unigram and bigram nats per position over exactly the positions that count."""

        def positions() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for batch in self.batches():
                counts = batch["loss_mask"] > 0
                yield batch["tokens"][counts].astype(np.int64), batch["targets"][counts]

        dataset = self.dataset
        return cross_entropies(positions(), dataset.token_count_V, dataset.pairs)
