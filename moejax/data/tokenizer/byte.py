"""Bytes as tokens: 256 ids, EOS 256, PAD 257. Nothing to train."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moejax.data.tokenizer.contract import TOKENIZERS, Tokenizer

if TYPE_CHECKING:
    from moejax.data.knobs import DataConfig


class ByteTokenizer(Tokenizer):
    """The id of a byte is the byte."""

    name = "bytes"
    vocab_size = 258

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in texts]

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b""

    def state(self) -> dict[str, Any]:
        return {"name": self.name, "vocab_size": self.vocab_size}


@TOKENIZERS.register("bytes")
@dataclasses.dataclass(frozen=True)
class Bytes:
    """The recipe of `ByteTokenizer`; it has no knobs."""

    @classmethod
    def from_data(cls, config: DataConfig) -> Bytes:
        return cls()

    @property
    def vocab_size(self) -> int:
        return ByteTokenizer.vocab_size

    def describe(self) -> dict[str, Any]:
        return {"name": "bytes"}

    def train(self, texts: Callable[[], Iterable[str]]) -> Tokenizer:
        return ByteTokenizer()

    def load(self, state: dict[str, Any]) -> Tokenizer:
        return ByteTokenizer()
