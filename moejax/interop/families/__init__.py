"""Families of checkpoints: one file each, behind one contract (`contract.Family`)."""

from moejax.interop.families.contract import FAMILIES, Family, Layout, family_of
from moejax.interop.families.deepseek import DeepseekMoe, DeepseekV2, DeepseekV3
from moejax.interop.families.llama import Llama, Mistral
from moejax.interop.families.mixtral import Mixtral
from moejax.interop.families.olmoe import Olmoe
from moejax.interop.families.qwen import Qwen2, Qwen2Moe, Qwen3, Qwen3Moe

__all__ = [
    "FAMILIES",
    "DeepseekMoe",
    "DeepseekV2",
    "DeepseekV3",
    "Family",
    "Layout",
    "Llama",
    "Mistral",
    "Mixtral",
    "Olmoe",
    "Qwen2",
    "Qwen2Moe",
    "Qwen3",
    "Qwen3Moe",
    "family_of",
]
