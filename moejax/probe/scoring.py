"""Log-likelihoods of texts: what a model gives to tokens that follow others.

Every text is a row of its own, padded on the right; rows of similar length share a batch. So
neither the batch nor what stands in it changes a number beyond float noise.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moejax.config import ConfigError
from moejax.data import Tokenizer
from moejax.models import Transformer
from moejax.models.block import Tokens
from moejax.models.cross_entropy import chunked_cross_entropy
from moejax.models.decoding import require_decodable, rounded_up
from moejax.probe.program import predictions

Tree = dict[str, Any]
SHORTEST = 32
"""Rows have this length, or 2, 3, 4, 6, 8, 12, ... times as much."""
CHUNK = 64
"""Positions whose logits exist at once, for models that say nothing else (`loss_chunk`)."""


@dataclasses.dataclass(frozen=True)
class Span:
    """Tokens to be scored after others.

    Attributes:
      before: ids that are read, at least one.
      scored: ids that are scored, each after `before` and those in front of it.
    """

    before: tuple[int, ...]
    scored: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Score:
    """Of a span: float64 log-probability of each token in nats, and whether greedy decoding would
    have written all of them."""

    logprob_N: np.ndarray
    greedy: bool

    @property
    def total(self) -> float:
        return float(self.logprob_N.sum())


class Scorer:
    """Scores spans with one model; keeps its compiled programs.

    Args:
      model: on one device.
      params, router_state: of a checkpoint.
      batch_size: rows of a batch.
      max_length: tokens that the model may read at once; more are cut off in front.
      pad_id: fills what is no token.

    Raises:
      ConfigError: routing depends on the batch; or `max_length` is beyond the model's.
    """

    def __init__(
        self,
        model: Transformer,
        params: Tree,
        router_state: Tree,
        *,
        batch_size: int = 8,
        max_length: int = 0,
        pad_id: int = 0,
    ) -> None:
        require_decodable(model.config)
        if model.mesh is not None:
            raise ConfigError("--devices: scoring runs on one device; nearest valid value 1")
        longest = model.config.max_seq_len
        if not 0 <= max_length <= longest:
            raise ConfigError(
                f"--max_length={max_length}: the model's longest is config.model.max_seq_len="
                f"{longest}; nearest valid value {longest}"
            )
        if batch_size < 1:
            raise ConfigError(f"--batch_size={batch_size}: nearest valid value 1")
        self.max_length = max_length or longest
        self._batch_size, self._pad_id = batch_size, pad_id
        self._vocab_size = model.config.vocab_size
        self._params, self._state = params, router_state
        self._run = jax.jit(functools.partial(_score_rows, model))

    def score(
        self, spans: Sequence[Span], progress: Callable[[int, int], None] | None = None
    ) -> list[Score]:
        """Scores of all spans, in their order.

        A span of more than `max_length` + 1 tokens loses the first ones. `progress` is told how
        many are done of how many.

        Raises:
          ConfigError: a span has nothing before it, nothing to score, or more to score than the
            model can read; or an id is outside the vocabulary.
        """
        rows = [self._row(span) for span in spans]
        order = sorted(range(len(rows)), key=lambda n: -len(rows[n]))
        found: dict[int, Score] = {}
        for first in range(0, len(order), self._batch_size):
            numbers = order[first : first + self._batch_size]
            length = rounded_up(len(rows[numbers[0]]) - 1, SHORTEST)
            batch = np.full((self._batch_size, length + 1), self._pad_id, np.int32)
            ids = np.zeros((self._batch_size, length), np.int32)
            for row, number in enumerate(numbers):
                batch[row, : len(rows[number])] = rows[number]
                ids[row, : len(rows[number]) - 1] = 1
            nll_BS, best_BS = jax.device_get(
                self._run(self._params, self._state, batch[:, :-1], batch[:, 1:], ids)
            )
            for row, number in enumerate(numbers):
                stop = len(rows[number]) - 1
                part = slice(stop - len(spans[number].scored), stop)
                greedy = bool((best_BS[row, part] == batch[row, 1:][part]).all())
                found[number] = Score(-nll_BS[row, part].astype(np.float64), greedy)
            if progress is not None:
                progress(len(found), len(spans))
        return [found[number] for number in range(len(spans))]

    def _row(self, span: Span) -> tuple[int, ...]:
        if not span.before or not span.scored:
            raise ConfigError("a span needs a token before it and one to score")
        if len(span.scored) > self.max_length:
            raise ConfigError(
                f"{len(span.scored)} tokens to score are more than the {self.max_length} that the "
                "model reads at once; cut them into windows"
            )
        row = (*span.before, *span.scored)[-(self.max_length + 1) :]
        outside = [i for i in row if not 0 <= i < self._vocab_size]
        if outside:
            raise ConfigError(
                f"token {outside[0]}: outside the model's vocabulary of {self._vocab_size}"
            )
        return row


def _score_rows(
    model: Transformer,
    params: Tree,
    router_state: Tree,
    tokens_BS: jax.Array,
    targets_BS: jax.Array,
    segment_ids_BS: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Negative log-likelihood of each target, and the most probable token at its place."""
    position_BS = jnp.broadcast_to(jnp.arange(tokens_BS.shape[1]), tokens_BS.shape)
    tokens = Tokens(
        tokens_BS,
        position_BS.astype(jnp.int32) * segment_ids_BS,
        segment_ids_BS,
        sequence_BS=jnp.zeros_like(tokens_BS),  # as if each row were alone (`decoding.prefill`)
    )
    x_BSD, _ = model.hidden(params, router_state, tokens)
    table_VD = model.head_table(params)
    options: Tree = {
        "chunk": model.config.loss_chunk or CHUNK,
        "logits_dtype": model.config.dtypes[2],
    }
    mask_BS = jnp.ones(tokens_BS.shape, jnp.float32)
    _, nll_BS = chunked_cross_entropy(x_BSD, table_VD, targets_BS, mask_BS, **options)
    return nll_BS, predictions(x_BSD, table_VD, **options)


def encode_pair(
    tokenizer: Tokenizer, context: str, continuation: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids of a context, and those of the text that follows it: the convention of the Language Model
    Evaluation Harness.

    White space at the end of the context goes to the continuation, because tokenizers give it to
    the word behind it. The continuation is what the whole text has beyond as many ids as the
    context alone. Where that is nothing (both are one token), each is encoded alone.
    """
    kept = context.rstrip()
    continuation = context[len(kept) :] + continuation
    ids, before, alone = tokenizer.encode_many([kept + continuation, kept, continuation])
    after = ids[len(before) :] if len(ids) > len(before) else alone
    return tuple(map(int, before)), tuple(map(int, after))


def rolling_spans(ids: Sequence[int], first: int, max_length: int) -> Iterator[Span]:
    """A long text as spans that score every token once.

    The first window follows the token `first`; a later one begins with as much of the text before
    as fits beside the tokens that are new, so that every window but the first reads `max_length`
    tokens. (The Harness's windows with one token of context.)

    Args:
      ids: the text.
      first: what stands before it, such as the end of another document.
      max_length: tokens that are read at once.
    """
    if ids:
        yield Span((first,), tuple(ids[:max_length]))
    for start in range(max_length, len(ids), max_length):
        stop = min(start + max_length, len(ids))
        yield Span(tuple(ids[stop - max_length - 1 : start]), tuple(ids[start:stop]))
