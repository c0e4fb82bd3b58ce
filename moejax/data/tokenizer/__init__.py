"""Tokenizers: one contract, registered recipes `bytes` and `bpe`."""

from moejax.data.tokenizer import bpe, byte
from moejax.data.tokenizer.contract import TOKENIZERS, Recipe, Tokenizer, state_hash

__all__ = ["TOKENIZERS", "Recipe", "Tokenizer", "bpe", "byte", "state_hash"]
