"""Tokenizers: one contract, registered recipes `bytes`, `bpe` and `pretrained`."""

from moejax.data.tokenizer import bpe, byte, pretrained
from moejax.data.tokenizer.contract import TOKENIZERS, Recipe, Tokenizer, state_hash

__all__ = ["TOKENIZERS", "Recipe", "Tokenizer", "bpe", "byte", "pretrained", "state_hash"]
