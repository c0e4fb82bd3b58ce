"""The decoder-only transformer: attention, blocks, segments, losses, counts."""

from moejax.models.config import ModelConfig
from moejax.models.transformer import Transformer

__all__ = ["ModelConfig", "Transformer"]
