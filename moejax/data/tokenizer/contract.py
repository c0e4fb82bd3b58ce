"""The contract of a tokenizer: lossless on UTF-8, ids below a vocabulary known beforehand.

The last two ids are EOS (ends every document) and PAD. They lie outside what text can encode to,
so no document can contain its own end.
"""

from __future__ import annotations

import abc
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from moejax.config import Registry

if TYPE_CHECKING:
    from moejax.data.knobs import DataConfig

TOKENIZERS = Registry("tokenizer")


class Tokenizer(abc.ABC):
    """A trained tokenizer.

    Attributes:
      name: its registered name.
      vocab_size: number of ids, EOS and PAD included; some may be unused.
    """

    name: str
    vocab_size: int

    @property
    def eos_id(self) -> int:
        return self.vocab_size - 2

    @property
    def pad_id(self) -> int:
        return self.vocab_size - 1

    @abc.abstractmethod
    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of each text, int32 `[n]`, without EOS."""

    @abc.abstractmethod
    def token_bytes(self, token: int) -> bytes:
        """Returns the bytes a token stands for; b"" for EOS, PAD and unused ids."""

    @abc.abstractmethod
    def state(self) -> dict[str, Any]:
        """Returns everything that `Recipe.load` needs, as JSON."""

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of one text, int32 `[n]`, without EOS."""
        return self.encode_many([text])[0]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text; EOS and PAD vanish, a cut character becomes U+FFFD."""
        return b"".join(self.token_bytes(int(i)) for i in ids).decode("utf-8", errors="replace")

    def token_lengths(self) -> np.ndarray:
        """Returns the bytes of each id, int32 `[V]`."""
        return np.array([len(self.token_bytes(i)) for i in range(self.vocab_size)], np.int32)


class Recipe(Protocol):
    """How to get a tokenizer: a frozen dataclass registered in `TOKENIZERS`."""

    registered_name: ClassVar[str]

    @classmethod
    def from_data(cls, config: DataConfig) -> Recipe:
        """Takes its knobs from the data config."""

    @property
    def vocab_size(self) -> int:
        """The vocabulary of the tokenizer it will make."""

    def describe(self) -> dict[str, Any]:
        """Returns its knobs, and the versions that could change the outcome, as JSON."""

    def train(self, texts: Callable[[], Iterable[str]]) -> Tokenizer:
        """Trains on the texts (the train split); the same texts give the same tokenizer."""

    def load(self, state: dict[str, Any]) -> Tokenizer:
        """Returns the tokenizer whose `state()` this is; raises ConfigError if it is not one."""


def state_hash(state: dict[str, Any]) -> str:
    """Returns the SHA-256 of a tokenizer's state."""
    text = json.dumps(state, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
