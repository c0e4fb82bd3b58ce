"""Tokens into text as they come: whole characters only, and nothing behind a stop text."""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Callable, Sequence


class TextStream:
    """The text of one row, piece by piece.

    Bytes that begin a character wait for the rest of it; text that may be the beginning of a stop
    text waits until it is known not to be. What was given out is never taken back.

    Args:
      token_bytes: the bytes that an id stands for.
      stops: texts that end it; they are not part of it.

    Attributes:
      text: what was given out so far.
      stopped: whether a stop text was met.
    """

    def __init__(self, token_bytes: Callable[[int], bytes], stops: Sequence[str] = ()) -> None:
        self._token_bytes = token_bytes
        self._stops = tuple(stop for stop in stops if stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._waiting = ""
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that this token brings to light."""
        return self._advance(self._decoder.decode(self._token_bytes(token)))

    def end(self) -> str:
        """The rest, when no token follows; a cut character becomes U+FFFD."""
        piece = self._advance(self._decoder.decode(b"", final=True))
        if self.stopped:
            return piece
        rest, self._waiting = self._waiting, ""
        self.text += rest
        return piece + rest

    def _advance(self, new: str) -> str:
        if self.stopped:
            return ""
        waiting = self._waiting + new
        # The first to be complete, however the text was cut into tokens.
        found = [(p + len(stop), p) for stop in self._stops if (p := waiting.find(stop)) >= 0]
        if found:
            piece, self._waiting, self.stopped = waiting[: min(found)[1]], "", True
        else:
            kept = max((_overlap(waiting, stop) for stop in self._stops), default=0)
            cut = len(waiting) - kept
            piece, self._waiting = waiting[:cut], waiting[cut:]
        self.text += piece
        return piece


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` that `stop` begins with, short of all of it."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0


def for_terminal(text: str) -> str:
    """Text with control characters (but line feed and tab) as U+FFFD: what a model writes must not
    move the cursor or speak to the terminal."""
    return "".join(
        "\ufffd" if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text
    )
