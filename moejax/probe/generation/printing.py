"""Texts on standard output: streamed on a terminal, plain or JSON elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TextIO

from moejax.probe.generation.generator import Completion, Request
from moejax.probe.generation.text import for_terminal

DIM, PLAIN = "\033[2m", "\033[0m"


class Printer:
    """Prints texts: piece by piece on a terminal if there is one text, whole otherwise.

    On a terminal control characters are replaced, and the prompt of a single text stands before it;
    elsewhere what was written is printed as it is, without the prompt.

    Args:
      prompts: of each request, as text.
      requests: what is written.
      step: of the checkpoint.
      as_json: one JSON object per line instead.
      stdout: a text file over a binary buffer.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        requests: Sequence[Request],
        step: int,
        *,
        as_json: bool = False,
        stdout: TextIO | None = None,
    ) -> None:
        self._prompts, self._requests, self._step = prompts, requests, step
        self._as_json = as_json
        self._stdout = sys.stdout if stdout is None else stdout
        self._terminal = self._stdout.isatty()
        self.streams = self._terminal and len(prompts) == 1 and not as_json
        if self.streams:
            self._out(DIM + for_terminal(prompts[0]) + PLAIN)

    def piece(self, number: int, text: str) -> None:
        """The next piece of a text."""
        del number
        if self.streams:
            self._out(for_terminal(text))

    def whole(self, number: int, completion: Completion) -> None:
        """A text that is complete."""
        request = self._requests[number]
        if self._as_json:
            self._out(json.dumps({
                "prompt": self._prompts[number],
                "sample": request.sample,
                "text": completion.text,
                "finish": completion.finish,
                "tokens": completion.tokens,
                "logprobs": [round(value, 6) for value in completion.logprobs],
                "prompt_tokens": len(request.prompt),
                "seed": request.sampling.seed,
                "step": self._step,
            }, ensure_ascii=True) + "\n")  # fmt: skip
            return
        if self.streams:
            self._out("\n")
            return
        text = for_terminal(completion.text) if self._terminal else completion.text
        if len(self._prompts) > 1:
            opening = for_terminal(self._prompts[number]).replace("\n", " ")[:40]
            self._out(f"--- {opening!r}, sample {request.sample} ({completion.finish})\n")
        self._out(text + "\n")

    def _out(self, text: str) -> None:
        self._stdout.buffer.write(text.encode("utf-8", "replace"))
        self._stdout.buffer.flush()
