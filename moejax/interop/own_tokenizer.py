"""Tokenizers of ours as the files that transformers opens."""

from __future__ import annotations

import json
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers

from moejax.config import ConfigError
from moejax.data.tokenizer import Tokenizer
from moejax.data.tokenizer.bpe import byte_of_character

END, PAD = "<|endoftext|>", "<|padding|>"

# The pieces of `moejax.data.tokenizer.bpe`, whose classes are Python's, in the words of the regular
# expressions of `tokenizers`: `[^\W\d_]` are letters and the numbers that are no digits, and four
# separators are space.
_SPACE = r"\s\x1c-\x1f"
PIECES = (
    r"'(?:[stmd]|re|ve|ll)| ?[\p{L}\p{Nl}\p{No}]+| ?\p{Nd}+"
    rf"| ?[^{_SPACE}\p{{L}}\p{{N}}]+|[{_SPACE}]+(?![^{_SPACE}])|[{_SPACE}]+"
)


def own_tokenizer_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """tokenizer.json and tokenizer_config.json of a tokenizer, with its ids.

    Text that spells a special token becomes that token in transformers; here it stays text.

    Raises:
      ConfigError: it is neither `bytes` nor `bpe` nor `pretrained`.
    """
    state = tokenizer.state()
    if tokenizer.name == "pretrained":
        names = {token["id"]: token["content"] for token in state["content"]["added_tokens"]}
        text = json.dumps(state["content"], ensure_ascii=False)
        return _files(text, names[tokenizer.eos_id], names[tokenizer.pad_id])
    cut: list[Any] = []
    if tokenizer.name == "bytes":
        characters = byte_of_character()
        tokens, merges = sorted(characters, key=characters.__getitem__), []
    elif tokenizer.name == "bpe":
        tokens, merges = state["tokens"], [(a, b) for a, b in state["merges"]]
        cut = [pre_tokenizers.Split(Regex(PIECES), "isolated")]
    else:
        raise ConfigError(
            f"tokenizer {tokenizer.name}: has no tokenizer.json; bytes, bpe and pretrained do"
        )
    # In the vocabulary and not only among the added tokens, which would be counted on from its end.
    vocabulary = {token: index for index, token in enumerate(tokens)}
    vocabulary |= {END: tokenizer.eos_id, PAD: tokenizer.pad_id}
    made = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([*cut, whole])
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([END, PAD])
    return _files(made.to_str(pretty=True), END, PAD)


def _files(content: str, end: str, pad: str) -> dict[str, bytes]:
    settings = {
        "clean_up_tokenization_spaces": False,
        "eos_token": end,
        "pad_token": pad,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    return {
        "tokenizer.json": content.encode(),
        "tokenizer_config.json": (json.dumps(settings, indent=2) + "\n").encode(),
    }
