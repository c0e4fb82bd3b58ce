"""Byte-level byte-pair encoding (Sennrich et al. 2016; GPT-2's byte alphabet and pieces).

Text is cut into pieces (a word, a number, a run of punctuation, each with the space before it;
white space), and merges stay inside a piece. Trained with Hugging Face `tokenizers`, which breaks
ties between pairs by their ids, so that the same text gives the same merges on every run and for
any number of threads. The pieces are cut here, with Python's `re`, and the ids of a piece are
remembered: a corpus repeats few pieces often, and this encodes five times as fast.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from moejax.config import ConfigError, knob
from moejax.data.tokenizer.contract import TOKENIZERS, Tokenizer

if TYPE_CHECKING:
    from moejax.data.knobs import DataConfig

_SPECIALS = 2
# GPT-2's pattern, with Python's notion of letters and digits. Every character is in one piece.
_PIECE = re.compile(r"'(?:[stmd]|re|ve|ll)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")
# A code point that is no character keeps pieces apart on their way into the trainer.
_APART = "\uffff"
_MAX_REMEMBERED = 1 << 20


class BpeTokenizer(Tokenizer):
    """Ids 0..n-1 are the alphabet and the merges; unused ids follow if the text was too small."""

    name = "bpe"

    def __init__(self, vocab_size: int, merges: list[tuple[str, str]], tokens: list[str]) -> None:
        """Takes what `state` holds; raises ConfigError if the merges do not fit the tokens."""
        self.vocab_size = vocab_size
        self._merges, self._tokens = merges, tokens
        table = byte_of_character()
        try:
            self._bytes = [bytes(table[c] for c in token) for token in tokens]
            model = models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges)
        except Exception as error:  # tokenizers raises bare Exception for a merge without token
            raise ConfigError(f"bpe tokenizer: tokens and merges do not fit ({error})") from error
        self._encoder = tokenizers.Tokenizer(model)
        self._encoder.pre_tokenizer = _bytes_only()
        self._ids: dict[str, bytes] = {}

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self._encode(_PIECE.findall(text)) for text in texts]

    def _encode(self, pieces: list[str]) -> np.ndarray:
        if len(self._ids) > _MAX_REMEMBERED:
            self._ids.clear()
        new = [piece for piece in dict.fromkeys(pieces) if piece not in self._ids]
        for piece, found in zip(new, self._encoder.encode_batch_fast(new), strict=True):
            self._ids[piece] = np.array(found.ids, np.int32).tobytes()
        return np.frombuffer(b"".join(map(self._ids.__getitem__, pieces)), np.int32)

    def token_bytes(self, token: int) -> bytes:
        return self._bytes[token] if token < len(self._bytes) else b""

    def state(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "vocab_size": self.vocab_size,
            "tokens": list(self._tokens),
            "merges": [list(pair) for pair in self._merges],
        }


@TOKENIZERS.register("bpe")
@dataclasses.dataclass(frozen=True)
class Bpe:
    """The recipe of `BpeTokenizer`."""

    vocab: int = knob(2048, low=258, unit="tokens", doc="Vocabulary, specials included.")

    @classmethod
    def from_data(cls, config: DataConfig) -> Bpe:
        return cls(config.bpe_vocab_size)

    @property
    def vocab_size(self) -> int:
        return self.vocab

    def describe(self) -> dict[str, Any]:
        version = importlib.metadata.version("tokenizers")
        return {"name": "bpe", "vocab_size": self.vocab, "tokenizers": version}

    def train(self, texts: Callable[[], Iterable[str]]) -> Tokenizer:
        encoder = tokenizers.Tokenizer(models.BPE())
        encoder.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.CharDelimiterSplit(_APART), _bytes_only()]
        )
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab - _SPECIALS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # any byte can be encoded
            show_progress=False,
        )
        joined = (_APART.join(_PIECE.findall(text)) for text in texts())
        encoder.train_from_iterator(joined, trainer)
        model = json.loads(encoder.to_str())["model"]
        tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
        return BpeTokenizer(self.vocab, [(a, b) for a, b in model["merges"]], tokens)

    def load(self, state: dict[str, Any]) -> Tokenizer:
        merges = [(a, b) for a, b in state["merges"]]
        return BpeTokenizer(state["vocab_size"], merges, state["tokens"])


def _bytes_only() -> Any:
    """Returns the pre-tokenizer that maps bytes to the alphabet and cuts nothing."""
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 bytes are themselves, the others follow from U+0100."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    table = {chr(byte): byte for byte in plain}
    return table | {chr(0x100 + i): byte for i, byte in enumerate(others)}
