"""Attention variants behind one contract (with a key-value cache)."""

from moejax.models.attention.contract import AttentionInputs, KVCache, document_mask
from moejax.models.attention.gqa import Attention, AttentionConfig

__all__ = ["Attention", "AttentionConfig", "AttentionInputs", "KVCache", "document_mask"]
