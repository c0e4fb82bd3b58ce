"""Texts from prompts: batches of one shape through compiled prefill and decoding steps."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moejax.config import ConfigError
from moejax.models import Transformer
from moejax.models.decoding import (
    DecodeState,
    decode_step,
    empty_state,
    left_padded,
    prefill,
    require_decodable,
    rounded_up,
)
from moejax.probe.generation.sampling import Draws, Sampling, draw, stack_draws, text_key
from moejax.probe.generation.text import TextStream
from moejax.train.errors import NonFiniteError

Tree = dict[str, Any]
PIECE = 64
"""Prompts are read this many tokens at a time; caches have room for a multiple of it."""


@dataclasses.dataclass(frozen=True)
class Request:
    """A text to be written.

    Attributes:
      prompt: ids, at least one.
      max_new_tokens: the most that are written.
      sampling: how.
      sample: number of the text among those of one prompt and seed.
      stop_ids: ids that end the text.
      stops: texts that end it.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling = Sampling()
    sample: int = 0
    stop_ids: frozenset[int] = frozenset()
    stops: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Completion:
    """What was written.

    Attributes:
      text: what follows the prompt, without what ended it.
      tokens: all ids that were drawn, the one that ended it included.
      logprobs: of each, in nats, under the model itself (temperature 1, nothing cut).
      finish: `stop_token`, `stop_text`, or `length`.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: str


OnText = Callable[[int, str], None]
"""Called with the number of a request and the next piece of its text."""


class Generator:
    """Writes texts with one model; keeps its compiled programs.

    A text depends on the model, its prompt, its sampling and the number of the sample: not on the
    batch size, on the other texts of its batch, or on their order (beyond float noise: sums over a
    padded row may be rounded otherwise, which shows where two tokens are equally good).

    Args:
      model: on one device.
      params, router_state: of a checkpoint.
      token_bytes: the bytes that an id stands for (`Tokenizer.token_bytes`).
      pad_id: fills what is no token.
      batch_size: rows that are written at once. Fewer requests run in a batch of their number.

    Raises:
      ConfigError: routing depends on the batch (`require_decodable`).
    """

    def __init__(
        self,
        model: Transformer,
        params: Tree,
        router_state: Tree,
        *,
        token_bytes: Callable[[int], bytes],
        pad_id: int = 0,
        batch_size: int = 8,
    ) -> None:
        require_decodable(model.config)
        if model.mesh is not None:
            raise ConfigError("--devices: generation runs on one device; nearest valid value 1")
        if batch_size < 1:
            raise ConfigError(f"--batch_size={batch_size}: nearest valid value 1")
        self.model, self.batch_size = model, batch_size
        self._params, self._state = params, router_state
        self._token_bytes, self._pad_id = token_bytes, pad_id
        self._prefill = jax.jit(functools.partial(prefill, model), donate_argnums=3)
        self._draw = jax.jit(draw, static_argnames=("greedy", "cut"))
        self._step = jax.jit(
            functools.partial(_step, model), static_argnames=("greedy", "cut"), donate_argnums=3
        )

    def check(self, request: Request) -> None:
        """Raises ConfigError when a request cannot be met: before anything is compiled."""
        request.sampling.validate()
        config, length = self.model.config, len(request.prompt)
        if request.max_new_tokens < 1:
            raise ConfigError(
                f"--max_new_tokens={request.max_new_tokens}: must be at least 1; nearest valid "
                "value 1"
            )
        if not length:
            raise ConfigError("--prompt: has no token; a text must begin with something")
        if length + request.max_new_tokens > config.max_seq_len:
            room = config.max_seq_len - length
            near = (
                f"nearest valid value --max_new_tokens={room}"
                if room > 0
                else f"nearest valid: a prompt of {config.max_seq_len - 1} tokens at most"
            )
            raise ConfigError(
                f"--prompt: {length} tokens and --max_new_tokens={request.max_new_tokens} are more "
                f"than config.model.max_seq_len={config.max_seq_len}; {near}"
            )
        outside = [i for i in request.prompt if not 0 <= i < config.vocab_size]
        if outside:
            raise ConfigError(
                f"--prompt: holds token {outside[0]}, outside the model's vocabulary of "
                f"{config.vocab_size}"
            )

    def generate(
        self, requests: Sequence[Request], on_text: OnText | None = None
    ) -> list[Completion]:
        """Writes all texts; completions come in the order of the requests.

        `on_text` is told each piece of text as soon as it is certain.

        Raises:
          ConfigError: a request cannot be met; nothing was compiled.
          NonFiniteError: the model's logits are not finite.
        """
        found: dict[int, Completion] = {}
        for numbers, completions in self.batches(requests, on_text):
            found |= dict(zip(numbers, completions, strict=True))
        return [found[number] for number in range(len(requests))]

    def batches(
        self, requests: Sequence[Request], on_text: OnText | None = None
    ) -> Iterator[tuple[list[int], list[Completion]]]:
        """As `generate`, batch by batch: numbers of its requests, and their completions.

        Prompts of similar length share a batch, the longest first.
        """
        for request in requests:
            self.check(request)
        order = sorted(range(len(requests)), key=lambda n: -len(requests[n].prompt))
        batch = max(min(self.batch_size, len(requests)), 1)
        for first in range(0, len(order), batch):
            numbers = order[first : first + batch]
            rows = [
                _Row(number, requests[number], self._token_bytes, on_text) for number in numbers
            ]
            self._write(rows, batch)
            yield numbers, [row.completion() for row in rows]

    def _write(self, rows: list[_Row], batch: int) -> None:
        requests = [row.request for row in rows]
        tokens_BP, first_B = left_padded(
            [r.prompt for r in requests], batch=batch, multiple=PIECE, pad_id=self._pad_id
        )
        length = tokens_BP.shape[1]
        new = max(request.max_new_tokens for request in requests)
        state = empty_state(self.model, jnp.asarray(first_B), rounded_up(length + new, PIECE))
        filled = [*requests, *[requests[0]] * (batch - len(requests))]  # rows of padding
        samplings = [request.sampling for request in filled]
        keys = [text_key(r.sampling.seed, np.asarray(r.prompt), r.sample) for r in filled]
        draws = stack_draws(samplings, keys)
        how = {
            "greedy": all(s.temperature == 0 for s in samplings),
            "cut": any(s.cuts for s in samplings),
        }
        logits_BV = None
        for place in range(0, length, PIECE):
            piece = jnp.asarray(tokens_BP[:, place : place + PIECE])
            logits_BV, state = self._prefill(self._params, self._state, piece, state)
        assert logits_BV is not None  # a prompt has a token
        token_B, logprob_B = self._draw(logits_BV, state.position_B, draws, **how)
        while True:
            told = jax.device_get((token_B, logprob_B))
            for row, (token, logprob) in enumerate(zip(*told, strict=True)):
                if row < len(rows) and rows[row].open:
                    rows[row].take(int(token), float(logprob))
            if not any(row.open for row in rows):
                return
            token_B, logprob_B, state = self._step(
                self._params, self._state, token_B, state, draws, **how
            )


def _step(
    model: Transformer,
    params: Tree,
    router_state: Tree,
    token_B: jax.Array,
    state: DecodeState,
    draws: Draws,
    *,
    greedy: bool,
    cut: bool,
) -> tuple[jax.Array, jax.Array, DecodeState]:
    """Reads one token of each row and draws the next; one program for every step."""
    logits_BV, state = decode_step(model, params, router_state, jnp.maximum(token_B, 0), state)
    token_B, logprob_B = draw(logits_BV, state.position_B, draws, greedy=greedy, cut=cut)
    return token_B, logprob_B, state


class _Row:
    """One request on its way."""

    def __init__(
        self,
        number: int,
        request: Request,
        token_bytes: Callable[[int], bytes],
        on_text: OnText | None,
    ) -> None:
        self.number, self.request = number, request
        self._stream = TextStream(token_bytes, request.stops)
        self._on_text = on_text
        self._tokens: list[int] = []
        self._logprobs: list[float] = []
        self.finish = ""

    @property
    def open(self) -> bool:
        return not self.finish

    def take(self, token: int, logprob: float) -> None:
        """The token that was drawn next."""
        if token < 0:
            raise NonFiniteError(
                f"the model's logits are not finite after {len(self._tokens)} tokens of prompt "
                f"{self.number}; the checkpoint is damaged or has diverged"
            )
        self._tokens.append(token)
        self._logprobs.append(logprob)
        if token in self.request.stop_ids:
            self._close("stop_token")
            return
        self._tell(self._stream.push(token))
        if self._stream.stopped:
            self._close("stop_text")
        elif len(self._tokens) == self.request.max_new_tokens:
            self._close("length")

    def _close(self, finish: str) -> None:
        self._tell(self._stream.end())
        self.finish = "stop_text" if self._stream.stopped else finish

    def _tell(self, piece: str) -> None:
        if piece and self._on_text is not None:
            self._on_text(self.number, piece)

    def completion(self) -> Completion:
        return Completion(
            self._stream.text, tuple(self._tokens), tuple(self._logprobs), self.finish
        )
