"""A tokenizer that came with a model: a Hugging Face `tokenizer.json`, byte-level BPE.

Nothing is trained and nothing is executed: the file is JSON, and the package `tokenizers` does what
it says. Text that spells a special token stays text, so no document can contain its own end.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tokenizers

from moejax.config import ConfigError, read_json
from moejax.data.tokenizer.bpe import byte_of_character
from moejax.data.tokenizer.contract import TOKENIZERS, Tokenizer

if TYPE_CHECKING:
    from moejax.data.knobs import DataConfig

MAX_BYTES = 200 << 20


class PretrainedTokenizer(Tokenizer):
    """Ids as the model learned them.

    Args:
      content: a tokenizer.json, parsed.
      eos_id: ends every document.
      pad_id: fills rows; may be the same.

    Raises:
      ConfigError: it is no byte-level BPE, or has no such ids.
    """

    name = "pretrained"

    def __init__(self, content: dict[str, Any], eos_id: int, pad_id: int) -> None:
        _require_byte_level(content)
        try:
            self._encoder = tokenizers.Tokenizer.from_str(json.dumps(content))
        except Exception as error:  # tokenizers raises bare Exception
            raise ConfigError(f"tokenizer.json: cannot be read ({error})") from error
        self._encoder.no_truncation()
        self._encoder.no_padding()
        self._encoder.encode_special_tokens = True
        self._content, self._eos, self._pad = content, eos_id, pad_id
        vocabulary = self._encoder.get_vocab(with_added_tokens=True)
        self.vocab_size = 1 + max(vocabulary.values(), default=0)
        for what, token in (("EOS", eos_id), ("PAD", pad_id)):
            if not 0 <= token < self.vocab_size:
                raise ConfigError(f"tokenizer.json: has no id {token} for {what}")
        table = byte_of_character()
        self._bytes = [b""] * self.vocab_size
        for piece, index in vocabulary.items():
            if all(character in table for character in piece):
                self._bytes[index] = bytes(table[character] for character in piece)
        for index, added in self._encoder.get_added_tokens_decoder().items():
            self._bytes[index] = b"" if added.special else added.content.encode()

    @property
    def eos_id(self) -> int:
        return self._eos

    @property
    def pad_id(self) -> int:
        return self._pad

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        found = self._encoder.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(one.ids, np.int32) for one in found]

    def token_bytes(self, token: int) -> bytes:
        return self._bytes[token] if token < len(self._bytes) else b""

    def state(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "vocab_size": self.vocab_size,
            "eos_id": self._eos,
            "pad_id": self._pad,
            "content": self._content,
        }


@TOKENIZERS.register("pretrained")
@dataclasses.dataclass(frozen=True)
class Pretrained:
    """The recipe of `PretrainedTokenizer`: the path of a tokenizer.json. What ends a document and
    what fills a row stands in the tokenizer_config.json beside it."""

    file: str

    @classmethod
    def from_data(cls, config: DataConfig) -> Pretrained:
        if not config.tokenizer_file:
            raise ConfigError(
                "config.data.tokenizer_file: is needed with tokenizer='pretrained': the path of a "
                "tokenizer.json"
            )
        return cls(config.tokenizer_file)

    @property
    def vocab_size(self) -> int:
        return self._tokenizer().vocab_size

    def describe(self) -> dict[str, Any]:
        state = json.dumps(self._tokenizer().state(), sort_keys=True)
        return {"name": "pretrained", "sha256": hashlib.sha256(state.encode()).hexdigest()}

    def train(self, texts: Callable[[], Iterable[str]]) -> Tokenizer:
        return self._tokenizer()

    def load(self, state: dict[str, Any]) -> Tokenizer:
        return PretrainedTokenizer(state["content"], state["eos_id"], state["pad_id"])

    def _tokenizer(self) -> PretrainedTokenizer:
        path = Path(self.file).expanduser()
        stamp = path.stat().st_mtime_ns if path.is_file() else 0
        settings = path.with_name("tokenizer_config.json")
        known = settings.stat().st_mtime_ns if settings.is_file() else 0
        key = (str(path), stamp, known)
        if key not in _READ:
            _READ.clear()  # one is enough: a run has one tokenizer
            _READ[key] = read_tokenizer(path)
        return _READ[key]


_READ: dict[tuple[str, int, int], PretrainedTokenizer] = {}


def read_tokenizer(path: Path) -> PretrainedTokenizer:
    """The tokenizer of a tokenizer.json and the tokenizer_config.json beside it.

    Raises:
      ConfigError: a file is missing or wrong, or does not say what ends a document.
    """
    content = _object(path)
    settings = _object(path.with_name("tokenizer_config.json"))
    ids: dict[Any, int] = {}
    added = content.get("added_tokens")
    for entry in added if isinstance(added, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("id"), int):
            ids[entry.get("content")] = entry["id"]
    named: dict[str, Any] = {}
    for key in ("eos_token", "pad_token"):
        value = settings.get(key)
        named[key] = value.get("content") if isinstance(value, dict) else value
    eos = ids.get(named["eos_token"])
    if eos is None:
        raise ConfigError(
            f"{path.with_name('tokenizer_config.json')}: eos_token={named['eos_token']!r} is none "
            f"of the added tokens of {path.name}: what ends a document?"
        )
    try:
        return PretrainedTokenizer(content, eos, ids.get(named["pad_token"], eos))
    except ConfigError as error:
        raise ConfigError(str(error).replace("tokenizer.json", str(path), 1)) from None


def _object(path: Path) -> dict[str, Any]:
    if path.is_file() and path.stat().st_size > MAX_BYTES:
        raise ConfigError(f"{path}: has more than {MAX_BYTES >> 20} MiB")
    try:
        found = read_json(path)
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: is no JSON object")
    return found


def _require_byte_level(content: dict[str, Any]) -> None:
    model, decoder = content.get("model"), content.get("decoder")
    kind = model.get("type") if isinstance(model, dict) else None
    steps = decoder.get("decoders", [decoder]) if isinstance(decoder, dict) else []
    kinds = [step.get("type") for step in steps if isinstance(step, dict)]
    if kind != "BPE" or "ByteLevel" not in kinds:
        raise ConfigError(
            f"tokenizer.json: is {kind!r} with decoder {kinds}; only byte-level BPE is lossless, "
            "token by token"
        )
