"""Batches of a task and of the base's general text, row by row: a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

import grain
import numpy as np

from moejax.config import ConfigError
from moejax.data.dataset import Dataset, Split
from moejax.data.prepare import prepare
from moejax.data.rows import Batch, build_rows
from moejax.data.stream import ALL_ROWS, TRAIN_KEYS, TrainStream

if TYPE_CHECKING:
    from moejax.data.cache import Progress
    from moejax.data.knobs import DataConfig

_PREFETCH = 8
_STEPS = 1 << 40
_DENOMINATOR = 1 << 12


class MixedStream:
    """The endless stream of a task's windows and general ones, spread evenly.

    Row r of step t is the n-th of all rows, n = t B + r, and general where the whole part of
    (n + 1) `share` is above that of n `share`: one in two for 0.5. Both texts are shuffled on their
    own, every epoch anew, so the general rows do not depend on the task.
    """

    def __init__(
        self,
        dataset: Dataset,
        general: Dataset,
        *,
        seed: int,
        batch_size: int,
        seq_len: int,
        share: float = 0.5,
        weigh: str = "parts",
    ) -> None:
        """Makes the stream.

        Args:
          dataset: of the task.
          general: of the base's text.
          seed: of both orders, below 2**32.
          batch_size: sequences per step over all processes, B.
          seq_len: tokens per sequence, S.
          share: of the rows that are general, above 0 and below 1.
          weigh: `parts`: the loss mask of one part is scaled (the larger stays 1), such that
            general text has `share` of the loss over an epoch; `tokens`: both are 1.

        Raises:
          ConfigError: as `TrainStream`; another tokenizer; or a share that leaves one part out.
        """
        if dataset.tokenizer_hash != general.tokenizer_hash:
            raise ConfigError(
                f"{general.directory}: its tokenizer is not that of {dataset.directory}: a task is "
                "tokenised as its base's text"
            )
        part = Fraction(share).limit_denominator(_DENOMINATOR)
        if not 0 < part < 1:
            raise ConfigError(
                f"share={share}: must be above 0 and below 1; nearest valid value 0.5, or a stream "
                "of the task alone"
            )
        options = {"seed": seed, "batch_size": batch_size, "seq_len": seq_len}
        self._streams = (TrainStream(dataset, **options), TrainStream(general, **options))
        self.dataset, self.general, self.seed = dataset, general, seed
        self.batch_size, self.seq_len, self.share = batch_size, seq_len, part
        self.weights = _weights(dataset.train, general.train, seq_len, weigh)

    def general_rows(self, step: int) -> np.ndarray:
        """Returns which rows of a step's batch are general text, bool `[B]`."""
        return np.diff(self._counted(step)) > 0

    def batch(self, step: int, rows: np.ndarray | slice = ALL_ROWS) -> Batch:
        """Returns rows of the batch of `step`, in constant time; no other text is read.

        Args:
          rows: numbers of the rows that this process needs, in `[0, batch_size)`.

        Returns:
          As `TrainStream.batch`; loss_mask holds the weights of learned tokens.

        Raises:
          ConfigError: a negative step.
        """
        if step < 0:
            raise ConfigError(f"step={step}: must be >= 0; nearest valid value: 0")
        counted = self._counted(step)
        before = counted[:-1]
        row = step * self.batch_size + np.arange(self.batch_size)
        # How many rows of its own part came before each row.
        number = np.where(np.diff(counted) > 0, before, row - before)[rows]
        chosen = (np.diff(counted) > 0)[rows].astype(np.int64)
        parts = []
        for index, stream in enumerate(self._streams):
            own = np.flatnonzero(chosen == index)
            window = np.array([stream.window(n) for n in number[own].tolist()], np.int64)
            built = build_rows(
                stream.dataset.train, window, self.seq_len, stream.dataset.tokenizer.pad_id
            )
            built["loss_mask"] = built["loss_mask"] * np.float32(self.weights[index])
            parts.append((own, built))
        batch = {}
        for key in TRAIN_KEYS:
            like = parts[0][1][key]
            batch[key] = np.empty((len(chosen), self.seq_len), like.dtype)
            for own, built in parts:
                batch[key][own] = built[key]
        return batch

    def iterate(
        self, start_step: int = 0, rows: np.ndarray | slice = ALL_ROWS
    ) -> Iterator[tuple[int, Batch]]:
        """Yields (step, batch) from `start_step` on, built ahead of time in a thread."""
        steps = grain.MapDataset.range(_STEPS).map(lambda step: self.batch(int(step), rows))
        iterator = iter(
            steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=_PREFETCH))
        )
        iterator.set_state({"next_index": start_step})
        try:
            yield from enumerate(iterator, start=start_step)
        finally:
            iterator.close()

    def _counted(self, step: int) -> np.ndarray:
        """General rows before each row of a step's batch, and before the next step's, `[B + 1]`."""
        row = step * self.batch_size + np.arange(self.batch_size + 1, dtype=np.int64)
        return row * self.share.numerator // self.share.denominator


def open_stream(
    dataset: Dataset,
    config: DataConfig,
    *,
    seed: int,
    batch_size: int,
    progress: Progress | None = None,
) -> TrainStream | MixedStream:
    """Returns the training batches of a run: of its text, or of its task and the general text.

    Args:
      dataset: what `prepare(config)` returned.
      config: the data's knobs.
      seed, batch_size: as of `TrainStream`.
      progress: told of the preparation of the general text.

    Raises:
      ConfigError: as the streams, or as `prepare` of the general text.
    """
    general, seq_len = config.general, config.seq_len
    if general is None or not general.share:
        return TrainStream(dataset, seed=seed, batch_size=batch_size, seq_len=seq_len)
    return MixedStream(
        dataset,
        prepare(general.text, progress),
        seed=seed,
        batch_size=batch_size,
        seq_len=seq_len,
        share=general.share,
        weigh=general.weigh,
    )


def _weights(task: Split, general: Split, seq_len: int, weigh: str) -> tuple[float, float]:
    """What a learned token of the task and of the general text weighs; the larger is 1.

    Of `parts`, a row weighs the same on average in both: then the parts' shares of the loss are
    their shares of the rows.
    """
    if weigh == "tokens":
        return 1.0, 1.0
    answers = float(task.packing(seq_len).learned_W.mean())
    # Of a text nearly every token is predicted; a few are lost where windows end.
    predicted = general.num_tokens - general.num_documents
    tokens = predicted / general.num_windows(seq_len)
    return (1.0, answers / tokens) if tokens > answers else (tokens / answers, 1.0)
