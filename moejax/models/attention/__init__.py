"""Attention variants behind one contract (with a key-value cache)."""

from moejax.models.attention.backends import BACKENDS, Documents, document_mask
from moejax.models.attention.contract import (
    ATTENTIONS,
    AttentionInputs,
    AttentionKind,
    KVCache,
    LatentCache,
)
from moejax.models.attention.gqa import Attention, AttentionConfig
from moejax.models.attention.mla import LatentAttention, LatentAttentionConfig

__all__ = [
    "ATTENTIONS",
    "BACKENDS",
    "Attention",
    "AttentionConfig",
    "AttentionInputs",
    "AttentionKind",
    "Documents",
    "KVCache",
    "LatentAttention",
    "LatentAttentionConfig",
    "LatentCache",
    "document_mask",
]
