"""Checkpoints of others: Hugging Face directories in both directions, GGUF files in one."""

from moejax.interop.exporting import choose_family, export, plan_export, write_record
from moejax.interop.families import FAMILIES, Family, Layout, family_of
from moejax.interop.gguf_llama import GgufLlama
from moejax.interop.importing import Account, Imported, import_model, read_model
from moejax.interop.padding import pad_experts
from moejax.interop.source import HfDirectory, Source

__all__ = [
    "FAMILIES",
    "Account",
    "Family",
    "GgufLlama",
    "HfDirectory",
    "Imported",
    "Layout",
    "Source",
    "choose_family",
    "export",
    "family_of",
    "import_model",
    "open_source",
    "pad_experts",
    "plan_export",
    "read_model",
    "write_record",
]


def open_source(where: str) -> Source:
    """A directory, or a file that ends in `.gguf`.

    Raises:
      ConfigError: it is neither, or damaged.
    """
    return GgufLlama(where) if str(where).endswith(".gguf") else HfDirectory.open(where)
