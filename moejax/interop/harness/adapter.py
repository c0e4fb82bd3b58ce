"""A run as a model of the Harness: importing this module registers the model `moejax`.

    import moejax.interop.harness.adapter
    lm_eval.simple_evaluate("moejax", "run=runs/top_k", tasks=[...])

Needs the package `lm_eval` (extra `lm-eval`).
"""

from __future__ import annotations

import collections
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from moejax.config import ConfigError
from moejax.interop.harness.arguments import MAX_NEW_TOKENS, generation_arguments
from moejax.probe.generation import Request
from moejax.probe.scoring import Span, encode_pair, rolling_spans
from moejax.probe.writer import Writer, open_writer

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError as error:
    raise ConfigError(
        f"the Language Model Evaluation Harness is not installed ({error}); install it with: pip "
        "install '.[lm-eval]'"
    ) from error

Progress = Callable[[int, int], None]


@register_model("moejax")
class MoejaxLM(LM):
    """A run as a model of the Harness.

    Numbers do not depend on the batch size, nor on what else is asked (beyond float noise).

    Args:
      run: a run directory, or one that is open already.
      batch_size: rows of a batch.
      max_length: tokens that the model reads at once, longer contexts lose the first ones; 0: the
        windows that it was trained on (an imported model: the longest that its config allows).
      step: checkpoint; empty: the newest whole one.
      seed: of sampled texts.
      lift_capacity: no expert turns a token away.
      progress: is told how many requests are done of how many.
      options: what the Harness passes to every model (`device`, `max_batch_size`); not used.

    Raises:
      ConfigError: an argument is unknown or impossible (`open_writer`).
    """

    def __init__(
        self,
        run: str | Writer,
        batch_size: int | str = 8,
        max_length: int = 0,
        step: int | str = "",
        seed: int = 0,
        lift_capacity: bool = False,
        progress: Progress | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        unknown = sorted(set(options) - {"device", "max_batch_size"})
        if unknown:
            raise ConfigError(f"model argument {unknown[0]}: is unknown to moejax")
        if not str(batch_size).isdecimal():
            raise ConfigError(f"--batch_size={batch_size}: must be a number; nearest valid value 8")
        if not isinstance(run, Writer):
            run = open_writer(run, step=int(step) if step else None, lift_capacity=lift_capacity)
        self.writer, self.seed, self._progress = run, seed, progress
        self.max_length = max_length or run.trained_length
        self._scorer = run.scorer(int(batch_size), self.max_length)
        self._generator = run.generator(int(batch_size))

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in caches of requests."""
        tokenizer = self.writer.tokenizer
        return f"{tokenizer.name}-{tokenizer.vocab_size}-{self.writer.run.root.name}"

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Of each `(context, continuation)`: log-probability of the continuation in nats, and
        whether greedy decoding would write it.

        An empty context is the end of another document. A context that is too long loses its first
        tokens.

        Raises:
          ConfigError: a continuation is empty, or too long for the model.
        """
        tokenizer = self.writer.tokenizer
        spans = []
        for request in requests:
            before, after = encode_pair(tokenizer, *request.args)
            spans.append(Span(before or (tokenizer.eos_id,), after))
        scores = self._scorer.score(spans, self._progress)
        found = [(score.total, score.greedy) for score in scores]
        for request, result in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, result)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Log-probability of each whole text in nats, every token scored once.

        A text begins after the end of another document. Long ones are cut into windows
        (`rolling_spans`).
        """
        tokenizer, spans, owner = self.writer.tokenizer, [], []
        for number, request in enumerate(requests):
            (text,) = request.args
            ids = tuple(map(int, tokenizer.encode(text)))
            own = list(rolling_spans(ids, tokenizer.eos_id, self.max_length))
            spans += own
            owner += [number] * len(own)
        totals = [0.0] * len(requests)
        for number, score in zip(owner, self._scorer.score(spans, self._progress), strict=True):
            totals[number] += score.total
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The text that follows each `(context, arguments)`.

        Arguments of a request: `until`, `max_gen_toks`, `do_sample`, `temperature`, `top_k`,
        `top_p`. The end of the document ends it too. Contexts that leave no room lose their first
        tokens. A request that stands several times is another sample each time.

        Raises:
          ConfigError: an argument is unknown or out of its range, or leaves no room for a context.
        """
        seen: collections.Counter[str] = collections.Counter()
        texts = []
        for context, arguments in (request.args for request in requests):
            key = json.dumps([context, arguments], sort_keys=True, default=str)
            texts.append(self._request(context, arguments, seen[key]))
            seen[key] += 1
        found: dict[int, str] = {}
        for numbers, completions in self._generator.batches(texts):
            for number, completion in zip(numbers, completions, strict=True):
                found[number] = completion.text
                args = requests[number].args
                self.cache_hook.add_partial("generate_until", args, completion.text)
            if self._progress is not None:
                self._progress(len(found), len(requests))
        return [found[number] for number in range(len(requests))]

    def _request(self, context: str, arguments: Mapping[str, Any], sample: int) -> Request:
        default = min(MAX_NEW_TOKENS, self.max_length // 2)
        sampling, length, stops = generation_arguments(arguments, default, self.seed)
        room = self.max_length - length
        if room < 1:
            raise ConfigError(
                f"max_gen_toks={length}: leaves no room for a context in the {self.max_length} "
                f"tokens of the model; nearest valid value {self.max_length - 1}"
            )
        return Request(
            prompt=self.writer.ids(context)[-room:],
            max_new_tokens=length,
            sampling=sampling,
            sample=sample,
            stop_ids=frozenset({self.writer.tokenizer.eos_id}),
            stops=stops,
        )
